"""From predictions to tables: each metric of every arm with interval and seeds, and each arm minus the control."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from isoslide import comparing, survival, thresholds, uncertainty
from isoslide.estimates import FEWER_PAIRS, Estimates, Floats, estimate_arm
from isoslide.measures import BY_NAME, MAIN
from isoslide.metrics import Undefined

OK = "ok"
MEAN = "mean"
DELONG = "auc_delong"
"""Metric name of the comparison that repeats the AUC difference with DeLong's interval."""
COLLAPSED_RATIO = 1 / 3
"""An arm whose scores spread less than this share of the control's counts as collapsed."""

METRIC_COLUMNS = ["arm", "metric", "scope", "seed", "value", "low", "high", "n", "reason"]
MODEL_COLUMNS = ["arm", "metric", "scope", "seed", "fold", "value", "weight", "reason"]
COMPARISON_COLUMNS = ["arm", "control", "metric", "scope", "difference", "low", "high", "p", "n", "reason"]


class Tables(NamedTuple):
    """What is written of a task and encoder (columns: `METRIC_COLUMNS`, `COMPARISON_COLUMNS`, `MODEL_COLUMNS`)."""

    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    by_model: pd.DataFrame


TEXT = ("role", "scan", "specimen", "patient", "scanner", "status")


def read_predictions(path: str | Path, role: str = "test") -> pd.DataFrame:
    """Read the rows of one role of a predictions table: ids stay text, numbers are floats (empty: NaN).

    Every figure of accuracy or robustness is of the role `test`; `tune` is for choosing thresholds only.
    """
    table = pd.read_csv(path, sep="\t", dtype=dict.fromkeys(TEXT, str), na_values=[""], keep_default_na=False)
    table = table[table["role"] == role].reset_index(drop=True)
    return table.astype({name: float for name in ("label", "time", "event", "logit", "p")})


def unseen_scanners(splits: pd.DataFrame) -> tuple[str, ...]:
    """Return the scanners of which no scan was ever trained or selected on, by the split table."""
    used = set(splits.loc[splits["role"].isin(("train", "tune")), "scanner"])
    return tuple(sorted(set(splits.loc[splits["role"] == "test", "scanner"]) - used))


def class_names(splits: pd.DataFrame, kind: str) -> tuple[str, ...]:
    """Return the names of the classes of a multiclass task in the order of their index; of other tasks none."""
    if kind != "multiclass":
        return ()
    names = splits[splits["label"] != ""].drop_duplicates("label")
    return tuple(names.sort_values("label", key=lambda label: label.astype(int))["class"])


def evaluate(
    frames: Mapping[str, pd.DataFrame],
    control: str,
    kind: str,
    settings: Mapping[str, Any],
    models: Mapping[str, pd.DataFrame] | None = None,
    cuts: pd.DataFrame | None = None,
    classes: tuple[str, ...] = (),
) -> Tables:
    """Return the tables of metrics, of comparisons with the control, and of every model by itself.

    Args:
        frames: predictions of each arm, columns as written by predict_scans.py, numbers parsed; see `scopes.mark`.
        control: name of the arm that the others are compared with; every arm is described even if it is absent.
        kind: type of the task.
        settings: `resamples`, `seed`, `level`, and optionally `threshold` (default 0.5).
        models: table of all models of each arm (`status`), also those that made no prediction; without it, models are
            counted by their predictions.
        cuts: thresholds that were chosen on the tuning scans, see `thresholds.choose`.
        classes: names of the classes of a multiclass task, in the order of their index.
    """
    frames = with_censoring(frames, kind)
    strata = patient_table(frames, kind)
    rng = np.random.default_rng(settings["seed"])
    weights = uncertainty.draw(strata.to_numpy(), settings["resamples"], rng)
    swaps = comparing.draw_swaps(strata.size, settings["resamples"], rng)
    columns = {patient: index for index, patient in enumerate(strata.index)}
    level = settings["level"]

    def estimate(arm: str, frame: pd.DataFrame) -> Estimates:
        tuned = {} if cuts is None else thresholds.by_model(cuts, arm)
        cut = settings.get("threshold", 0.5)
        return estimate_arm(frame, columns, weights, kind, cut, tuned, classes)

    def statuses(arm: str) -> pd.Series:
        table = models[arm] if models and arm in models else frames[arm].drop_duplicates(["seed", "fold"])
        return table["status"]

    reference = estimate(control, frames[control]) if control in frames else None
    tables, comparisons, by_model = [], [], []
    for arm in frames:
        estimates = reference if arm == control and reference is not None else estimate(arm, frames[arm])
        tables += [*metric_rows(arm, estimates, level), *training_rows(arm, statuses(arm), estimates, reference)]
        by_model += model_rows(arm, estimates)
        if reference is not None and arm != control:
            ours, theirs, note = comparing.shared(frames[arm], frames[control])
            both = (estimate(arm, ours), estimate(control, theirs)) if note else (estimates, reference)
            rows = comparison_rows(arm, control, *both, level, note)
            tested = comparing.permutation_p(ours, theirs, kind, columns, swaps)
            for row in rows:
                row["p"] = tested.get(row["metric"], np.nan) if row["scope"] == "pooled" else np.nan
            comparisons += rows
            if kind == "binary":
                n = pd.concat([ours, theirs])["patient"].nunique()
                comparisons.append(delong_row(arm, control, {arm: ours, control: theirs}, n, level))
    return Tables(
        pd.DataFrame(tables, columns=METRIC_COLUMNS),
        pd.DataFrame(comparisons, columns=COMPARISON_COLUMNS),
        pd.DataFrame(by_model, columns=MODEL_COLUMNS),
    )


