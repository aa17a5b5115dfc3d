"""Every metric of an arm: per model and scope, on the cohort and on all resamples at once.

Scores are `p` of the predictions (probability of the positive or poor class, predicted value, risk); in a multiclass
task `p_0`, `p_1`, …, and what compares scans is the mean over classes. Scopes (`scopes.py`) say which scans enter.
Metrics that compare two scans are, where there are more, the mean over scanner pairs within each model. Inconsistency
and ICC take the specimens that have all scanners of the scope; where no specimen has, inconsistency takes those with
two or more scans, and the row says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from isoslide import metrics, task_weighted, uncertainty, weighted
from isoslide.measures import METRICS, ONE_CLASS, Metric
from isoslide.scopes import SIDES, Scope, scopes
from isoslide.scopes import complete as complete_specimens

Floats = np.ndarray
FEWER_PAIRS = "over the pairs of scanners that have a value, in some models not all"
NO_TUNING = (np.nan, "no tuning scans were scored")


@dataclass(frozen=True)
class Scans:
    """The test scans of one model within a scope: arrays (n,); `patient` is the column of the bootstrap weights.

    `p` is (n, C) in a multiclass task.
    """

    patient: np.ndarray
    specimen: np.ndarray
    scanner: np.ndarray
    p: Floats
    y: Floats
    time: Floats
    event: Floats
    free: Floats
    complete: np.ndarray

    def take(self, rows: np.ndarray) -> "Scans":
        """Return the scans of a mask or index."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass
class Units:
    """One metric in one scope: value and averaging weight (1 + resamples,) of each model, keyed by (seed, fold)."""

    values: dict[tuple[int, int], weighted.Estimate]
    reasons: dict[tuple[int, int], str]
    n: int = 0
    note: str = ""

    def seeds(self, keep: set[tuple[int, int]] | None = None) -> dict[int, Floats]:
        """Return the average over folds (1 + resamples,) of each seed, over the models in `keep` (default: all)."""
        keys = sorted(key for key in self.values if keep is None or key in keep)
        result = {}
        for seed in dict.fromkeys(seed for seed, _ in keys):
            pairs = [self.values[key] for key in keys if key[0] == seed]
            result[seed] = uncertainty.over_folds(np.array([v for v, _ in pairs]), np.array([w for _, w in pairs]))
        return result

    def defined(self) -> set[tuple[int, int]]:
        """Return the models for which the metric has a value on the cohort itself."""
        return {key for key, (value, _) in self.values.items() if np.isfinite(value[0])}

    def reason(self) -> str:
        """Return why values are missing, if any are, after the note on how they were computed."""
        if not self.values:
            return "no model made a prediction"
        if not self.reasons:
            return self.note
        common = pd.Series(list(self.reasons.values())).mode().iloc[0]
        if not self.defined():
            return common
        missing = f"{len(self.reasons)} of {len(self.values)} models have no value: {common}"
        return f"{self.note}; {missing}" if self.note else missing


Estimates = dict[tuple[str, str], Units]


def estimate_arm(
    frame: pd.DataFrame,
    columns: Mapping[str, int],
    weights: Floats,
    kind: str,
    threshold: float = 0.5,
    tuned: Mapping[tuple[int, int], tuple[float, str]] | None = None,
    classes: tuple[str, ...] = (),
) -> Estimates:
    """Return every metric of an arm in every scope, for each model on all rows of `weights` (1 + resamples, patients).

    Args:
        frame: the arm's predictions, see `scopes.mark`.
        columns: the column of `weights` of each patient.
        weights: see `uncertainty.draw`.
        kind: type of the task.
        threshold: of the decision, for the metrics that take one.
        tuned: threshold of each model (seed, fold), or why it has none, for the metrics at the tuned threshold.
        classes: names of the classes of a multiclass task, in the order of their index.
    """
    frame = frame.sort_values(["seed", "fold", "specimen", "scanner", "scan"], kind="stable")
    models = {key: rows.index for key, rows in frame.reset_index(drop=True).groupby(["seed", "fold"], sort=True)}
    scanners = frame["scanner"].to_numpy(dtype=str)
    result: Estimates = {}
    shared: Pairs = {}
    for scope in scopes(frame, classes):
        pairs = {} if scope.name in SIDES else shared
        inside = scope.inside(frame)
        complete, note = complete_specimens(frame, inside, scope)
        scans = _arrays(frame, columns, complete, scope.of_class)
        chosen = list(chosen_metrics(kind, scope))
        for metric in chosen:
            notes = note if metric.takes == "specimens" else ""
            n = frame.loc[_entering(frame, inside, complete, metric.takes), "patient"].nunique()
            result[metric.name, scope.name] = Units({}, {}, int(n), notes)
        for key, rows in models.items():
            rows = rows[inside[rows]]
            own = scope.within(scanners[rows])
            model = Model(key, scans.take(rows), "binary" if scope.of_class is not None else kind, weights)
            for metric in chosen:
                units = result[metric.name, scope.name]
                cut, reason = (tuned or {}).get(key, NO_TUNING) if metric.tuned else (threshold, "")
                if reason:
                    units.values[key] = _nothing(weights)
                else:
                    units.values[key], reason = _estimate(_bind(metric, cut), model, own, pairs)
                if reason:
                    units.reasons[key] = reason
                elif metric.takes in ("pairs", "decisions") and _partly(metric, key, own, pairs):
                    units.note = FEWER_PAIRS
    return result


