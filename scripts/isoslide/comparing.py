"""Is the difference of two arms more than chance: a permutation test over patients, DeLong's interval, Holm's steps.

The permutation test asks what the difference would be if the arm's name meant nothing: for a random half of the
patients, the two arms' predictions (of all scans, folds and seeds of the patient) change places, and the difference is
computed again. p = (1 + permutations with a difference at least as large, in size) / (1 + permutations). Like the
bootstrap it takes the trained models as they are.

For AUC and c-index it is ranks within a model that change places, not scores (Venkatraman & Begg 1996): an arm whose
scores are all higher, or all closer together, ranks patients as well as before, but beside scores of the other arm it
would rank them by arm. In simulated arms of equal AUC whose scores differed by such a shift or factor, the test on
scores said p < 0.05 in 0 to 1 % of 400 cohorts, and so hid real differences; on ranks in 4 %.

All permutations are computed at once. AUC and c-index are sums over pairs of patients, so a permutation is a product of
the patients' choices with four small matrices (which arm the one's and which the other's score comes from);
inconsistency and R² need sums over patients only. Of several classes each is taken by itself, and the mean of them.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from isoslide import metrics, task_metrics
from isoslide.estimates import class_columns
from isoslide.metrics import RISK_TIE, Undefined

Floats = np.ndarray
TESTED = {
    "binary": ("auc", "inconsistency"),
    "multiclass": ("macro_auc", "inconsistency"),
    "regression": ("r2", "inconsistency"),
    "survival": ("c_index", "inconsistency"),
}

SHARED = "test scans that both arms have"


def draw_swaps(patients: int, permutations: int, rng: np.random.Generator) -> Floats:
    """Return (1 + permutations, patients): 1 where a patient's arms change places; row 0 changes nothing."""
    swaps = rng.integers(0, 2, (1 + permutations, patients)).astype(float)
    swaps[0] = 0
    return swaps


def permuted_difference(
    ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, swaps: Floats, columns: Mapping[str, int]
) -> Floats:
    """Return arm minus control (1 + permutations,) of a metric, pooled over scanners; element 0 is the real one.

    Args:
        ours: predictions of the arm.
        theirs: predictions of the control; models (seed, fold) that only one of them has are left out.
        metric: one of `TESTED`.
        swaps: see `draw_swaps`.
        columns: the column of `swaps` of each patient.

    Raises:
        Undefined: if no model of both arms has a value.
    """
    seeds: dict[int, list[tuple[Floats, float]]] = {}
    complete = _complete(theirs)
    for (seed, _), rows in _common(ours, theirs):
        if metric == "inconsistency":
            rows = rows[rows["specimen"].isin(complete)]
        try:
            each = [FUNCTIONS[metric](one, swaps, columns) for one in _by_class(rows)]
        except Undefined:
            continue
        values, weights = zip(*each, strict=True)
        seeds.setdefault(seed, []).append((np.mean(values, axis=0), float(np.mean(weights))))
    if not seeds:
        raise Undefined("no model of both arms has a value")
    averages = [np.average([v for v, _ in folds], axis=0, weights=[w for _, w in folds]) for folds in seeds.values()]
    return np.mean(averages, axis=0)


def permutation_p(
    ours: pd.DataFrame, theirs: pd.DataFrame, kind: str, columns: Mapping[str, int], swaps: Floats
) -> dict[str, float]:
    """Return the permutation p of the main metric and of inconsistency; NaN where there is none."""
    found = {}
    for metric in TESTED[kind]:
        try:
            found[metric] = p_value(permuted_difference(ours, theirs, metric, swaps, columns))
        except Undefined:
            found[metric] = float("nan")
    return found


def p_value(differences: Floats) -> float:
    """Return the two-sided p of element 0 among permuted differences; at least 1 / (1 + permutations).

    NaN where element 0 is.
    """
    changed = differences[1:][np.isfinite(differences[1:])]
    if not np.isfinite(differences[0]):
        return float("nan")
    # The margin keeps permutations that change nothing (rounding apart) on the side of chance.
    return float((1 + np.sum(np.abs(changed) >= abs(differences[0]) - 1e-12)) / (1 + changed.size))


