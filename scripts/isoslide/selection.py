"""Which checkpoint of a training run is kept, judged on the tuning scans only, by one rule for every arm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from isoslide import metrics, task_metrics

RULES = ("normalised", "reference", "metric", "last")
COLLAPSED_SPREAD = 0.02  # SD of the scores over the tuning scans below which they tell specimens apart no longer
UNTRAINED_LOSS = 0.9  # training loss of the task, as a share of a constant guess's, above which nothing was learned


@dataclass(frozen=True)
class Tuning:
    """The tuning scans of a fold, as columns of equal length."""

    scans: np.ndarray  # indices into the bags
    specimens: np.ndarray
    labels: np.ndarray  # class index or, in regression, standardised value; NaN where unknown
    time: np.ndarray  # NaN but in survival
    event: np.ndarray
    kind: str  # type of the task


@dataclass(frozen=True)
class Score:
    """How a checkpoint does on the tuning scans; NaN where a number does not exist."""

    metric: float  # AUC (mean over classes, each against the others), R² or c-index
    inconsistency: float
    rmse: float
    spread: float  # SD of the scores; all three: mean over classes in multiclass


def tuning(rows: pd.DataFrame, index: dict[str, int], kind: str, fitted: Mapping[str, Sequence[float]]) -> Tuning:
    """Return the tuning scans that have features.

    Args:
        rows: the rows of a fold with role `tune`.
        index: scan to its index in the bags.
        kind: type of the task.
        fitted: of a regression task `mean` and `sd` of the training specimens, see `tasks.Task.fit`.
    """
    rows = rows[rows["scan"].isin(index)]
    labels, time, event = (pd.to_numeric(rows[name]).to_numpy(dtype=float) for name in ("label", "time", "event"))
    if "mean" in fitted:
        labels = (labels - fitted["mean"][0]) / fitted["sd"][0]
    scans = np.array([index[scan] for scan in rows["scan"]], dtype=np.int64)
    return Tuning(scans, rows["specimen"].to_numpy(), labels, time, event, kind)


def score(tune: Tuning, scores: np.ndarray) -> Score:
    """Return metric, inconsistency, RMSE between scans and spread of the scores (n, S) of the tuning scans.

    S is 1, or the number of classes of a multiclass task; scores of a regression task are standardised as the labels.
    """
    if len(scores) == 0 or not np.isfinite(scores).all():
        return Score(math.nan, math.nan, math.nan, math.nan)
    scores = scores.reshape(len(scores), -1)
    return Score(
        metric=_or_nan(_METRICS[tune.kind], tune, scores),
        inconsistency=_or_nan(task_metrics.over_columns, metrics.inconsistency, scores, tune.specimens),
        rmse=_rmse(scores, tune.specimens),
        spread=task_metrics.over_columns(np.std, scores),
    )


def trained(value: Score, train_loss: float, guess_loss: float) -> str:
    """Return `ok`, or why a checkpoint is no model: `not_trained`, `collapsed`.

    Args:
        value: its score.
        train_loss: mean loss of the task over the steps since the checkpoint before.
        guess_loss: that of the best constant score on the same steps: ln(number of classes), as the weights balance
            them; about 1 in regression, where values are standardised.
    """
    if not train_loss <= UNTRAINED_LOSS * guess_loss:
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


def _auc(tune: Tuning, scores: np.ndarray) -> float:
    known = np.isfinite(tune.labels)
    return metrics.auc(tune.labels[known].astype(int), scores[known, 0])


def _macro_auc(tune: Tuning, scores: np.ndarray) -> float:
    return task_metrics.macro_auc(tune.labels, scores)


def _r2(tune: Tuning, scores: np.ndarray) -> float:
    return task_metrics.r2(tune.labels, scores[:, 0])


def _c_index(tune: Tuning, scores: np.ndarray) -> float:
    return metrics.c_index(tune.time, tune.event.astype(int), scores[:, 0])


_METRICS = {"binary": _auc, "multiclass": _macro_auc, "regression": _r2, "survival": _c_index}


def _rmse(scores: np.ndarray, specimens: np.ndarray) -> float:
    squares = [
        np.mean((scores[i] - scores[j]) ** 2)
        for specimen in np.unique(specimens)
        for i, j in combinations(np.flatnonzero(specimens == specimen), 2)
    ]
    return math.sqrt(np.mean(squares)) if squares else math.nan
