"""Training of task models: all folds and seeds of an arm side by side, each with its own start, batches and checkpoint.

A model's numbers follow from its fold and seed alone: four generators (start, batches, negatives, dropout) are made
from the two, the same for every arm.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from isoslide import aggregators, clam, layers, losses, sampling, selection, tasks
from isoslide.bags import Bags

PARTS = ("total", "task", "embedding", "score", "instance", "guess")
CURVE = ("step", *PARTS, "lr", "tune_metric", "tune_inconsistency")


@dataclass(frozen=True)
class Fold:
    """What a fold trains and tunes on, and what its task's loss takes from the former."""

    number: int
    specimens: list[sampling.Specimen]
    tuning: selection.Tuning
    task: tasks.Task
    fitted: tasks.Fitted


@dataclass
class Model:
    """One fold and seed: its generators, what was kept of it, and how it went."""

    fold: Fold
    seed: int
    status: str = "not_trained"
    reason: str = "no checkpoint"
    step: int = 0
    train_loss: float = math.nan
    score: selection.Score | None = None
    state: layers.State | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    _merit: tuple[bool, float] = (False, -math.inf)

    def __post_init__(self) -> None:
        streams = np.random.SeedSequence([self.seed, self.fold.number]).spawn(4)
        start, self.batches, self.negatives, self.dropout = (np.random.default_rng(s) for s in streams)
        self.start = torch.Generator().manual_seed(int(start.integers(2**62)))

    def consider(
        self, step: int, state: layers.State, value: selection.Score, row: dict[str, float], rule: str
    ) -> None:
        """Keep this checkpoint if the rule prefers it; ties go to the later one.

        The rule `normalised` takes a collapsed or untrained checkpoint only when there is no other, and then the last.
        """
        self.curve.append(row | {"tune_metric": value.metric, "tune_inconsistency": value.inconsistency})
        status = selection.trained(value, row["task"], row["guess"])
        eligible = status == "ok" or rule != "normalised"
        merit = (eligible, selection.merit(value, rule, step) if eligible else step)
        if self.state is not None and merit < self._merit:
            return
        self.status, self._merit, self.step, self.score = status, merit, step, value
        self.train_loss, self.reason = row["task"], _reason(status, value, row["task"], row["guess"])
        self.state = {name: tensor.detach()[0].clone() for name, tensor in state.items()}


def folds(rows: pd.DataFrame, bags: Bags, arm: Mapping[str, Any], task: Mapping[str, Any], outputs: int) -> list[Fold]:
    """Return the folds of a split table.

    Args:
        rows: the table as text.
        bags: features of its scans.
        arm: the arm's block of the config.
        task: the task's block of the config.
        outputs: of the models.
    """
    kind = tasks.of(task)
    found = []
    for number, own in sorted(rows.groupby("fold"), key=lambda item: int(item[0])):
        specimens = sampling.specimens(own[own["role"] == "train"], bags, arm.get("scanner"))
        fitted = {} if kind.lacks(specimens, outputs) else kind.fit(specimens, outputs)
        tuning = selection.tuning(own[own["role"] == "tune"], bags.index, task["type"], fitted)
        found.append(Fold(int(number), specimens, tuning, kind, fitted))
    return found


