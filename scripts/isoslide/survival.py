"""Metrics of survival that look beyond the order of risks: censoring, risk groups, survival curves.

Convention throughout: an event and a censoring at the same time happen in that order, so a patient censored at t was
still free of the event at t (as in `metrics.c_index`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def log_rank(time: ArrayLike, event: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """Return events of the high-risk group less those expected (O - E), and their variance V.

    (O - E)² / V is the log-rank statistic (chi-squared, one degree of freedom). Source: Mantel 1966, hypergeometric
    variance.
    """
    time, event, high = np.asarray(time, dtype=float), np.asarray(event, dtype=bool), np.asarray(high, dtype=bool)
    excess = variance = 0.0
    for t in np.unique(time[event]):
        at_risk, now = time >= t, (time == t) & event
        n, ours, died = at_risk.sum(), (at_risk & high).sum(), now.sum()
        excess += (now & high).sum() - died * ours / n
        if n > 1:
            variance += died * ours / n * (1 - ours / n) * (n - died) / (n - 1)
    return float(excess), float(variance)


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
        raise Undefined("no events" if not event.any() else "no event while both risk groups were followed")
    return excess / variance
