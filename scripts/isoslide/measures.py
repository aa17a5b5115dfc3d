"""The list of metrics: how each is computed, from what, which direction is better, and how the report names it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from isoslide import metrics, survival, task_metrics, task_weighted, weighted


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, from what, and how the report names it.

    Attributes:
        takes: `labels` (y or time and event, with scores), `censored` (the same with G(t-)), `scores`, `specimens`,
            `pairs`, `matrix` or `decisions` (the predicted classes of two scans). Those that take scores only are
            the mean over classes in a multiclass task.
        better: +1 where higher is better, -1 where lower is, 0 where neither.
        tasks: the types of task it is for; empty = any.
        threshold: whether it takes the threshold of the decision.
        tuned: whether that threshold is each model's own, chosen on its tuning scans (`thresholds.py`).
        bounds: least and greatest possible value.
    """

    name: str
    title: str
    plain: Callable[..., float]
    weighted: Callable[..., weighted.Estimate]
    takes: str
    better: int
    tasks: tuple[str, ...] = ()
    threshold: bool = False
    tuned: bool = False
    bounds: tuple[float, float] = (0, 1)


DECIDED = ("binary", "survival")
"""Types of task with a threshold between two decisions."""

_LISTED = (
    Metric("auc", "AUC", metrics.auc, weighted.auc, "labels", 1, ("binary",)),
    Metric("c_index", "c-index", metrics.c_index, weighted.c_index, "labels", 1, ("survival",)),
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        metrics.balanced_accuracy,
        weighted.balanced_accuracy,
        "labels",
        1,
        ("binary",),
        threshold=True,
    ),
    Metric(
        "average_precision",
        "average precision",
        metrics.average_precision,
        weighted.average_precision,
        "labels",
        1,
        ("binary",),
    ),
    Metric("uno_c", "c-index (Uno)", survival.uno_c, weighted.uno_c, "censored", 1, ("survival",)),
    Metric(
        "log_hazard_ratio",
        "log hazard ratio, high risk",
        survival.log_hazard_ratio,
        weighted.log_hazard_ratio,
        "labels",
        1,
        ("survival",),
        threshold=True,
        bounds=(-np.inf, np.inf),
    ),
    Metric(
        "rank_log_hazard_ratio",
        "log hazard ratio, lowest to highest rank",
        survival.rank_log_hazard_ratio,
        weighted.rank_log_hazard_ratio,
        "labels",
        1,
        ("survival",),
        bounds=(-np.inf, np.inf),
    ),
    Metric(
        "calibration_error",
        "calibration error",
        metrics.calibration_error,
        weighted.calibration_error,
        "labels",
        -1,
        ("binary",),
    ),
    Metric("brier", "Brier score", metrics.brier, weighted.brier, "labels", -1, ("binary",)),
    *(
        Metric(
            name, title, getattr(task_metrics, name), getattr(task_weighted, name), "labels", better, tasks, bounds=b
        )
        for name, title, better, tasks, b in (
            ("macro_auc", "AUC, mean over classes", 1, ("multiclass",), (0, 1)),
            ("class_balanced_accuracy", "balanced accuracy", 1, ("multiclass",), (0, 1)),
            ("macro_average_precision", "average precision, mean over classes", 1, ("multiclass",), (0, 1)),
            ("multiclass_brier", "Brier score, sum over classes", -1, ("multiclass",), (0, 2)),
            ("r2", "R²", 1, ("regression",), (-np.inf, 1)),
            ("spearman", "Spearman’s correlation", 1, ("regression",), (-1, 1)),
            ("pearson", "Pearson’s correlation", 1, ("regression",), (-1, 1)),
            ("mae", "mean absolute error", -1, ("regression",), (0, np.inf)),
            ("prediction_rmse", "RMSE of the prediction", -1, ("regression",), (0, np.inf)),
        )
    ),
    Metric(
        "inconsistency",
        "inconsistency",
        metrics.inconsistency,
        weighted.inconsistency,
        "specimens",
        -1,
        bounds=(0, np.inf),
    ),
    Metric("icc", "ICC(2,1)", metrics.icc21, weighted.icc21, "matrix", 1, bounds=(-np.inf, 1)),
    Metric("ccc", "concordance (Lin)", metrics.lin_ccc, weighted.lin_ccc, "pairs", 1, bounds=(-1, 1)),
    Metric("agreement", "class agreement", metrics.agreement, weighted.agreement, "pairs", 1, DECIDED, threshold=True),
    Metric("kappa", "kappa", metrics.kappa, weighted.kappa, "pairs", 1, DECIDED, threshold=True, bounds=(-1, 1)),
    Metric(
        "class_agreement",
        "class agreement",
        task_metrics.class_agreement,
        task_weighted.class_agreement,
        "decisions",
        1,
        ("multiclass",),
    ),
    Metric(
        "class_kappa",
        "kappa",
        task_metrics.class_kappa,
        task_weighted.class_kappa,
        "decisions",
        1,
        ("multiclass",),
        bounds=(-1, 1),
    ),
    Metric("rmse", "RMSE", metrics.rmse, weighted.rmse, "pairs", -1, bounds=(0, np.inf)),
    Metric(
        "scaled_difference",
        "mean difference / SD",
        metrics.scaled_difference,
        weighted.scaled_difference,
        "pairs",
        -1,
        bounds=(0, np.inf),
    ),
    Metric("spread", "SD of scores", metrics.spread, weighted.spread, "scores", 0, bounds=(0, np.inf)),
)

TUNED = "_tuned"
"""Ending of the names of metrics whose threshold is each model's own."""


def _with_tuned(metric: Metric) -> tuple[Metric, ...]:
    """Return a metric and, where it takes a threshold, its twin at the tuned one."""
    if not metric.threshold:
        return (metric,)
    title = f"{metric.title}, tuned threshold"
    return metric, replace(metric, name=metric.name + TUNED, title=title, tuned=True)


METRICS = tuple(metric for listed in _LISTED for metric in _with_tuned(listed))

BY_NAME = {metric.name: metric for metric in METRICS}

ONE_CLASS = ("auc", "average_precision", "inconsistency")
"""Metrics of each class of a multiclass task, against all others."""

MAIN = {"binary": "auc", "multiclass": "macro_auc", "regression": "r2", "survival": "c_index"}
"""The accuracy that arms are compared by, by type of task."""

CHANCE = {"auc": 0.5, "macro_auc": 0.5, "c_index": 0.5, "uno_c": 0.5, "brier": 0.25, "r2": 0.0, "spearman": 0.0}
"""What a guess has."""