def train(
    models: Sequence[Model],
    bags: Bags,
    shape: layers.Shape,
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    n_specimens: int,
    n_tiles: int,
) -> None:
    """Train the models side by side; each ends with its status, kept state and curve filled in.

    SGD on a one-cycle learning rate (a 25th of the highest at the start, highest at 30 % of the steps, a 12,500th at
    the end; momentum 0.95, 0.85, 0.95), weight decay, and each model's gradient norm clipped. A model whose loss or
    gradient is no longer finite is given up; the others go on.

    Args:
        models: sorted by fold.
        bags: features.
        shape: sizes of the task model.
        arm: the arm's block of the config.
        settings: the block `training` of the config.
        n_specimens: specimens per step, from `sampling.batch_size`.
        n_tiles: tiles per scan and step; scans that have fewer are padded.
    """
    features = torch.from_numpy(bags.features)
    state = aggregators.init(shape, [model.start for model in models])
    parameters = [state[name].requires_grad_() for name in layers.trainable(state)]
    optimiser = torch.optim.SGD(
        parameters, lr=settings["learning_rate"], momentum=0.95, weight_decay=settings["weight_decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        settings["learning_rate"],
        total_steps=settings["steps"],
        div_factor=25,
        final_div_factor=500,
    )
    batches = _batches(models, bags, arm["sampler"], n_specimens, n_tiles)
    fitted = tasks.stack([model.fold.fitted for model in models])
    drawn = features.new_empty(0)  # one buffer for all steps: a fresh one of this size costs as much as filling it
    alive = torch.ones(len(models), dtype=torch.bool)
    sums, since = torch.zeros(len(PARTS), len(models)), 0
    for step in range(1, settings["steps"] + 1):
        parts = _losses(models, state, shape, features, drawn, next(batches), fitted, arm, settings, step)
        optimiser.zero_grad()
        parts[0].sum().backward()
        norms = clip(parameters, settings["clip"])
        lr = optimiser.param_groups[0]["lr"]
        optimiser.step()
        schedule.step()
        alive = _finite(models, alive, parts[0], norms, step)
        if not alive.any():
            return
        sums += torch.stack(parts).detach()
        since += 1
        if step % settings["checkpoint_every"] == 0 or step == settings["steps"]:
            _checkpoint(models, alive, state, shape, features, bags, sums / since, step, lr, settings["selection"])
            sums, since = torch.zeros_like(sums), 0


def clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale each model's gradient to at most the norm `limit`; return the norms (M,) before."""
    grads = [parameter.grad for parameter in parameters]
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1)
    if not bool((factors == 1).all()):
        for grad in grads:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))
    return norms


def _batches(
    models: Sequence[Model], bags: Bags, sampler: str, n_specimens: int, n_tiles: int
) -> Iterator[sampling.Batch]:
    draw = sampling.paired if sampler == "paired" else sampling.unpaired
    sources = [draw(model.fold.specimens, bags, model.batches, n_specimens, n_tiles) for model in models]
    while True:
        yield sampling.stack([next(source) for source in sources])


def _losses(
    models: Sequence[Model],
    state: layers.State,
    shape: layers.Shape,
    features: Tensor,
    drawn: Tensor,
    batch: sampling.Batch,
    fitted: Mapping[str, Tensor],
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    step: int,
) -> list[Tensor]:
    """Return the losses `PARTS` (M,) of a step; `guess` is the task loss of a constant guess.

    A loss of weight 0 is not computed and is NaN.
    """
    ordered = shape.aggregator in aggregators.ORDERED
    rows = torch.from_numpy(aggregators.in_order(batch.rows, batch.valid) if ordered else batch.rows)
    m, g, t = rows.shape
    x = torch.index_select(features, 0, rows.flatten(), out=drawn).to(torch.float32).view(m, g, t, -1)
    shared = arm["sampler"] == "paired" and settings["head_dropout"] == "paired"
    keep = layers.dropout_factors([model.dropout for model in models], shape.dropout, g, shape.width, shared)
    valid = torch.from_numpy(batch.valid)
    out = aggregators.forward(state, shape, x, valid, keep)
    kind, known = models[0].fold.task, tasks.truth(batch, 2 if arm["sampler"] == "paired" else 1)
    task = kind.loss(out.logits, known, fitted)
    guess = tasks.guess_loss(kind, out.logits, known, fitted)
    warm = min(1.0, step / arm["warmup_steps"]) if arm["warmup_steps"] else 1.0
    total, nan = task, torch.full_like(task, math.nan)
    embedding = score = instance = nan
    if shape.aggregator == "clam_sb":
        instance = clam.instance_loss(state, out, known.labels.long(), valid, settings["instance_tiles"])
        total = total + settings["instance_weight"] * instance
    if arm["embedding_weight"]:
        embedding = _embedding_loss(models, out.embeddings, batch, arm)
        total = total + warm * arm["embedding_weight"] * embedding
    if arm["score_weight"]:
        b = g // 2
        pairs = torch.from_numpy(batch.pairs[:, :b])
        score = losses.score_loss(out.logits[:, :b], out.logits[:, b:], pairs, arm["score_loss"])
        total = total + warm * arm["score_weight"] * score
    return [total, task, embedding, score, instance, guess]


