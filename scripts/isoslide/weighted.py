"""The metrics of `metrics.py` under patient weights: one value per row of weights, all resamples at once.

A resample of the bootstrap is a row of integer weights (how often each patient was drawn), so a metric over 1,000
resamples is a few matrix products instead of 1,000 calls. Every function takes weights (resamples, n), where n
counts what the metric runs over (scans, or specimens with both scans), and returns two arrays (resamples,): the
value, NaN where the resample has none (one class drawn), and the weight this value has in an average over folds
(comparable pairs, scans or specimens; 0 where there is no value).

Definitions, ranges and sources are in `metrics.py`. With all weights 1 the values are those of the plain functions,
and weight 2 is the same as listing a patient twice. All scans of one patient must carry the same weight.
"""

import numpy as np
from numpy.typing import NDArray

from isoslide import metrics, survival

Floats = NDArray[np.float64]
Estimate = tuple[Floats, Floats]


def auc(y: Floats, score: Floats, weights: Floats) -> Estimate:
    """Area under the ROC curve by one sort for all resamples; weight = (positive, negative) pairs."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0)
    sorted_weights, positive = weights[:, order], y[order].astype(bool)
    positives = _by_group(sorted_weights * positive, starts)
    negatives = _by_group(sorted_weights * ~positive, starts)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(1) * negatives.sum(1)
    return ratio(np.sum(positives * (below + negatives / 2), axis=1), pairs), pairs


def average_precision(y: Floats, score: Floats, weights: Floats) -> Estimate:
    """Average precision by one sort for all resamples; weight = positives."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) != 0))
    sorted_weights, positive = weights[:, order], y[order].astype(bool)
    found = _by_group(sorted_weights * positive, starts)
    called = np.cumsum(_by_group(sorted_weights, starts), axis=1)
    reached = np.cumsum(found, axis=1)
    positives, all_scans = reached[:, -1], called[:, -1]
    hits = np.sum(found * _share(reached, called), axis=1)
    return with_weight(ratio(hits, np.where(positives < all_scans, positives, 0)), positives)


def calibration_error(y: Floats, p: Floats, weights: Floats, bins: int = metrics.CALIBRATION_BINS) -> Estimate:
    """Calibration error in the cohort's own bins (not drawn anew for each resample); weight = scans."""
    inside = np.eye(bins)[metrics.equal_mass_bins(p, bins)]
    drawn = weights.sum(1)
    return ratio(np.abs(weights @ ((p - y)[:, None] * inside)).sum(1), drawn), drawn


def log_hazard_ratio(time: Floats, event: Floats, p: Floats, weights: Floats, threshold: float = 0.5) -> Estimate:
    """One-step log hazard ratio of the risk groups; weight = variance of the log-rank test."""
    return _one_step(time, event, (p >= threshold).astype(float), weights)


def rank_log_hazard_ratio(time: Floats, event: Floats, risk: Floats, weights: Floats) -> Estimate:
    """One-step log hazard ratio along the cohort's own ranks (not drawn anew for each resample); weight = variance."""
    return _one_step(time, event, survival.rank_shares(risk), weights)


def _one_step(time: Floats, event: Floats, x: Floats, weights: Floats) -> Estimate:
    order = np.argsort(time, kind="stable")
    starts = np.flatnonzero(np.diff(time[order], prepend=-np.inf) > 0)
    sorted_weights, x, died = weights[:, order], x[order], event[order].astype(bool)

    def by_time(values: NDArray) -> Floats:
        return _by_group(sorted_weights * values, starts)

    def at_risk(values: NDArray) -> Floats:
        return np.cumsum(by_time(values)[:, ::-1], axis=1)[:, ::-1]

    n, events = at_risk(np.ones_like(x)), by_time(died)
    mean = _share(at_risk(x), n)
    spread = np.maximum(_share(at_risk(x**2), n) - mean**2, 0)
    excess = np.sum(by_time(died * x) - events * mean, axis=1)
    variance = np.sum(events * spread * _share(n - events, np.maximum(n - 1, 0)), axis=1)
    variance = np.where(variance > 1e-12, variance, 0)
    return ratio(excess, variance), variance


