"""Training of task models: all folds and seeds of an arm side by side, each with its own start, batches and checkpoint.

A model's numbers follow from its fold and seed alone: four generators (start, batches, negatives, dropout) are made
from the two, the same for every arm.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from isoslide import adversary, aggregators, combat, layers, optimising, resuming, sampling, selection, steps, tasks
from isoslide.bags import Bags
from isoslide.resuming import Run
from isoslide.stored_features import Stored

CURVE = ("step", *steps.PARTS, "lr", "tune_metric", "tune_inconsistency")


@dataclass(frozen=True)
class Fold:
    """What a fold trains and tunes on, and what its task's loss takes from the former.

    Attributes:
        scanners: of the training scans, by code.
        tuning_scanners: code of each tuning scan, `combat.UNSEEN` where its scanner does not train.
        harmony: of an arm with `combat`, what brings the features of the scanners together, see `combat.fit`.
    """

    number: int
    specimens: list[sampling.Specimen]
    tuning: selection.Tuning
    task: tasks.Task
    fitted: tasks.Fitted
    scanners: tuple[str, ...] = ()
    tuning_scanners: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    harmony: layers.State = field(default_factory=dict)


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
    waited: int = 0  # checkpoints since the last that was better than all before
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
        self.waited = 0 if self.state is None or merit > self._merit else self.waited + 1
        if self.state is not None and merit < self._merit:
            return
        self.status, self._merit, self.step, self.score = status, merit, step, value
        self.train_loss, self.reason = row["task"], _reason(status, value, row["task"], row["guess"])
        self.state = {name: tensor.detach()[0].to("cpu", copy=True) for name, tensor in state.items()}

    def memory(self) -> tuple[dict[str, Any], layers.State]:
        """Return what changes while the model trains, for a killed job to go on: see `resuming`."""
        values = {name: getattr(self, name) for name in _MEMORY}
        values["score"] = None if self.score is None else asdict(self.score)
        values |= {name: getattr(self, name).bit_generator.state for name in _STREAMS}
        return values, self.state or {}

    def recall(self, values: Mapping[str, Any], state: layers.State) -> None:
        """Put back what `memory` returned."""
        for name in _MEMORY:
            setattr(self, name, values[name])
        self._merit = tuple(self._merit)
        self.score = None if values["score"] is None else selection.Score(**values["score"])
        for name in _STREAMS:
            getattr(self, name).bit_generator.state = values[name]
        self.state = state or None


_MEMORY = ("status", "reason", "step", "train_loss", "curve", "waited", "_merit")
_STREAMS = ("negatives", "dropout")


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
    moments = _Moments(bags)
    for number, own in sorted(rows.groupby("fold"), key=lambda item: int(item[0])):
        trains, tunes = own[own["role"] == "train"], own[own["role"] == "tune"]
        specimens = sampling.specimens(trains, bags, arm.get("scanner"))
        fitted = {} if kind.lacks(specimens, outputs) else kind.fit(specimens, outputs)
        if arm.get("balance") and "class_weights" in fitted:
            fitted["class_weights"] = [1 / outputs] * outputs  # the batches are balanced already
        tuning = selection.tuning(tunes, bags.index, task["type"], fitted)
        scanners = sampling.scanners(trains, bags, arm.get("scanner"))
        codes = {name: code for code, name in enumerate(scanners)}
        tuned_on = tunes.loc[tunes["scan"].isin(bags.index), "scanner"]
        tuning_scanners = tuned_on.map(codes).fillna(combat.UNSEEN)
        harmony = moments.harmony(trains, scanners) if arm.get("combat") else {}
        found.append(
            Fold(int(number), specimens, tuning, kind, fitted, scanners, tuning_scanners.to_numpy(np.int64), harmony)
        )
    return found


class _Moments:
    """Moments of the features of scans, each read once for all folds."""

    def __init__(self, bags: Bags) -> None:
        self._bags, self._features = bags, bags.tensor()
        self._of: dict[int, combat.Moments] = {}

    def harmony(self, rows: pd.DataFrame, scanners: Sequence[str]) -> layers.State:
        """Return `combat.mean` and `combat.var` (scanners, dim), fitted on the scans of rows."""
        rows = rows[rows["scan"].isin(self._bags.index)]
        of_scanners = [
            reduce(add, (self._scan(self._bags.index[scan]) for scan in rows.loc[rows["scanner"] == name, "scan"]))
            for name in scanners
        ]
        return {
            name: torch.from_numpy(value).float()
            for name, value in zip(combat.NAMES, combat.fit(of_scanners), strict=True)
        }

    def _scan(self, scan: int) -> combat.Moments:
        if scan not in self._of:
            self._of[scan] = combat.moments(self._features, self._bags, scan)
        return self._of[scan]


def train(
    models: Sequence[Model],
    bags: Bags,
    shape: layers.Shape,
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    n_specimens: int,
    n_tiles: int,
    device: str = "cpu",
    file: resuming.File | None = None,
) -> None:
    """Train the models side by side; each ends with its status, kept state and curve filled in.

    Each model's gradient norm is clipped. A model whose loss or gradient is no longer finite is given up, and one that
    `patience` checkpoints did not make better has stopped; the others go on, to the bit as if nothing had happened.

    Args:
        models: sorted by fold.
        bags: features.
        shape: sizes of the task model.
        arm: the arm's block of the config.
        settings: the block `training` of the config.
        n_specimens: specimens per step, from `sampling.batch_size`.
        n_tiles: tiles per scan and step; scans that have fewer are padded.
        device: cpu or cuda.
        file: where the state of the run is kept for a job that is killed to go on; nowhere if None.
    """
    tiles = steps.Tiles(bags.tensor(), torch.device(device), steps.PRECISIONS[settings["precision"]])
    run = _start(models, shape, arm, settings, tiles.device)
    batches = _batches(models, bags, arm, n_specimens, n_tiles)
    fitted = {name: value.to(device) for name, value in tasks.stack([model.fold.fitted for model in models]).items()}
    parameters = run.optimiser.param_groups[0]["params"]
    done = file.load(run) if file else 0
    for _ in range(done):
        next(batches)
    if done:
        logging.info("a killed run goes on after step %d", done)
    sums, clock = torch.zeros(len(steps.PARTS), len(models), device=device), _Clock(done)
    drawn = steps.reading_ahead(batches, tiles, shape, settings["steps"] - done)
    for step, batch in enumerate(drawn, done + 1):
        if not run.alive.any():
            return
        parts = steps.losses_of(
            models, run.state, shape, tiles, batch, models[0].fold.task, fitted, arm, settings, step
        )
        run.optimiser.zero_grad()
        parts[0].sum().backward()
        norms = optimising.clip(parameters, settings["clip"])
        lr = run.optimiser.param_groups[0]["lr"]
        run.optimiser.step()
        run.schedule.step()
        run.alive &= _finite(models, run.alive, (parts[0].detach() + norms).cpu(), step)
        sums += torch.stack(parts).detach()
        if step % settings["checkpoint_every"] == 0 or step == settings["steps"]:
            means, speed = (sums / (step - clock.step)).cpu(), clock.speed(step)
            sums.zero_()
            _checkpoint(run, shape, tiles.features, bags, means, step, lr, speed, settings)
            if file:
                file.save(run, step)
            clock = _Clock(step)


class _Clock:
    """Steps per second since a step; starts anew after each checkpoint."""

    def __init__(self, step: int) -> None:
        self.step, self._since = step, time.perf_counter()

    def speed(self, step: int) -> float:
        return (step - self.step) / (time.perf_counter() - self._since)


def _start(
    models: Sequence[Model],
    shape: layers.Shape,
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    device: torch.device,
) -> Run:
    starts = [model.start for model in models]
    state = aggregators.init(shape, starts)
    if arm.get("adversarial_weight"):
        state |= adversary.init(shape, max(len(model.fold.scanners) for model in models), starts)
    for name in combat.NAMES if arm.get("combat") else ():
        state[name] = pad_sequence([model.fold.harmony[name] for model in models], batch_first=True)
    state = {name: value.to(device) for name, value in state.items()}
    parameters = [state[name].requires_grad_() for name in layers.trainable(state)]
    return Run(models, state, *optimising.build(parameters, settings), torch.ones(len(models), dtype=torch.bool))


def _batches(
    models: Sequence[Model], bags: Bags, arm: Mapping[str, Any], n_specimens: int, n_tiles: int
) -> Iterator[sampling.Batch]:
    draw = sampling.paired if arm["sampler"] == "paired" else sampling.unpaired
    balance = arm.get("balance", False)
    sources = [draw(model.fold.specimens, bags, model.batches, n_specimens, n_tiles, balance) for model in models]
    while True:
        yield sampling.stack([next(source) for source in sources])


def _finite(models: Sequence[Model], alive: Tensor, numbers: Tensor, step: int) -> Tensor:
    """Give up models whose loss or gradient norm is not finite; their numbers reach no other model."""
    finite = torch.isfinite(numbers)
    for i in torch.nonzero(alive & ~finite).flatten().tolist():
        models[i].status, models[i].reason = "non_finite", f"loss or gradient not finite at step {step}"
        logging.warning("fold %d seed %d: %s", models[i].fold.number, models[i].seed, models[i].reason)
    return finite


def _checkpoint(
    run: Run,
    shape: layers.Shape,
    features: Tensor | Stored,
    bags: Bags,
    means: Tensor,
    step: int,
    lr: float,
    speed: float,
    settings: Mapping[str, Any],
) -> None:
    """Score the models on the tuning scans, fold by fold, and let each keep what it prefers, or stop."""
    models, start = run.models, 0
    done = [model for model, ok in zip(models, run.alive.tolist(), strict=True) if ok]
    while start < len(models):
        fold = models[start].fold
        stop = start + sum(model.fold is fold for model in models[start:])
        part = {name: tensor[start:stop] for name, tensor in run.state.items()}
        logits = combat.predict_scans(part, shape, features, bags, fold.tuning.scans, fold.tuning_scanners).cpu()
        scores = fold.task.scores(logits).numpy()
        for i in range(start, stop):
            if run.alive[i]:
                row = {"step": step, "lr": lr} | dict(zip(steps.PARTS, means[:, i].tolist(), strict=True))
                value = selection.score(fold.tuning, scores[i - start].astype(np.float64))
                own = adversary.without(layers.single(run.state, i))
                models[i].consider(step, own, value, row, settings["selection"])
                if settings["patience"] and models[i].waited >= settings["patience"]:
                    run.alive[i] = False
                    logging.info("fold %d seed %d stops after step %d", fold.number, models[i].seed, step)
        start = stop
    _report(done, step, lr, speed)


def _report(models: Sequence[Model], step: int, lr: float, speed: float) -> None:
    """Log the means of the models over the steps since the last checkpoint."""
    rows = [model.curve[-1] for model in models]
    means = {name: _mean([row[name] for row in rows]) for name in (*steps.PARTS, "tune_metric", "tune_inconsistency")}
    parts = ", ".join(f"{name} {means[name]:.3f}" for name in steps.PARTS if not math.isnan(means[name]))
    logging.info(
        "step %d: %s; tuning metric %.3f, inconsistency %.3f; learning rate %.2g; %.3g steps/s (means of %d models)",
        step,
        parts,
        means["tune_metric"],
        means["tune_inconsistency"],
        lr,
        speed,
        len(models),
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def _reason(status: str, value: selection.Score, train_loss: float, guess_loss: float) -> str:
    if status == "not_trained":
        return f"training loss {train_loss:.3f}, a constant guess has {guess_loss:.3f}"
    return f"scores of the tuning scans spread by {value.spread:.4f}" if status == "collapsed" else ""