def _embedding_loss(
    models: Sequence[Model], embeddings: Tensor, batch: sampling.Batch, arm: Mapping[str, Any]
) -> Tensor:
    m, e, g, t = embeddings.shape
    b = g // 2
    h1, h2 = embeddings.view(m, e, 2, b, t).permute(2, 0, 3, 4, 1)
    valid = batch.valid[:, :b] & batch.pairs[:, :b, None]
    if arm["embedding_loss"] != "info_nce":
        function = losses.embedding_mse if arm["embedding_loss"] == "mse" else losses.embedding_cosine
        return function(h1, h2, torch.from_numpy(valid))
    scanners = batch.scanners.reshape(m, 2, b).swapaxes(1, 2)
    allowed = losses.allowed_specimens(arm["negatives"], batch.patients[:, :b], scanners)
    rngs = [model.negatives for model in models]
    draws = losses.draw_negatives(rngs, allowed, valid, arm["n_negatives"], arm["n_anchors"])
    return losses.info_nce(h1, h2, draws, arm["temperature"])


def _finite(models: Sequence[Model], alive: Tensor, total: Tensor, norms: Tensor, step: int) -> Tensor:
    """Give up models whose loss or gradient is not finite; their numbers reach no other model."""
    finite = torch.isfinite(total.detach()) & torch.isfinite(norms)
    for i in torch.nonzero(alive & ~finite).flatten().tolist():
        models[i].status, models[i].reason = "non_finite", f"loss or gradient not finite at step {step}"
        logging.warning("fold %d seed %d: %s", models[i].fold.number, models[i].seed, models[i].reason)
    return alive & finite


def _checkpoint(
    models: Sequence[Model],
    alive: Tensor,
    state: layers.State,
    shape: layers.Shape,
    features: Tensor,
    bags: Bags,
    means: Tensor,
    step: int,
    lr: float,
    rule: str,
) -> None:
    """Score the models on the tuning scans, fold by fold, and let each keep what it prefers."""
    start = 0
    while start < len(models):
        fold = models[start].fold
        stop = start + sum(model.fold is fold for model in models[start:])
        part = {name: tensor[start:stop] for name, tensor in state.items()}
        logits = aggregators.predict_scans(part, shape, features, bags, fold.tuning.scans)
        scores = fold.task.scores(logits).numpy()
        for i in range(start, stop):
            if alive[i]:
                row = {"step": step, "lr": lr} | dict(zip(PARTS, means[:, i].tolist(), strict=True))
                value = selection.score(fold.tuning, scores[i - start].astype(np.float64))
                models[i].consider(step, layers.single(state, i), value, row, rule)
        start = stop
    done = [model for model, ok in zip(models, alive.tolist(), strict=True) if ok]
    logging.info(
        "step %d: training loss %.3f, tuning metric %.3f, inconsistency %.3f (means of %d models)",
        step,
        np.mean([model.curve[-1]["task"] for model in done]),
        _mean([model.curve[-1]["tune_metric"] for model in done]),
        _mean([model.curve[-1]["tune_inconsistency"] for model in done]),
        len(done),
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def _reason(status: str, value: selection.Score, train_loss: float, guess_loss: float) -> str:
    if status == "not_trained":
        return f"training loss {train_loss:.3f}, a constant guess has {guess_loss:.3f}"
    return f"scores of the tuning scans spread by {value.spread:.4f}" if status == "collapsed" else ""