def uno_c(time: Floats, event: Floats, risk: Floats, free: Floats, weights: Floats) -> Estimate:
    """Uno's concordance with G(t-) `free` as it is in the cohort; weight = weighted comparable pairs."""
    return c_index(time, event, risk, weights, gain=1 / free**2)


def c_index(
    time: Floats,
    event: Floats,
    risk: Floats,
    weights: Floats,
    chunk: int = 2_000_000,
    gain: Floats | None = None,
) -> Estimate:
    """Harrell's concordance; weight = comparable pairs. Works on `chunk` pairs at a time (16 bytes each).

    `gain` (n,) weighs the pairs of each earlier event.
    """
    event = event.astype(bool)
    gain = np.ones(time.size) if gain is None else gain
    rows = np.flatnonzero(event)
    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for part in np.array_split(rows, max(1, rows.size * event.size // chunk)):
        comparable, concordant = metrics.concordance(time, event, risk, part)
        first = weights[:, part] * gain[part]
        pairs += np.einsum("rn,rn->r", first @ comparable, weights)
        wins += np.einsum("rn,rn->r", first @ concordant, weights)
    return ratio(wins, pairs), pairs


def brier(y: Floats, p: Floats, weights: Floats) -> Estimate:
    """Brier score; weight = scans."""
    return mean_of((p - y) ** 2, weights)


def balanced_accuracy(y: Floats, p: Floats, weights: Floats, threshold: float = 0.5) -> Estimate:
    """Mean of sensitivity and specificity; weight = scans."""
    positive, called = y.astype(bool), p >= threshold
    sensitivity = ratio(weights @ (called & positive), weights @ positive)
    specificity = ratio(weights @ (~called & ~positive), weights @ ~positive)
    return with_weight((sensitivity + specificity) / 2, weights.sum(1))


def spread(scores: Floats, weights: Floats) -> Estimate:
    """SD over all scans; weight = scans."""
    return _sd(scores, weights), weights.sum(1)


def inconsistency(scores: Floats, specimens: NDArray[np.int64], weights: Floats) -> Estimate:
    """Mean SD within specimens over the SD of all scans; weight = specimens with two or more scans."""
    _, first, index = np.unique(specimens, return_index=True, return_inverse=True)
    counts = np.bincount(index)
    centred = scores - (np.bincount(index, scores) / counts)[index]
    within = np.sqrt(np.bincount(index, centred**2) / counts)
    several = counts > 1
    mean, drawn = mean_of(within[several], weights[:, first[several]])
    overall = _sd(scores, weights)
    return with_weight(ratio(mean, np.where(_vanishes(overall, scores), 0, overall)), drawn)


def rmse(a: Floats, b: Floats, weights: Floats) -> Estimate:
    """Root mean squared difference; weight = specimens."""
    mean, drawn = mean_of((a - b) ** 2, weights)
    return np.sqrt(mean), drawn


def scaled_difference(a: Floats, b: Floats, weights: Floats) -> Estimate:
    """Mean absolute difference in SDs of both scans' scores; weight = specimens."""
    mean, drawn = mean_of(np.abs(a - b), weights)
    both = np.concatenate([a, b])
    sd = _sd(both, np.concatenate([weights, weights], axis=1))
    return with_weight(ratio(mean, np.where(_vanishes(sd, both), 0, sd)), drawn)


def agreement(a: Floats, b: Floats, weights: Floats, threshold: float = 0.5) -> Estimate:
    """Share of specimens with both scans on one side of the threshold; weight = specimens."""
    return mean_of((a >= threshold) == (b >= threshold), weights)


def kappa(a: Floats, b: Floats, weights: Floats, threshold: float = 0.5) -> Estimate:
    """Cohen's kappa of the two decisions; weight = specimens."""
    first, second = a >= threshold, b >= threshold
    observed, drawn = mean_of(first == second, weights)
    one, two = mean_of(first, weights)[0], mean_of(second, weights)[0]
    expected = one * two + (1 - one) * (1 - two)
    return with_weight(ratio(observed - expected, np.where(expected > 1 - 1e-12, 0, 1 - expected)), drawn)


def lin_ccc(a: Floats, b: Floats, weights: Floats) -> Estimate:
    """Lin's concordance correlation; weight = specimens."""
    middle = (a.mean() + b.mean()) / 2
    x, y = a - middle, b - middle
    (mx, drawn), (my, _) = mean_of(x, weights), mean_of(y, weights)
    covariance = mean_of(x * y, weights)[0] - mx * my
    # var a + var b + (mean a - mean b)² = mean (a - b)² + 2 cov(a, b)
    total = mean_of((x - y) ** 2, weights)[0] + 2 * covariance
    both = np.concatenate([a, b])
    return with_weight(ratio(2 * covariance, np.where(total <= (1e-12 * _scale(both)) ** 2, 0, total)), drawn)


def icc21(scores: Floats, weights: Floats) -> Estimate:
    """ICC(2,1) of scores (n specimens, k scanners); weight = specimens."""
    k = scores.shape[1]
    x = scores - scores.mean()
    drawn = weights.sum(1)
    columns = ratio((weights @ x).T, drawn).T
    mean = columns.mean(1)
    between = k * (weights @ x.mean(1) ** 2 - drawn * mean**2)
    scanners = drawn * np.sum((columns - mean[:, None]) ** 2, axis=1)
    rest = weights @ np.sum(x**2, axis=1) - drawn * k * mean**2 - between - scanners
    freedom = np.where(drawn > 1, drawn - 1, np.nan)
    msr, msc, mse = between / freedom, scanners / (k - 1), np.maximum(rest, 0) / (freedom * (k - 1))
    total = msr + (k - 1) * mse + k * ratio(msc - mse, drawn)
    return with_weight(ratio(msr - mse, np.where(total <= (1e-12 * _scale(scores)) ** 2, 0, total)), drawn)


def mean_of(values: NDArray, weights: Floats) -> Estimate:
    """Return the mean of the values in each resample; weight = how many were drawn."""
    drawn = weights.sum(1)
    return ratio(weights @ values.astype(float), drawn), drawn


def _sd(scores: Floats, weights: Floats) -> Floats:
    # Centred first: a mean of squares less a squared mean loses all digits when the mean is large.
    x = scores - scores.mean()
    mean, square = mean_of(x, weights)[0], mean_of(x**2, weights)[0]
    return np.sqrt(np.maximum(square - mean**2, 0))


def _vanishes(sd: Floats, scores: Floats) -> NDArray[np.bool_]:
    # Wider than in `metrics`: the square root of rounding (1e-16) in a weighted SD is 1e-8.
    return sd <= 3e-8 * _scale(scores - scores.mean())


def _scale(scores: Floats) -> float:
    return float(np.abs(scores).max(initial=0)) or 1.0


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return the ratio, NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    usable = np.not_equal(denominator, 0) & (np.asarray(denominator) == denominator)
    return np.divide(numerator, denominator, out=result, where=usable)


def _share(numerator: Floats, denominator: Floats) -> Floats:
    """Return the ratio, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0)


def _by_group(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Return sums over runs of columns; where every column is a run of its own there is nothing to add."""
    return values if starts.size == values.shape[1] else np.add.reduceat(values, starts, axis=1)


def with_weight(value: Floats, weight: Floats) -> Estimate:
    """Return both, the weight 0 where there is no value."""
    return value, np.where(np.isfinite(value), weight, 0)