def with_censoring(frames: Mapping[str, pd.DataFrame], kind: str) -> dict[str, pd.DataFrame]:
    """Return the frames with `free`: G(t-) of each scan's time, estimated once over all test patients (binary: 1)."""
    if kind != "survival":
        return {arm: frame.assign(free=1.0) for arm, frame in frames.items()}
    patients = pd.concat([frame[["patient", "time", "event"]] for frame in frames.values()]).drop_duplicates("patient")
    time, event = patients["time"].to_numpy(float), patients["event"].to_numpy(float)
    return {
        arm: frame.assign(free=survival.uncensored(time, event, frame["time"].to_numpy(float)))
        for arm, frame in frames.items()
    }


def patient_table(frames: Mapping[str, pd.DataFrame], kind: str) -> pd.Series:
    """Return the stratum of each test patient: its highest class, or whether it has the event; 0 in regression."""
    column = "event" if kind == "survival" else "label"
    rows = pd.concat([frame[["patient", column]] for frame in frames.values()])
    strata = rows.groupby("patient")[column].max().sort_index()
    return strata * 0 if kind == "regression" else strata


def metric_rows(arm: str, estimates: Estimates, level: float) -> list[dict[str, Any]]:
    """Return the rows of an arm: of each metric and scope the mean over seeds with interval, then each seed."""
    rows = []
    for (metric, scope), units in estimates.items():
        rows += _rows(arm, metric, scope, units.seeds(), units.n, units.reason(), level)
    for name in MAIN.values():
        scanners = {
            scope: units for (metric, scope), units in estimates.items() if metric == name and scope[:8] == "scanner:"
        }
        if len(scanners) > 1:
            seeds = _gap([units.seeds() for units in scanners.values()])
            n = estimates[name, "pooled"].n
            rows += _rows(arm, f"{name}_gap", "pooled", seeds, n, "best minus worst scanner", level)
    return rows


def model_rows(arm: str, estimates: Estimates) -> list[tuple[Any, ...]]:
    """Return a row for each metric, scope and model: its value, and its weight in the mean over the folds of a seed."""
    return [
        (arm, metric, scope, seed, fold, value[0], weight[0], units.reasons.get((seed, fold), ""))
        for (metric, scope), units in estimates.items()
        for (seed, fold), (value, weight) in units.values.items()
    ]


def training_rows(
    arm: str, statuses: pd.Series, estimates: Estimates, reference: Estimates | None
) -> list[dict[str, Any]]:
    """Return how many models trained (`trained_share`, `n_collapsed`) and the spread against the control's."""
    bad = int((statuses != OK).sum())
    counts = ", ".join(f"{n} {name}" for name, n in statuses[statuses != OK].value_counts().sort_index().items())
    rows = [
        _row(
            arm,
            "trained_share",
            value=1 - bad / len(statuses) if len(statuses) else 0.0,
            n=len(statuses),
            reason=counts,
        ),
        _row(arm, "n_collapsed", value=bad, n=len(statuses), reason=counts),
    ]
    if reference is not None:
        ours, theirs = (uncertainty.over_seeds(_stack(e["spread", "pooled"].seeds())) for e in (estimates, reference))
        ratio = ours[0] / theirs[0] if theirs[0] > 0 else np.nan
        reason = "" if np.isfinite(ratio) else "the control's scores have no spread"
        rows.append(_row(arm, "spread_ratio", value=ratio, n=estimates["spread", "pooled"].n, reason=reason))
    return rows