def holm(p: ArrayLike) -> Floats:
    """Return p-values adjusted for their number by Holm's step-down method (1979); NaN stays and does not count.

    Formula: sorted p_(1) <= ... <= p_(m): the largest of (m - j + 1) p_(j) over j <= i, at most 1.
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]
    steps = np.arange(order.size, 0, -1) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def delong(ours: pd.DataFrame, theirs: pd.DataFrame, level: float = 0.95) -> tuple[float, float, float, float]:
    """Return AUC difference, interval and p by DeLong's method: a check of the bootstrap that draws nothing.

    Structural components (DeLong et al. 1988) of each scan, averaged over seeds, summed within patients (Obuchowski
    1997: scans of a patient are not independent), and over folds with the same weights as the estimate.

    Raises:
        Undefined: if a fold has one class, a class with one patient, no seed that both arms have, or patients that
            several folds test, whose variances cannot be added.
    """
    if (ours.drop_duplicates(["fold", "patient"])["patient"].value_counts() > 1).any():
        raise Undefined("patients are tested in several folds")
    difference = variance = total = 0.0
    for _, models in _by_fold(ours, theirs):
        value, fold_variance, pairs = _delong_fold(models)
        difference, total = difference + pairs * value, total + pairs
        variance += pairs**2 * fold_variance
    if not total:
        raise Undefined("no model of both arms has a value")
    difference, error = difference / total, np.sqrt(variance) / total
    half = stats.norm.ppf((1 + level) / 2) * error
    p = 2 * stats.norm.sf(abs(difference) / error) if error > 0 else float(difference == 0)
    return difference, difference - half, difference + half, float(p)


def shared(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return both tables without scans that only one has in a fold that both test, and how many are left in words.

    An arm on features of its own (stain normalisation) may have lost scans; without them alone a model scores otherwise
    than with them. Folds that only one tests stay; the words are empty where nothing is left out.
    """
    folds = set(ours["fold"]) & set(theirs["fold"])
    keys = [pd.MultiIndex.from_frame(table[["fold", "scan"]]) for table in (ours, theirs)]
    kept = [
        table[own.isin(other) | ~table["fold"].isin(folds).to_numpy()]
        for table, own, other in ((ours, *keys), (theirs, *keys[::-1]))
    ]
    if len(kept[0]) == len(ours) and len(kept[1]) == len(theirs):
        return ours, theirs, ""
    left, everything = (pd.concat(pair)["scan"].nunique() for pair in (kept, (ours, theirs)))
    return *kept, f"on the {left} of {everything} {SHARED}"


