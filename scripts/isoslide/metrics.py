"""What is measured: accuracy of the predictions, and agreement between the scans of one specimen.

Plain functions of numpy arrays. Where a number does not exist (one class, no events, one scanner) they raise
`Undefined` with the reason, which the evaluation writes into its table in place of the value.

`p` is the predicted probability of the positive (or poor) class in [0, 1]; a *score* is any finite number that is
higher for the positive class or the worse outcome.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

RISK_TIE = 1e-8
"""Two risks closer than this are one risk to the c-index: float32 models differ in the last bits between machines."""

NO_PAIRS = "no specimen has both scans"

CALIBRATION_BINS = 5
"""Bins of the calibration error; few, because it is computed within a model's test fold."""


class Undefined(ValueError):
    """A metric has no value for these data; `reason` says why in words fit for a report."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def auc(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative.

    Formula: share of (positive, negative) pairs with score⁺ > score⁻, equal scores counting one half
    (Mann-Whitney U / n⁺n⁻; Hanley & McNeil 1982). Range 0 to 1, higher is better, 0.5 = chance.
    Undefined with one class.
    """
    y, score = _labels(y), _finite(score)
    positives = int(y.sum())
    negatives = y.size - positives
    if not positives or not negatives:
        raise Undefined("only one class")
    ranks = stats.rankdata(score)
    return float((ranks[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def c_index(time: ArrayLike, event: ArrayLike, risk: ArrayLike, tie: float = RISK_TIE) -> float:
    """Harrell's concordance: how often the patient who has the event first has the higher risk.

    Formula: over comparable pairs (i, j), the mean of 1 if risk_i > risk_j, 1/2 if |risk_i - risk_j| <= `tie`, else 0.
    (i, j) is comparable when i has the event and either time_i < time_j, or time_i = time_j and j is censored: a
    patient censored at time t was still free of the event at t. Two events at one time are not comparable.
    Range 0 to 1, higher is better, 0.5 = chance. Undefined without comparable pairs (no events).
    Source: Harrell et al. 1996; this treatment of ties is also that of lifelines and scikit-survival.
    """
    time, event, risk = _finite(time), _labels(event), _finite(risk)
    concordant = comparable = 0.0
    for rows in np.array_split(np.flatnonzero(event), max(1, event.sum() * event.size // 10_000_000)):
        pairs, wins = concordance(time, event, risk, rows, tie)
        concordant += float(wins.sum())
        comparable += float(pairs.sum())
    if not comparable:
        raise Undefined("no events" if not event.any() else "no comparable pairs")
    return concordant / comparable


def concordance(
    time: Floats, event: NDArray[np.bool_], risk: Floats, rows: NDArray[np.int64], tie: float = RISK_TIE
) -> tuple[Floats, Floats]:
    """Return for patients `rows` against all: is the pair comparable, and its concordance (both (len(rows), n))."""
    earlier = time[rows, None] < time[None, :]
    tied = (time[rows, None] == time[None, :]) & ~event[None, :]
    pairs = ((earlier | tied) & event[rows, None]).astype(float)
    difference = risk[rows, None] - risk[None, :]
    return pairs, pairs * np.where(np.abs(difference) <= tie, 0.5, difference > 0)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of the probability from the outcome: mean (p - y)².

    Range 0 to 1, lower is better; always saying 0.5 gives 0.25. Undefined without scans. Source: Brier 1950.
    """
    y, p = _labels(y), _finite(p)
    return float(np.mean((p - y) ** 2))


def average_precision(y: ArrayLike, score: ArrayLike) -> float:
    """Average precision: the mean over positives of the precision at their score.

    Formula: sum over distinct scores, from the highest, of the gain in recall times the precision there (no
    interpolation). Range 0 to 1, higher is better; a guess has the share of positives, so read it with that share.
    Undefined with one class. Source: as in scikit-learn's `average_precision_score`.
    """
    y, score = _labels(y), _finite(score)
    if y.all() or not y.any():
        raise Undefined("only one class")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found, called = np.cumsum(y[order])[last], last + 1
    return float(np.sum(np.diff(found, prepend=0) * found / called) / y.sum())


def calibration_error(y: ArrayLike, p: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: how far the probabilities lie from the outcomes, bin by bin.

    Formula: sum over bins of |sum of (p - y)| / n, with `bins` bins of equal mass (see `equal_mass_bins`). Range 0 to
    1, lower is better. Small samples raise it: with 10 scans a bin a perfect model still has about 0.1. Undefined
    without scans. Source: Naeini et al. 2015; equal mass: Nixon et al. 2019.
    """
    y, p = _labels(y), _finite(p)
    sums = np.bincount(equal_mass_bins(p, bins), p - y)
    return float(np.abs(sums).sum() / y.size)


def equal_mass_bins(p: ArrayLike, bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """Return the bin of each probability, 0 to `bins` - 1: equal numbers in each, equal probabilities never apart."""
    p = np.asarray(p, dtype=float)
    return ((stats.rankdata(p, method="min") - 1) * min(bins, p.size) // p.size).astype(np.int64)


def balanced_accuracy(y: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> float:
    """Mean of sensitivity and specificity of the decision p >= `threshold`.

    Range 0 to 1, higher is better, 0.5 = chance. Undefined with one class. Source: Brodersen et al. 2010.
    """
    y, called = _labels(y), _finite(p) >= threshold
    if y.all() or not y.any():
        raise Undefined("only one class")
    return float((called[y].mean() + (~called[~y]).mean()) / 2)


def spread(scores: ArrayLike) -> float:
    """Standard deviation (1/n) of the scores over all scans.

    Range 0 upwards (at most 0.5 for probabilities), no direction: a model that says the same of everyone has spread
    0, agrees with itself perfectly and is worthless, so no robustness figure stands without it.
    """
    return float(_finite(scores).std())


def inconsistency(scores: ArrayLike, specimens: ArrayLike) -> float:
    """How far the scans of one specimen lie apart, on the scale of the differences between all scans.

    Formula: mean over specimens of the SD (1/n) over the specimen's scans, divided by the SD (1/n) over all scans.
    Specimens with a single scan enter the denominator only. Range 0 upwards, lower is better; 0 = every specimen
    has one score whatever the scanner, about 1 = the scanner matters as much as the specimen. Not changed by
    shifting or scaling the scores. Undefined when no specimen has two scans, or when all scores are equal.
    Source: Henriksen et al. 2026 (arXiv 2602.22347), as in the public code of the authors' group.
    """
    scores = _finite(scores)
    _, index = np.unique(np.asarray(specimens), return_inverse=True)
    counts = np.bincount(index)
    if not (counts > 1).any():
        raise Undefined("no specimen has two scans")
    overall = scores.std()
    if _vanishes(overall, scores):
        raise Undefined("all scores are equal")
    centred = scores - (np.bincount(index, scores) / counts)[index]
    within = np.sqrt(np.bincount(index, centred**2) / counts)
    return float(within[counts > 1].mean() / overall)


def rmse(a: ArrayLike, b: ArrayLike) -> float:
    """Root mean squared difference of the two scans' scores of each specimen, (n,) against (n,).

    Range 0 upwards, lower is better, but it falls whenever all scores shrink: read it with `spread` and
    `inconsistency`. Undefined without pairs.
    """
    a, b = _pair(a, b)
    return float(np.sqrt(np.mean((a - b) ** 2)))


def scaled_difference(a: ArrayLike, b: ArrayLike) -> float:
    """Mean absolute difference between the two scans of each specimen, in SDs (1/n) of all 2n scores.

    Range 0 upwards, lower is better, not changed by shifting or scaling. Undefined when all scores are equal.
    """
    a, b = _pair(a, b)
    both = np.concatenate([a, b])
    if _vanishes(both.std(), both):
        raise Undefined("all scores are equal")
    return float(np.mean(np.abs(a - b)) / both.std())


def agreement(a: ArrayLike, b: ArrayLike, threshold: float = 0.5) -> float:
    """Share of specimens whose two scans fall on the same side of the threshold (score >= `threshold`).

    Range 0 to 1, higher is better, but a model that puts everyone in one class has 1: read it with `kappa`.
    Undefined without pairs.
    """
    a, b = _pair(a, b)
    return float(np.mean((a >= threshold) == (b >= threshold)))


def kappa(a: ArrayLike, b: ArrayLike, threshold: float = 0.5) -> float:
    """Cohen's kappa of the two scans' decisions: agreement beyond what their class frequencies give by chance.

    Formula: (po - pe) / (1 - pe). Range -1 to 1, higher is better, 0 = chance. Undefined when both scans put every
    specimen in the same one class. Source: Cohen 1960.
    """
    a, b = _pair(a, b)
    first, second = a >= threshold, b >= threshold
    expected = first.mean() * second.mean() + (~first).mean() * (~second).mean()
    if expected >= 1:
        raise Undefined("all decisions are the same")
    return float((np.mean(first == second) - expected) / (1 - expected))


def lin_ccc(a: ArrayLike, b: ArrayLike) -> float:
    """Lin's concordance correlation: how close the points (a, b) lie to the line a = b.

    Formula: 2 cov(a, b) / (var a + var b + (mean a - mean b)²), all with 1/n. Range -1 to 1, higher is better.
    Undefined when all scores are equal. Source: Lin 1989.
    """
    a, b = _pair(a, b)
    total = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if _vanishes(np.sqrt(total), np.concatenate([a, b])):
        raise Undefined("all scores are equal")
    return float(2 * np.mean((a - a.mean()) * (b - b.mean())) / total)


def icc21(scores: ArrayLike) -> float:
    """ICC(2,1): reliability of one scan's score, two-way random effects, absolute agreement.

    Formula: (MSR - MSE) / (MSR + (k - 1) MSE + k (MSC - MSE) / n) of the scores (n specimens, k scanners). Range at
    most 1 (may be negative), higher is better. Undefined with fewer than two specimens or scanners, or when all
    scores are equal. Source: Shrout & Fleiss 1979.
    """
    scores = np.asarray(scores, dtype=float)
    n, k = scores.shape
    if n < 2 or k < 2:
        raise Undefined("fewer than two specimens" if n < 2 else "fewer than two scanners")
    _finite(scores.ravel())
    rows, columns, mean = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True), scores.mean()
    msr = k * np.sum((rows - mean) ** 2) / (n - 1)
    msc = n * np.sum((columns - mean) ** 2) / (k - 1)
    mse = np.sum((scores - rows - columns + mean) ** 2) / ((n - 1) * (k - 1))
    total = msr + (k - 1) * mse + k * (msc - mse) / n
    if _vanishes(scores.std(), scores) or total <= 0:
        raise Undefined("all scores are equal" if _vanishes(scores.std(), scores) else "no variance")
    return float((msr - mse) / total)


def cramers_v(a: ArrayLike, b: ArrayLike) -> float:
    """Association of two categories, such as label and scanner.

    Formula: sqrt(χ² / (n (min(rows, columns) - 1))) without continuity correction. Range 0 (independent) to 1
    (one tells the other). Undefined when either has one value. Source: Cramér 1946.
    """
    _, first = np.unique(np.asarray(a).astype(str), return_inverse=True)
    _, second = np.unique(np.asarray(b).astype(str), return_inverse=True)
    table = np.zeros((first.max(initial=-1) + 1, second.max(initial=-1) + 1))
    np.add.at(table, (first, second), 1)
    if min(table.shape) < 2:
        raise Undefined("only one category")
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi2 = np.sum((table - expected) ** 2 / expected)
    return float(np.sqrt(chi2 / (table.sum() * (min(table.shape) - 1))))


def _finite(values: ArrayLike) -> Floats:
    values = np.asarray(values, dtype=float)
    if not values.size:
        raise Undefined("no scans")
    if not np.isfinite(values).all():
        raise Undefined("non-finite scores")
    return values


def _labels(values: ArrayLike) -> NDArray[np.bool_]:
    values = np.asarray(values)
    if not values.size:
        raise Undefined("no scans")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("Expected labels and events to be 0 or 1")
    return values.astype(bool)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"Expected paired scores of equal shape, but got {a.shape} and {b.shape}")
    if not a.size:
        raise Undefined(NO_PAIRS)
    return _finite(a), _finite(b)


def _vanishes(sd: float, scores: Floats) -> bool:
    """Say whether an SD is zero up to the rounding of the scores (0.1 + 0.2 - 0.3 is not a spread)."""
    return bool(sd <= 1e-12 * max(1.0, float(np.abs(scores).max())))