def chosen_metrics(kind: str, scope: Scope) -> Iterator[Metric]:
    """Yield the metrics that a scope has: accuracy of its scans, agreement between them, or both."""
    for metric in METRICS:
        if scope.of_class is not None:
            if metric.name in ONE_CLASS:
                yield metric
            continue
        if metric.tasks and kind not in metric.tasks:
            continue
        alone = metric.takes in ("labels", "censored", "scores")
        if (alone and not scope.name.startswith("pair:")) or (not alone and not scope.single):
            yield metric


def _entering(frame: pd.DataFrame, inside: np.ndarray, complete: np.ndarray, takes: str) -> np.ndarray:
    """Return which scans (n,) can enter a metric: all of the scope, those of complete specimens, or of two scanners."""
    if takes in ("specimens", "matrix"):
        return complete
    if takes in ("pairs", "decisions"):
        own = frame["scanner"].where(inside).groupby([frame["fold"], frame["specimen"]])
        return inside & (own.transform("nunique") > 1).to_numpy()
    return inside


def _arrays(frame: pd.DataFrame, columns: Mapping[str, int], complete: np.ndarray, of_class: int | None) -> Scans:
    numbers = {name: frame[name].to_numpy(dtype=float) for name in ("p", "label", "time", "event", "free")}
    of_classes = frame[class_columns(frame)].to_numpy(dtype=float)
    if of_class is not None and len(frame):
        numbers |= {"p": of_classes[:, of_class], "label": (numbers["label"] == of_class).astype(float)}
    elif of_classes.size:
        numbers["p"] = of_classes
    return Scans(
        patient=frame["patient"].map(columns).to_numpy(dtype=int),
        specimen=pd.factorize(frame["specimen"])[0],
        scanner=frame["scanner"].to_numpy(dtype=str),
        p=numbers["p"],
        y=numbers["label"],
        time=numbers["time"],
        event=numbers["event"],
        free=numbers["free"],
        complete=complete,
    )


def class_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns `p_0`, `p_1`, … of the predictions of a multiclass task, in order; of others none."""
    return sorted((name for name in frame if name[:2] == "p_" and name[2:].isdigit()), key=lambda name: int(name[2:]))


def _bind(metric: Metric, threshold: float) -> Metric:
    if not metric.threshold:
        return metric
    plain, with_weights = (partial(f, threshold=threshold) for f in (metric.plain, metric.weighted))
    return replace(metric, plain=plain, weighted=with_weights)


Cases = list[tuple[np.ndarray, ...]]
"""Arguments of a metric; of several, one for each class, the metric is the mean."""


@dataclass
class Model:
    """The test scans of one model in one scope, and what the metrics take from them, each made once."""

    key: tuple[int, int]
    scans: Scans
    kind: str
    weights: Floats
    made: dict[tuple[str, tuple[str, ...]], tuple[Cases, Floats]] = field(default_factory=dict)

    def arguments(self, takes: str, scanners: tuple[str, ...]) -> tuple[Cases, Floats]:
        """Return what a metric takes, and the weights (1 + resamples, elements)."""
        if (takes, scanners) not in self.made:
            *arguments, patients = _arguments(takes, self.scans, scanners, self.kind)
            cases = [tuple(arguments)]
            if self.kind == "multiclass" and takes not in ("labels", "decisions"):
                cases = _by_class(arguments)
            self.made[takes, scanners] = cases, self.weights[:, patients]
        return self.made[takes, scanners]


Pairs = dict[tuple[str, tuple[int, int], tuple[str, str]], tuple[weighted.Estimate | None, str]]
"""Estimates of scanner pairs by metric, model and pair: a pair's own scope and the pooled one share them."""


