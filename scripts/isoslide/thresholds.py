"""Where a model's decision is cut, chosen on its tuning scans: by Youden's J, or at the tuning patients' median risk.

A score of 0.5 is not the same decision for two models that are calibrated differently, and a risk has no natural zero.
So each model (fold, seed) gets a threshold of its own from the scans that its checkpoint was chosen on, and keeps it on
its test scans: nothing of the test set enters. Tuning scans of all scanners count alike: a model has one threshold for
all scanners, as it would have in use.

Youden's J counts sensitivity and specificity the same, as balanced accuracy does: it needs no assumption about costs,
and does not move with the share of positives. A task with costs of its own needs another rule. The median makes two
groups of equal size, the usual way to draw survival curves where no cut-off is given.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from isoslide.metrics import Undefined

RULES = {"binary": "youden", "survival": "median_risk"}
"""The rule of each type of task that has two decisions or two groups."""

COLUMNS = ["arm", "fold", "seed", "rule", "threshold", "youden_j", "n", "reason"]


def youden(y: ArrayLike, p: ArrayLike) -> tuple[float, float]:
    """Return the threshold of the decision p >= threshold with the largest J, and J.

    J = sensitivity + specificity - 1 (Youden 1950). The threshold lies in the middle between two neighbouring scores;
    of equally good ones the one nearest to 0.5 is taken, then the lower. Undefined with one class, with scores that are
    all equal, or with scores that are not finite.
    """
    y, p = np.asarray(y).astype(bool), _finite(p)
    if y.all() or not y.any():
        raise Undefined("tuning scans of one class")
    values = np.unique(p)
    if values.size < 2:
        raise Undefined("all tuning scores are equal")
    cuts = (values[1:] + values[:-1]) / 2
    positives, negatives = np.sort(p[y]), np.sort(p[~y])
    missed = np.searchsorted(positives, cuts) / positives.size
    cleared = np.searchsorted(negatives, cuts) / negatives.size
    j = cleared - missed
    best = cuts[j >= j.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5).round(12))]), float(j.max())


def median_risk(patient: ArrayLike, p: ArrayLike) -> float:
    """Return the median over patients of their mean score over scans. Undefined with scores that are not finite."""
    return float(pd.Series(_finite(p)).groupby(np.asarray(patient)).mean().median())


def choose(tuning: Mapping[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    """Return a row (columns: `COLUMNS`) for each model with tuning scans; an empty table for other types of task.

    Args:
        tuning: predictions of the role `tune` of each arm.
        kind: type of the task.
    """
    rows = []
    for arm, frame in tuning.items() if kind in RULES else ():
        for (fold, seed), scans in frame.groupby(["fold", "seed"], sort=True):
            cut, j, reason = np.nan, np.nan, ""
            try:
                if kind == "survival":
                    cut = median_risk(scans["patient"], scans["p"])
                else:
                    cut, j = youden(scans["label"], scans["p"])
            except Undefined as undefined:
                reason = undefined.reason
            rows.append([arm, fold, seed, RULES[kind], cut, j, scans["patient"].nunique(), reason])
    return pd.DataFrame(rows, columns=COLUMNS)


def by_model(table: pd.DataFrame, arm: str) -> Mapping[tuple[int, int], tuple[float, str]]:
    """Return (threshold, reason if there is none) of an arm's models, keyed by (seed, fold)."""
    rows = table[table["arm"] == arm]
    return {
        (row.seed, row.fold): (row.threshold, row.reason)
        for row in rows[["seed", "fold", "threshold", "reason"]].itertuples()
    }


def attach(frame: pd.DataFrame, table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return an arm's predictions with the column `threshold` of their models; NaN where a model has none."""
    own = table.loc[table["arm"] == arm, ["fold", "seed", "threshold"]]
    own = own.astype({"fold": int, "seed": int, "threshold": float})  # a table without rows has no types
    return frame.merge(own, on=["fold", "seed"], how="left")


def _finite(p: ArrayLike) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if not np.isfinite(p).all():
        raise Undefined("non-finite tuning scores")
    return p
