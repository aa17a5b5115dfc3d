"""Accuracy of multiclass and regression predictions; as in `metrics.py`, plain functions that raise `Undefined`.

Probabilities of a multiclass task are arrays (n, C), classes y (n,) integers from 0 to C - 1. Where a metric of two
classes is averaged over classes, each class is set against all others and every class counts the same (macro average):
a rare class weighs as much as a common one.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from isoslide import metrics
from isoslide.metrics import Undefined

Floats = NDArray[np.float64]


def over_columns(metric: Callable[..., float], scores: ArrayLike, *rest: ArrayLike) -> float:
    """Return the mean of a metric over the columns of `scores` (n, C), with the same other arguments for each."""
    return float(np.mean([metric(column, *rest) for column in np.asarray(scores).T]))


def macro_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Mean over classes of the AUC of each class against all others.

    Range 0 to 1, higher is better, 0.5 = chance. Undefined where a class has no scan. Source: Provost & Domingos 2001,
    with equal weights (as scikit-learn's `roc_auc_score` with multi_class="ovr" and average="macro").
    """
    return _macro(metrics.auc, y, p)


def macro_average_precision(y: ArrayLike, p: ArrayLike) -> float:
    """Mean over classes of the average precision of each class against all others.

    Range 0 to 1, higher is better; a guess has 1 / C on balanced classes. Undefined where a class has no scan.
    """
    return _macro(metrics.average_precision, y, p)


def class_balanced_accuracy(y: ArrayLike, p: ArrayLike) -> float:
    """Mean over classes of the share of their scans whose largest probability is that of the class (of equal ones the
    first).

    Range 0 to 1, higher is better, 1 / C = chance. Undefined where a class has no scan.
    """
    y, p = _classes(y, p)
    called = p.argmax(1)
    return float(np.mean([(called[y == one] == one).mean() for one in range(p.shape[1])]))


def multiclass_brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean over scans of the sum over classes of (p_c - y_c)², y_c = 1 for the scan's class and 0 for others.

    Range 0 to 2, lower is better; equal probabilities give 1 - 1 / C. For two classes it is twice `metrics.brier`.
    Source: Brier 1950, the original definition.
    """
    y, p = _scores(y, p)
    return float(np.mean(np.sum((p - np.eye(p.shape[1])[y]) ** 2, axis=1)))


def class_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Share of specimens whose two scans have the same predicted class, (n,) against (n,).

    Range 0 to 1, higher is better, but a model that puts everyone in one class has 1: read it with `class_kappa`.
    """
    a, b = _pair(a, b)
    return float(np.mean(a == b))


def class_kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Cohen's kappa of the two scans' predicted classes: agreement beyond what the class frequencies give by chance.

    Formula: (po - pe) / (1 - pe), pe = sum over classes of the product of the two frequencies; no weights for near
    misses, as classes have no order. Range -1 to 1, higher is better, 0 = chance. Undefined when both scans put every
    specimen in the same one class. Source: Cohen 1960.
    """
    a, b = _pair(a, b)
    expected = sum((a == one).mean() * (b == one).mean() for one in np.unique([a, b]))
    if expected >= 1 - 1e-12:
        raise Undefined("all decisions are the same")
    return float((np.mean(a == b) - expected) / (1 - expected))


def r2(y: ArrayLike, p: ArrayLike) -> float:
    """Coefficient of determination: 1 - Σ (y - p)² / Σ (y - mean y)².

    Range up to 1, higher is better; 0 = no better than the mean of these scans, below 0 = worse. Unlike a correlation
    it counts a prediction that is shifted or stretched, as a scanner may do, as wrong. Undefined where all values are
    equal.
    """
    y, p = _values(y, p)
    return float(1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))


def mae(y: ArrayLike, p: ArrayLike) -> float:
    """Mean absolute error |y - p|, in the unit of the label; lower is better."""
    y, p = _values(y, p, 0)
    return float(np.mean(np.abs(y - p)))


def prediction_rmse(y: ArrayLike, p: ArrayLike) -> float:
    """Root mean squared error of the predictions, in the unit of the label; lower is better."""
    y, p = _values(y, p, 0)
    return float(np.sqrt(np.mean((y - p) ** 2)))


def pearson(y: ArrayLike, p: ArrayLike) -> float:
    """Pearson's correlation of value and prediction.

    Range -1 to 1, higher is better, not changed by shifting or stretching the predictions. Undefined where either is
    constant.
    """
    y, p = _values(y, p)
    if np.ptp(p) <= 1e-12 * max(1.0, float(np.abs(p).max())):
        raise Undefined("all scores are equal")
    return float(np.corrcoef(y, p)[0, 1])


def spearman(y: ArrayLike, p: ArrayLike) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank. Range as `pearson`."""
    y, p = _values(y, p)
    return pearson(stats.rankdata(y), stats.rankdata(p))


def _macro(metric: Callable[[NDArray[np.bool_], Floats], float], y: ArrayLike, p: ArrayLike) -> float:
    y, p = _classes(y, p)
    return float(np.mean([metric(y == one, p[:, one]) for one in range(p.shape[1])]))


def _scores(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    y, p = np.asarray(y), np.asarray(p, dtype=float)
    if not y.size:
        raise Undefined("no scans")
    if not np.isfinite(p).all():
        raise Undefined("non-finite scores")
    return y.astype(int), p


def _classes(y: ArrayLike, p: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    y, p = _scores(y, p)
    missing = sorted(set(range(p.shape[1])) - set(y.tolist()))
    if missing:
        raise Undefined(f"no scan of class {missing[0]}")
    return y, p


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray, NDArray]:
    a, b = np.asarray(a), np.asarray(b)
    if not a.size:
        raise Undefined(metrics.NO_PAIRS)
    return a, b


def _values(y: ArrayLike, p: ArrayLike, least: float = 1e-12) -> tuple[Floats, Floats]:
    """Return both as floats; undefined where the labels spread less than `least`."""
    y, p = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    if not y.size:
        raise Undefined("no scans")
    if not np.isfinite(p).all():
        raise Undefined("non-finite scores")
    if least and np.ptp(y) <= least * max(1.0, float(np.abs(y).max())):
        raise Undefined("all values are equal")
    return y, p
