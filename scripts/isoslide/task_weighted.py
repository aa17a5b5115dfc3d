"""The metrics of `task_metrics.py` under patient weights, all resamples at once; as in `weighted.py`.

Every function takes weights (resamples, n) and returns the value of each resample and its weight in an average over
folds. A resample in which a class has no scan has no macro average.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isoslide import weighted
from isoslide.weighted import Estimate, Floats, mean_of, ratio, with_weight


def over_cases(estimates: list[Estimate]) -> Estimate:
    """Return the mean of several estimates (of classes): mean of the values and of the weights."""
    values, weights = (np.array(arrays).mean(0) for arrays in zip(*estimates, strict=True))
    return with_weight(values, weights)


def macro_auc(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Mean over classes of the AUC against all others; weight = mean number of pairs."""
    return _macro(weighted.auc, y, p, weights)


def macro_average_precision(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Mean over classes of the average precision; weight = mean number of positives."""
    return _macro(weighted.average_precision, y, p, weights)


def class_balanced_accuracy(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Mean over classes of the share of scans predicted as theirs; weight = scans."""
    right = p.argmax(1) == y
    shares = [ratio(weights @ (right & (y == one)), weights @ (y == one)) for one in range(p.shape[1])]
    return with_weight(np.mean(shares, axis=0), weights.sum(1))


def multiclass_brier(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Brier score summed over classes; weight = scans."""
    return mean_of(np.sum((p - np.eye(p.shape[1])[y.astype(int)]) ** 2, axis=1), weights)


def class_agreement(a: NDArray, b: NDArray, weights: Floats) -> Estimate:
    """Share of specimens with one predicted class; weight = specimens."""
    return mean_of(a == b, weights)


def class_kappa(a: NDArray, b: NDArray, weights: Floats) -> Estimate:
    """Cohen's kappa of the predicted classes; weight = specimens."""
    observed, drawn = mean_of(a == b, weights)
    shares = [(mean_of(a == one, weights)[0], mean_of(b == one, weights)[0]) for one in np.unique([a, b])]
    expected = sum(first * second for first, second in shares)
    return with_weight(ratio(observed - expected, np.where(expected > 1 - 1e-12, 0, 1 - expected)), drawn)


def r2(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Coefficient of determination; weight = scans."""
    drawn = weights.sum(1)
    error, spread = mean_of((y - p) ** 2, weights)[0], _covariance(y, y, weights)
    return with_weight(1 - ratio(error, np.where(_vanishes(spread, y), 0, spread)), drawn)


def mae(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Mean absolute error; weight = scans."""
    return mean_of(np.abs(y - p), weights)


def prediction_rmse(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Root mean squared error of the predictions; weight = scans."""
    mean, drawn = mean_of((y - p) ** 2, weights)
    return np.sqrt(mean), drawn


def pearson(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Pearson's correlation; weight = scans."""
    variances = [_covariance(x, x, weights) for x in (y, p)]
    dead = _vanishes(variances[0], y) | _vanishes(variances[1], p)
    scale = np.where(dead, 0, np.sqrt(variances[0] * variances[1]))
    return with_weight(ratio(_covariance(y, p, weights), scale), weights.sum(1))


def spearman(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Spearman's correlation, of the ranks within each resample; weight = scans."""
    drawn = weights.sum(1)
    first, second = (_ranks(x, weights) for x in (y, p))
    middle = (drawn[:, None] + 1) / 2
    first, second = (np.where(weights > 0, ranks - middle, 0) for ranks in (first, second))
    variances = [np.sum(weights * ranks**2, axis=1) for ranks in (first, second)]
    scale = np.sqrt(variances[0] * variances[1])
    return with_weight(ratio(np.sum(weights * first * second, axis=1), np.where(scale <= 1e-9, 0, scale)), drawn)


def _macro(metric: Callable[[Floats, Floats, Floats], Estimate], y: Floats, p: Floats, weights: Floats) -> Estimate:
    return over_cases([metric((y == one).astype(float), p[:, one], weights) for one in range(p.shape[1])])


def _covariance(x: Floats, y: Floats, weights: Floats) -> Floats:
    x, y = x - x.mean(), y - y.mean()
    return mean_of(x * y, weights)[0] - mean_of(x, weights)[0] * mean_of(y, weights)[0]


def _vanishes(variance: Floats, x: Floats) -> NDArray[np.bool_]:
    return variance <= 1e-15 * (float(np.abs(x - x.mean()).max()) or 1.0) ** 2


def _ranks(x: Floats, weights: Floats) -> Floats:
    """Return the rank (resamples, n) of each value among those drawn; equal values share their mean rank."""
    _, group = np.unique(x, return_inverse=True)
    sums = weights @ np.eye(group.max() + 1)[group]
    below = np.cumsum(sums, axis=1) - sums
    return (below + (sums + 1) / 2)[:, group]