def _common(ours: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[tuple[tuple[int, int], pd.DataFrame]]:
    """Yield (seed, fold) and the scans that both arms scored with finite scores: columns p (ours) and p_control."""
    keys = ["seed", "fold", "scan"]
    both = ours.merge(theirs[[*keys, "p", *class_columns(theirs)]], on=keys, suffixes=("", "_control"))
    finite = np.isfinite(both["p"]) & np.isfinite(both["p_control"])
    both["finite"] = finite
    for key, rows in both.groupby(["seed", "fold"], sort=True):
        if rows["finite"].all():
            yield key, rows


def _by_class(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the scans of a multiclass task once for each class, which is then the positive one; else as they are."""
    classes = class_columns(rows)
    return [
        rows.assign(p=rows[name], p_control=rows[f"{name}_control"], label=(rows["label"] == index).astype(float))
        for index, name in enumerate(classes)
    ] or [rows]


def _complete(frame: pd.DataFrame) -> set[str]:
    scanners = frame.groupby("specimen")["scanner"].nunique()
    complete = set(scanners.index[scanners == frame["scanner"].nunique()])
    return complete or set(scanners.index[scanners > 1])


def _pairs(rows: pd.DataFrame, swaps: Floats, columns: Mapping[str, int]) -> tuple[Floats, float]:
    """Return difference of AUC or c-index on every permutation, and the number of comparable pairs."""
    scores = rows["p"].to_numpy(), rows["p_control"].to_numpy()
    if rows["time"].notna().any():
        time, event, tie = rows["time"].to_numpy(), rows["event"].to_numpy().astype(bool), RISK_TIE
    else:  # an AUC is the c-index of positives that have the event first
        event, tie = rows["label"].to_numpy().astype(bool), 0.0
        time = np.where(event, 1.0, 2.0)
    first = np.flatnonzero(event)
    comparable, _ = metrics.concordance(time, event, scores[0], first)
    if not comparable.sum():
        raise Undefined("no comparable pairs")
    names, patient = np.unique(rows["patient"].to_numpy(str), return_inverse=True)
    member = np.eye(names.size)[patient]
    chosen = swaps[:, [columns[name] for name in names]]
    parts, ranks = [1 - chosen, chosen], [stats.rankdata(score) for score in scores]
    sums = np.zeros((2, len(swaps)))
    for i in range(2):
        for j in range(2):
            # Within an arm the scores themselves, so that element 0 is the metric's own difference.
            one, other, least = (scores[i], scores[j], tie) if i == j else (ranks[i], ranks[j], 0.0)
            apart = one[first, None] - other[None, :]
            wins = comparable * np.where(np.abs(apart) <= least, 0.5, apart > 0)
            table = member[first].T @ wins @ member
            sums[0] += np.sum((parts[i] @ table) * parts[j], axis=1)
            sums[1] += np.sum((parts[1 - i] @ table) * parts[1 - j], axis=1)
    return (sums[0] - sums[1]) / comparable.sum(), float(comparable.sum())


def _inconsistency(rows: pd.DataFrame, swaps: Floats, columns: Mapping[str, int]) -> tuple[Floats, float]:
    """Return difference of inconsistency on every permutation, and the number of specimens."""
    for name in ("p", "p_control"):
        metrics.inconsistency(rows[name], rows["specimen"])  # raises where there is none
    names, patient = np.unique(rows["patient"].to_numpy(str), return_inverse=True)
    chosen = swaps[:, [columns[name] for name in names]]
    parts = []
    specimens = rows.groupby("specimen")
    owner = specimens["patient"].first().map({name: i for i, name in enumerate(names)}).to_numpy()
    several = specimens.size().to_numpy() > 1
    for name in ("p", "p_control"):
        score = rows[name].to_numpy() - rows["p_control"].mean()
        within = np.where(several, specimens[name].std(ddof=0), 0)
        sums = ((owner, within), (patient, score), (patient, score**2))
        parts.append([np.bincount(index, values, names.size) for index, values in sums])
    values = []
    for keep in (1 - chosen, chosen):
        within, mean, square = (keep @ ours + (1 - keep) @ theirs for ours, theirs in zip(*parts, strict=True))
        spread = np.sqrt(np.maximum(square / len(rows) - (mean / len(rows)) ** 2, 0))
        values.append(within / several.sum() / np.where(spread > 0, spread, np.nan))
    return values[0] - values[1], float(several.sum())


def _r2(rows: pd.DataFrame, swaps: Floats, columns: Mapping[str, int]) -> tuple[Floats, float]:
    """Return difference of R² on every permutation, and the number of scans."""
    label = rows["label"].to_numpy(dtype=float)
    task_metrics.r2(label, rows["p"])  # raises where there is none
    names, patient = np.unique(rows["patient"].to_numpy(str), return_inverse=True)
    chosen = swaps[:, [columns[name] for name in names]]
    errors = [np.bincount(patient, (label - rows[name].to_numpy()) ** 2) for name in ("p", "p_control")]
    gained = (1 - 2 * chosen) @ (errors[1] - errors[0])
    return gained / np.sum((label - label.mean()) ** 2), float(len(rows))


FUNCTIONS = {"auc": _pairs, "macro_auc": _pairs, "c_index": _pairs, "r2": _r2, "inconsistency": _inconsistency}


def _by_fold(ours: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[tuple[int, list[pd.DataFrame]]]:
    folds: dict[int, list[pd.DataFrame]] = {}
    for (_, fold), rows in _common(ours, theirs):
        folds.setdefault(fold, []).append(rows.sort_values("scan"))
    yield from sorted(folds.items())


def _delong_fold(models: list[pd.DataFrame]) -> tuple[float, float, float]:
    """Return AUC difference of a fold (mean over seeds), its variance, and the number of pairs."""
    positive = models[0]["label"].to_numpy().astype(bool)
    patient = models[0]["patient"].to_numpy(str)
    if positive.all() or not positive.any():
        raise Undefined("a fold has one class")
    components = []
    for rows in models:
        parts = []
        for name in ("p", "p_control"):
            score = rows[name].to_numpy()
            apart = score[positive, None] - score[None, ~positive]
            psi = np.where(apart == 0, 0.5, apart > 0)
            parts.append(np.concatenate([psi.mean(1), psi.mean(0)]))
        components.append(parts[0] - parts[1])
    component, count = np.mean(components, axis=0), int(positive.sum())
    value, variance = float(component[:count].mean()), 0.0
    names, index = np.unique(np.concatenate([patient[positive], patient[~positive]]), return_inverse=True)
    sums = []
    for rows in (slice(count), slice(count, None)):
        part, own = component[rows] - value, index[rows]
        sums.append(np.bincount(own, part, names.size) / part.size)
        clusters = np.unique(own).size
        if clusters < 2:
            raise Undefined("a class has one patient in a fold")
        variance += clusters / (clusters - 1) * float(np.sum(sums[-1] ** 2))
    # Patients with specimens of both classes: what they add to the one side and to the other goes together.
    variance += 2 * names.size / (names.size - 1) * float(sums[0] @ sums[1])
    return value, max(variance, 0.0), float(count * (~positive).sum())