def _estimate(metric: Metric, model: Model, scope: Scope, pairs: Pairs) -> tuple[weighted.Estimate, str]:
    """Return value and weight on all resamples, and the reason where the model has no value."""
    if metric.takes in ("pairs", "decisions"):
        parts, reason = [], "only one scanner"
        for pair in combinations(scope.scanners, 2):
            key = (metric.name, model.key, pair)
            if key not in pairs:
                pairs[key] = _value(metric, model, pair)
            estimate, said = pairs[key]
            reason = said or reason
            parts += [estimate] if estimate else []
    else:
        estimate, reason = _value(metric, model, scope.scanners)
        parts = [estimate] if estimate else []
    if not parts:
        return _nothing(model.weights), reason
    if len(parts) == 1:
        return parts[0], ""
    values, drawn = (np.array(arrays) for arrays in zip(*parts, strict=True))
    return (uncertainty.over_seeds(values), drawn.mean(0)), ""


def _partly(metric: Metric, key: tuple[int, int], scope: Scope, pairs: Pairs) -> bool:
    """Say whether a pair of scanners of the scope has no value, though both have scans of one specimen."""
    said = [pairs[metric.name, key, pair][1] for pair in combinations(scope.scanners, 2)]
    return any(reason not in ("", metrics.NO_PAIRS) for reason in said)


def _nothing(weights: Floats) -> weighted.Estimate:
    return np.full(len(weights), np.nan), np.zeros(len(weights))


def _value(metric: Metric, model: Model, scanners: tuple[str, ...]) -> tuple[weighted.Estimate | None, str]:
    cases, weights = model.arguments(metric.takes, scanners)
    try:
        for arguments in cases:
            metric.plain(*arguments)
    except metrics.Undefined as undefined:
        return None, undefined.reason
    estimates = [metric.weighted(*arguments, weights) for arguments in cases]
    return (estimates[0] if len(estimates) == 1 else task_weighted.over_cases(estimates)), ""


def _by_class(arguments: list[np.ndarray]) -> Cases:
    """Split scores (..., C) into the arguments of each class; specimens (n,) are the same for all."""
    n_classes = arguments[0].shape[-1]
    return [tuple(a[..., one] if a.dtype == float else a for a in arguments) for one in range(n_classes)]


def _arguments(takes: str, scans: Scans, scanners: tuple[str, ...], kind: str) -> tuple[np.ndarray, ...]:
    """Return what a metric takes, and last the weight column of each element."""
    if takes == "censored":
        return scans.time, scans.event, scans.p, scans.free, scans.patient
    if takes == "labels" and kind == "survival":
        return scans.time, scans.event, scans.p, scans.patient
    if takes == "labels":
        return scans.y, scans.p, scans.patient
    if takes == "scores":
        return scans.p, scans.patient
    if takes == "specimens":
        scans = scans.take(scans.complete)
        return scans.p, scans.specimen, scans.patient
    matrix, patients = _matrix(scans.take(np.isin(scans.scanner, scanners)), scanners)
    if takes == "decisions":
        matrix = matrix.argmax(-1)
    return (matrix, patients) if takes == "matrix" else (matrix[:, 0], matrix[:, 1], patients)


def _matrix(scans: Scans, scanners: tuple[str, ...]) -> tuple[Floats, np.ndarray]:
    """Return scores (specimens with all scanners, scanners) and their patients; of two scans on one, the first.

    In a multiclass task the scores have a third axis, the class.
    """
    specimens, index = np.unique(scans.specimen, return_inverse=True)
    matrix = np.full((specimens.size, len(scanners), *scans.p.shape[1:]), np.nan)
    patients = np.zeros(specimens.size, dtype=int)
    patients[index] = scans.patient
    filled = np.zeros(matrix.shape[:2], dtype=bool)
    for column, scanner in enumerate(scanners):
        rows = np.flatnonzero(scans.scanner == scanner)[::-1]  # backwards: the first scan is written last
        matrix[index[rows], column] = scans.p[rows]
        filled[index[rows], column] = True
    whole = filled.all(1)
    return matrix[whole], patients[whole]
