"""Metrics of survival that look beyond the order of risks: censoring, risk groups, survival curves.

Convention throughout: an event and a censoring at the same time happen in that order, so a patient censored at t was
still free of the event at t (as in `metrics.c_index`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from isoslide import metrics
from isoslide.metrics import RISK_TIE, Undefined

Floats = NDArray[np.float64]


def kaplan_meier(time: ArrayLike, event: ArrayLike) -> tuple[Floats, Floats]:
    """Return the times of the steps and the share still free of the event after each, starting at (0, 1).

    Formula: product over event times u <= t of (1 - events at u / patients with time >= u). Source: Kaplan & Meier
    1958. The last point is the largest time seen, so that a drawn curve ends where follow-up ends.
    """
    time, event = np.asarray(time, dtype=float), np.asarray(event, dtype=bool)
    if not time.size:
        raise Undefined("no scans")
    steps = np.unique(time[event])
    at_risk = (time[None, :] >= steps[:, None]).sum(1)
    died = ((time[None, :] == steps[:, None]) & event[None, :]).sum(1)
    share = np.concatenate([[1.0], np.cumprod(1 - died / at_risk)])
    return np.concatenate([[0.0], steps, [time.max()]]), np.append(share, share[-1])


def uncensored(time: ArrayLike, event: ArrayLike, at: ArrayLike | None = None) -> Floats:
    """Return for each time in `at` (default: `time`) the probability of not being censored before it, G(t-).

    Formula: product over censoring times u < t of (1 - censored at u / (patients with time >= u, less those with the
    event at u)): the reverse Kaplan-Meier estimate, events first.
    """
    time, event = np.asarray(time, dtype=float), np.asarray(event, dtype=bool)
    at = time if at is None else np.asarray(at, dtype=float)
    steps = np.unique(time[~event])
    here = time[None, :] == steps[:, None]
    at_risk = (time[None, :] >= steps[:, None]).sum(1) - (here & event).sum(1)
    after = np.concatenate([[1.0], np.cumprod(1 - (here & ~event).sum(1) / at_risk)])
    return after[np.searchsorted(steps, at, side="left")]


def uno_c(time: ArrayLike, event: ArrayLike, risk: ArrayLike, free: ArrayLike | None = None) -> float:
    """Uno's concordance: Harrell's, with each comparable pair weighted by 1 / G(t-)² of its earlier event.

    Harrell's c-index leaves out pairs that censoring made incomparable and so depends on how patients were censored;
    the weights undo that where censoring does not depend on the risk. Pairs and ties as in `metrics.c_index`. Range 0
    to 1, higher is better, 0.5 = chance. Undefined without comparable pairs. Not truncated: late events after much
    censoring weigh much. Source: Uno et al. 2011.

    Args:
        time: (n,) time to event or censoring.
        event: (n,) 1 for an event, 0 for censored.
        risk: (n,) higher = worse.
        free: (n,) G(t-) of each patient's own time; by default estimated from these patients.
    """
    time, event, risk = np.asarray(time, dtype=float), np.asarray(event, dtype=bool), np.asarray(risk, dtype=float)
    metrics.c_index(time, event, risk)  # raises where there is none
    gain = 1 / (uncensored(time, event) if free is None else np.asarray(free, dtype=float)) ** 2
    wins = total = 0.0
    for row in np.flatnonzero(event):
        pairs, concordant = metrics.concordance(time, event, risk, np.array([row]), RISK_TIE)
        wins, total = wins + gain[row] * concordant.sum(), total + gain[row] * pairs.sum()
    return float(wins / total)


def log_rank(time: ArrayLike, event: ArrayLike, x: ArrayLike) -> tuple[float, float]:
    """Return the sum of x over events less what is expected (O - E), and its variance V.

    With x = 1 in the high-risk group and 0 in the other, (O - E)² / V is the log-rank statistic (chi-squared, one
    degree of freedom; Mantel 1966, hypergeometric variance). With any other x it is the score statistic of Cox's model.
    """
    time, event, x = np.asarray(time, dtype=float), np.asarray(event, dtype=bool), np.asarray(x, dtype=float)
    excess = variance = 0.0
    for t in np.unique(time[event]):
        at_risk, now = time >= t, (time == t) & event
        n, died = at_risk.sum(), now.sum()
        excess += x[now].sum() - died * x[at_risk].mean()
        if n > 1:
            variance += died * x[at_risk].var() * (n - died) / (n - 1)
    return float(excess), float(variance)


def log_rank_p(time: ArrayLike, event: ArrayLike, high: ArrayLike) -> float:
    """Return the p of the log-rank test of two groups.

    Undefined with one group, or without an event while both were followed.
    """
    event, high = np.asarray(event, dtype=bool), np.asarray(high, dtype=bool)
    if high.all() or not high.any():
        raise Undefined("only one risk group")
    excess, variance = log_rank(time, event, high)
    if variance <= 1e-12:
        raise Undefined(_no_variance(event))
    return float(stats.chi2.sf(excess**2 / variance, 1))


def log_hazard_ratio(time: ArrayLike, event: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> float:
    """Logarithm of the hazard ratio of the high-risk group (p >= `threshold`) against the others.

    Formula: (O - E) / V of the log-rank test (one-step estimate; Peto et al. 1977), which is finite even when all
    events fall into one group. Averaged over folds with weight V it is the estimate stratified by model. Higher is
    better (0 = the groups do not differ; exp of it is the ratio). Undefined with one group or without events.
    """
    time, event, p = np.asarray(time, dtype=float), np.asarray(event, dtype=bool), np.asarray(p, dtype=float)
    if not time.size:
        raise Undefined("no scans")
    if not np.isfinite(p).all():
        raise Undefined("non-finite scores")
    high = p >= threshold
    if high.all() or not high.any():
        raise Undefined("only one risk group")
    excess, variance = log_rank(time, event, high)
    if variance <= 1e-12:
        raise Undefined(_no_variance(event))
    return excess / variance


def rank_log_hazard_ratio(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> float:
    """Logarithm of the hazard ratio of the highest against the lowest rank of risk: no threshold, no scale of scores.

    Formula: (O - E) / V as in `log_hazard_ratio` with x = (rank - 1/2) / n in place of the group, equal scores sharing
    their mean rank: the one-step estimate of Cox's model, which is finite always and understates large effects.
    Averaged over folds with weight V. Higher is better, 0 = the risk says nothing. Undefined when all scores are equal,
    or without events.
    """
    time, event, risk = np.asarray(time, dtype=float), np.asarray(event, dtype=bool), np.asarray(risk, dtype=float)
    if not time.size:
        raise Undefined("no scans")
    if not np.isfinite(risk).all():
        raise Undefined("non-finite scores")
    if np.ptp(risk) == 0:
        raise Undefined("all scores are equal")
    excess, variance = log_rank(time, event, rank_shares(risk))
    if variance <= 1e-12:
        raise Undefined("no events" if not event.any() else "no event while scores differed")
    return excess / variance


def rank_shares(risk: ArrayLike) -> Floats:
    """Return (rank - 1/2) / n of each score, between 0 and 1; equal scores share their mean rank."""
    risk = np.asarray(risk, dtype=float)
    return (stats.rankdata(risk) - 0.5) / risk.size


def _no_variance(event: NDArray[np.bool_]) -> str:
    return "no events" if not event.any() else "no event while both risk groups were followed"
