"""Scores of whole scans by several models, of one fold or of a whole ensemble: one way for all that scores."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from isoslide import combat, models, outcomes, tasks
from isoslide.bags import Bags
from isoslide.layers import Shape, State
from isoslide.stored_features import Stored


@dataclass(frozen=True)
class Member:
    """One trained model.

    Attributes:
        state: stack of this model alone, with what harmonises its features where its arm has `combat`.
        shape: its sizes; those of an ensemble are equal.
        task: the task's block of the config.
        fitted: see `tasks.Fitted`.
        scanners: that its features are harmonised for, in the order of their codes.
    """

    state: State
    shape: Shape
    task: Mapping[str, Any]
    fitted: Mapping[str, Sequence[float]]
    scanners: tuple[str, ...] = ()


def member(path: str | Path, card: Mapping[str, Any]) -> Member:
    """Return a model from its file, and what its card says of it: `shape`, `fitted`, `combat`, the task's settings."""
    state = {name: tensor.unsqueeze(0) for name, tensor in load_file(path).items()}
    scanners = tuple(card.get("combat", ()))
    return Member(state, Shape(**card["shape"]), card["settings"]["task"], card["fitted"], scanners)


def trained(paths: Sequence[str | Path]) -> list[Member]:
    """Return models as train_models.py wrote them, each with its card beside it."""
    return [member(path, json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))) for path in paths]


def logits(
    members: Sequence[Member], features: Tensor | Stored, bags: Bags, scans: np.ndarray, scanners: np.ndarray
) -> Tensor:
    """Return the logits (models, scans, C) of whole scans.

    Models that harmonise features do it by scanner; those of a scanner that did not train stay as they are, and the
    log says so.

    Args:
        members: models of equal sizes.
        features: see `Bags.tensor`.
        bags: which rows belong to a scan.
        scans: indices into the bags.
        scanners: name of each scan's scanner.
    """
    out: list[Tensor] = [torch.empty(0)] * len(members)
    for known, own in _by_scanners(members):
        for name in sorted(set(scanners) - set(known)) if known else ():
            logging.warning("scanner %s did not train, so its features are not harmonised", name)
        codes = np.array([known.index(name) if name in known else combat.UNSEEN for name in scanners], dtype=np.int64)
        state = models.stack([members[i].state for i in own])
        found = combat.predict_scans(state, members[own[0]].shape, features, bags, scans, codes)
        for i, values in zip(own, found, strict=True):
            out[i] = values
    return torch.stack(out)


def columns(members: Sequence[Member], values: Tensor) -> list[dict[str, np.ndarray]]:
    """Return the columns of the predictions (`logit`, `p`, `p_0`, …) of each model, from logits (models, scans, C)."""
    return [tasks.columns(one.task, own, one.fitted) for one, own in zip(members, values, strict=True)]


def ensemble(each: Sequence[Mapping[str, np.ndarray]], task: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the scores (scans,) of an ensemble, from the columns of its models.

    `p` is the mean over the models; `p_sd` (n - 1; 0 for a single model), `p_low` and `p_high` are SD, smallest and
    largest of the models' `p`. Of a multiclass task `p_0`, … are the means, `predicted` the index of the largest of
    them, `p` that largest one, and the spread is that of the models' probabilities of this class.
    """
    found: dict[str, np.ndarray] = {}
    if outcomes.kind_of(task) == "multiclass":
        names = [name for name in each[0] if name.startswith("p_")]
        stacked = np.stack([[one[name] for name in names] for one in each])  # (models, classes, scans)
        means = stacked.mean(0)
        found["predicted"] = means.argmax(0)
        scores = np.take_along_axis(stacked, found["predicted"][None, None], 1)[:, 0]
        found |= dict(zip(names, means, strict=True))
    else:
        scores = np.stack([one["p"] for one in each])
    spread = scores.std(0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1])
    return {"p": scores.mean(0), "p_sd": spread, "p_low": scores.min(0), "p_high": scores.max(0)} | found


def _by_scanners(members: Sequence[Member]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Yield the models that harmonise for the same scanners, the names of these and the models' places."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, one in enumerate(members):
        groups.setdefault(one.scanners, []).append(i)
    yield from groups.items()