def comparison_rows(
    arm: str, control: str, estimates: Estimates, reference: Estimates, level: float, note: str = ""
) -> list[dict[str, Any]]:
    """Return arm minus control on the same resamples, over the models (seed, fold) for which both have a value.

    `note` says on which scans, where not on all.
    """
    rows = []
    for key, units in estimates.items():
        if key not in reference:
            continue
        both = units.defined() & reference[key].defined()
        row = {"arm": arm, "control": control, "metric": key[0], "scope": key[1], "n": units.n}
        if not both:
            reason = units.reason() if not units.defined() else f"{control}: {reference[key].reason()}"
            rows.append({**row, "difference": np.nan, "low": np.nan, "high": np.nan, "reason": reason})
            continue
        ours, theirs = (uncertainty.over_seeds(_stack(u.seeds(both))) for u in (units, reference[key]))
        low, high = uncertainty.interval(ours - theirs, level)
        everything = set(units.values) | set(reference[key].values)
        few = "" if both == everything else f"over the {len(both)} of {len(everything)} models where both have a value"
        pairs = FEWER_PAIRS if FEWER_PAIRS in (units.note, reference[key].note) else ""
        reason = "; ".join(filter(None, [note, few, pairs]))
        rows.append({**row, "difference": ours[0] - theirs[0], "low": low, "high": high, "reason": reason})
    return rows


def delong_row(arm: str, control: str, frames: Mapping[str, pd.DataFrame], n: int, level: float) -> dict[str, Any]:
    """Return the row `auc_delong`: the same difference with DeLong's interval and p, to check the bootstrap by."""
    row = {"arm": arm, "control": control, "metric": DELONG, "scope": "pooled", "n": n, "reason": ""}
    try:
        values = comparing.delong(frames[arm], frames[control], level)
    except Undefined as undefined:
        return row | dict.fromkeys(("difference", "low", "high", "p"), np.nan) | {"reason": undefined.reason}
    return row | dict(zip(("difference", "low", "high", "p"), values, strict=True))


def is_collapsed(table: pd.DataFrame, arm: str) -> str:
    """Return why an arm's robustness figures mean nothing, by the metrics table, or the empty string.

    An arm is named when most of its models did not train, or its scores spread less than a third of the control's.
    """
    values = table[(table["arm"] == arm) & (table["scope"] == "pooled") & (table["seed"] == MEAN)]
    values = values.drop_duplicates("metric").set_index("metric")["value"]
    if values.get("trained_share", 1.0) < 0.5:
        return f"{100 * (1 - values['trained_share']):.0f} % of its models did not train"
    if values.get("spread_ratio", 1.0) < COLLAPSED_RATIO:
        return f"its scores spread {values['spread_ratio']:.2f} times as far as the control's"
    return ""


def _gap(scanners: list[dict[int, Floats]]) -> dict[int, Floats]:
    seeds = set.intersection(*(set(values) for values in scanners))
    return {seed: np.ptp([values[seed] for values in scanners], axis=0) for seed in sorted(seeds)}


def _stack(seeds: dict[int, Floats]) -> Floats:
    return np.array(list(seeds.values())) if seeds else np.full((1, 1), np.nan)


def _rows(
    arm: str, metric: str, scope: str, seeds: dict[int, Floats], n: int, reason: str, level: float
) -> Iterator[dict[str, Any]]:
    mean = uncertainty.over_seeds(_stack(seeds))
    low, high = uncertainty.interval(mean, level, BY_NAME[metric].bounds if metric in BY_NAME else (0, 1))
    yield _row(arm, metric, scope, value=mean[0], low=low, high=high, n=n, reason=reason)
    for seed, values in seeds.items():
        yield _row(arm, metric, scope, seed=str(seed), value=values[0], n=n, reason=reason)


def _row(
    arm: str,
    metric: str,
    scope: str = "pooled",
    *,
    seed: str = MEAN,
    value: float,
    low: float = np.nan,
    high: float = np.nan,
    n: int,
    reason: str,
) -> dict[str, Any]:
    return dict(zip(METRIC_COLUMNS, (arm, metric, scope, seed, value, low, high, n, reason), strict=True))
