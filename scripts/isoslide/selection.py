"""Which checkpoint of a training run is kept, judged on the tuning scans only, by one rule for every arm."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from isoslide import metrics

RULES = ("normalised", "reference", "metric", "last")
COLLAPSED_SPREAD = 0.02  # SD of p over the tuning scans below which a checkpoint tells specimens apart no longer
UNTRAINED_LOSS = 0.9  # training cross-entropy, as a share of a constant guess's, above which nothing was learned


@dataclass(frozen=True)
class Tuning:
    """The tuning scans of a fold, as columns of equal length."""

    scans: np.ndarray  # indices into the bags
    specimens: np.ndarray
    labels: np.ndarray  # class index as text, empty where unknown
    time: np.ndarray | None  # survival only
    event: np.ndarray | None


@dataclass(frozen=True)
class Score:
    """How a checkpoint does on the tuning scans; NaN where a number does not exist."""

    metric: float  # AUC, or c-index in survival
    inconsistency: float
    rmse: float
    spread: float  # SD of p


def tuning(rows: pd.DataFrame, index: dict[str, int], kind: str) -> Tuning:
    """Return the tuning scans that have features.

    Args:
        rows: the rows of a fold with role `tune`.
        index: scan to its index in the bags.
        kind: type of the task.
    """
    rows = rows[rows["scan"].isin(index)]
    survival = kind == "survival"
    return Tuning(
        scans=np.array([index[scan] for scan in rows["scan"]], dtype=np.int64),
        specimens=rows["specimen"].to_numpy(),
        labels=rows["label"].to_numpy(),
        time=rows["time"].to_numpy(dtype=float) if survival else None,
        event=rows["event"].to_numpy(dtype=float).astype(int) if survival else None,
    )


def score(tune: Tuning, p: np.ndarray) -> Score:
    """Return metric, inconsistency, RMSE between scans and spread of the probabilities p (n,) of the tuning scans."""
    if len(p) == 0 or not np.isfinite(p).all():
        return Score(math.nan, math.nan, math.nan, math.nan)
    if tune.time is not None:
        metric = _or_nan(metrics.c_index, tune.time, tune.event, p)
    else:
        known = tune.labels != ""
        metric = _or_nan(metrics.auc, tune.labels[known].astype(int), p[known])
    return Score(metric, _or_nan(metrics.inconsistency, p, tune.specimens), _rmse(p, tune.specimens), float(p.std()))


def trained(value: Score, train_loss: float, n_classes: int) -> str:
    """Return `ok`, or why a checkpoint is no model: `not_trained`, `collapsed`.

    Args:
        value: its score.
        train_loss: mean weighted cross-entropy over the steps since the checkpoint before.
        n_classes: a constant guess has the loss ln(n_classes), as the weights balance the classes.
    """
    if not train_loss <= UNTRAINED_LOSS * math.log(n_classes):
        return "not_trained"
    if value.spread < COLLAPSED_SPREAD:
        return "collapsed"
    return "ok"


def merit(value: Score, rule: str, step: int) -> float:
    """Return what the rule maximises; -inf where it has no value.

    `normalised`: metric - inconsistency (SD between the scans of a specimen / SD over all scans), which shrinking
    scores do not improve. `reference`: metric - RMSE between the scans, the rule of the group's public code, which
    they do improve. `metric`: the metric alone. `last`: the later the better. A specimen set without two scans
    counts the metric alone.
    """
    if rule == "last":
        return float(step)
    penalty = {"normalised": value.inconsistency, "reference": value.rmse, "metric": 0.0}[rule]
    if math.isnan(value.metric):
        return -math.inf
    return value.metric - (0.0 if math.isnan(penalty) else penalty)


def _or_nan(function, *args) -> float:
    try:
        return function(*args)
    except metrics.Undefined:
        return math.nan


def _rmse(p: np.ndarray, specimens: np.ndarray) -> float:
    squares = [
        (p[i] - p[j]) ** 2
        for specimen in np.unique(specimens)
        for i, j in combinations(np.flatnonzero(specimens == specimen), 2)
    ]
    return math.sqrt(np.mean(squares)) if squares else math.nan
