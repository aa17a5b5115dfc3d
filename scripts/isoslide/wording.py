"""What the numbers say, in words: one place that decides when a difference may be called one.

The rule: a difference is named only when its interval excludes 0 and its p, adjusted for the number of comparisons, is
small enough; anything else is "no difference shown", which is not "no difference". A collapsed arm is named as such and
its robustness figures are never read; nor are differences from a control that has collapsed.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from isoslide import comparing, evaluation
from isoslide.measures import BY_NAME

MINUS = "−"
ONLY_INTERVAL = "the interval excludes 0, the adjusted p does not"


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a number with a real minus sign; a missing one is a dash."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(low: float, high: float, sign: bool = False) -> str:
    """Return `0.72 to 0.81`, or a dash."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"{number(low, sign=sign)} to {number(high, sign=sign)}"


def excludes_zero(row: Mapping[str, Any]) -> bool:
    """Say whether the interval of a comparison lies on one side of 0."""
    return bool(row["low"] > 0 or row["high"] < 0)


def verdict(row: Mapping[str, Any]) -> str:
    """Return how a comparison reads: better, worse, higher, lower, no difference shown, or why there is none."""
    if not math.isfinite(row["difference"]):
        return f"not available: {row['reason']}"
    if not excludes_zero(row):
        return "no difference shown"
    better = BY_NAME[row["metric"]].better
    if row["metric"] == "inconsistency":
        return "more consistent" if row["difference"] < 0 else "less consistent"
    if not better:
        return "higher" if row["difference"] > 0 else "lower"
    return "better" if (row["difference"] > 0) == (better > 0) else "worse"


def readings(
    metrics: pd.DataFrame, comparisons: pd.DataFrame, names: tuple[str, ...], level: float
) -> list[dict[str, Any]]:
    """Return a row per arm and metric of `names`: values, difference, interval, spread over seeds, and how it reads."""
    pooled = comparisons[comparisons["scope"] == "pooled"]
    result = []
    pooled = pooled[pooled["metric"].isin(names)].sort_values("metric", key=lambda m: m.map(names.index), kind="stable")
    for arm in pooled["arm"].drop_duplicates():
        control = pooled.loc[pooled["arm"] == arm, "control"].iloc[0]
        own, of_control = (evaluation.is_collapsed(metrics, name) for name in (arm, control))
        collapsed = own or (f"the control {control} has: {of_control}" if of_control else "")
        for row in pooled[pooled["arm"] == arm].to_dict("records"):
            spreads = [seed_spread(metrics, name, row["metric"]) for name in (arm, control)]
            seeds = max((spread for spread in spreads if math.isfinite(spread)), default=math.nan)
            small = excludes_zero(row) and abs(row["difference"]) < seeds
            on = f" ({row['reason']})" if comparing.SHARED in row["reason"] else ""
            reads = verdict(row) + on + (f", but less than the spread over seeds ({number(seeds)})" if small else "")
            result.append(
                {
                    "arm": arm,
                    "control": row["control"],
                    "metric": BY_NAME[row["metric"]].title,
                    "name": row["metric"],
                    "ours": value(metrics, arm, row["metric"]),
                    "theirs": value(metrics, row["control"], row["metric"]),
                    "difference": row["difference"],
                    "low": row["low"],
                    "high": row["high"],
                    "seeds": seeds,
                    "p": row.get("p", math.nan),
                    "level": f"{100 * level:g} %",
                    "alpha": 1 - level,
                    "verdict": verdict(row),
                    "reads": f"means nothing: collapsed ({collapsed})" if collapsed else reads,
                    "collapsed": collapsed,
                    "own": bool(own),
                    "untrained": value(metrics, arm, "n_collapsed"),
                }
            )
    return result


def sentence(rows: list[dict[str, Any]]) -> str:
    """Return the numbers behind `short`, for an arm of a task, from its readings of inconsistency and accuracy."""
    if rows[0]["collapsed"]:
        accuracy = [f"{row['metric']} is {number(row['ours'])}" for row in rows if row["name"] != "inconsistency"]
        what = "Its robustness figures mean" if rows[0]["own"] else "Differences from it mean"
        text = f"{'; '.join([rows[0]['collapsed'], *accuracy])}. {what} nothing."
    else:
        text = "; ".join(_clause(row) for row in rows) + "."
        if rows[0]["untrained"] > 0:
            text += f" {rows[0]['untrained']:.0f} of the models behind this did not train."
    return text[0].upper() + text[1:]


def short(rows: list[dict[str, Any]]) -> str:
    """Return how an arm of a task reads in a few words."""
    if rows[0]["collapsed"]:
        return "collapsed" if rows[0]["own"] else "control collapsed"
    parts = []
    for row in rows:
        if row["name"] == "inconsistency":
            shown = row["verdict"].replace("no difference shown", "no difference in consistency shown")
            parts.append(shown if "consisten" in shown else f"inconsistency {shown}")
        else:
            parts.append(f"{row['metric']}: {row['verdict']}")
    return "; ".join(parts)


def summary(arm: str, control: str, claims: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """Return one sentence on an arm over all tasks and encoders, from (name of the case, its readings)."""
    parts = []
    for accuracy in (False, True):
        cases: dict[str, list[str]] = {}
        for name, rows in claims:
            for row in rows:
                if (row["name"] != "inconsistency") == accuracy and not row["collapsed"]:
                    cases.setdefault(row["verdict"].split(":")[0], []).append(name)
        what = "accuracy" if accuracy else "consistency"
        for verdict_, names in cases.items():
            subject = "" if "consisten" in verdict_ else f"{what} "
            if verdict_ == "no difference shown":
                subject, verdict_ = "", f"no difference in {what} shown"
            parts.append(f"{subject}{verdict_} in {_listed(names, len(claims))}")
    for what in ("collapsed", "control collapsed"):
        if names := [name for name, rows in claims if short(rows) == what]:
            parts.append(f"{what} in {_listed(names, len(claims))}")
    return f"{arm} against {control}: {'; '.join(parts)}."


def adjust(readings: list[dict[str, Any]]) -> None:
    """Add `holm` to readings of several tasks and encoders: p adjusted over all of them, by arm and metric.

    A difference whose adjusted p is not below 1 - level, or that has no p, is named no more, whatever its interval.
    """
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in readings:
        families.setdefault((row["arm"], row["name"] == "inconsistency"), []).append(row)
    for rows in families.values():
        for row, adjusted in zip(rows, comparing.holm([row["p"] for row in rows]), strict=True):
            row["holm"], row["family"] = float(adjusted), len(rows)
            if not adjusted < row["alpha"] and not row["verdict"].startswith("no"):
                row["verdict"] = "no difference shown"
                if not row["collapsed"]:
                    row["reads"] = f"no difference shown: {ONLY_INTERVAL}"


def p_text(p: float) -> str:
    """Return `0.012`, or `< 0.001`."""
    if not math.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value(metrics: pd.DataFrame, arm: str, metric: str, scope: str = "pooled") -> float:
    """Return the mean over seeds of a metric, NaN where there is none."""
    rows = _select(metrics, arm, metric, scope)
    rows = rows[rows["seed"] == evaluation.MEAN]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan


def seed_spread(metrics: pd.DataFrame, arm: str, metric: str) -> float:
    """Return the SD (1/(n-1)) of a metric over seeds, NaN with fewer than two."""
    rows = _select(metrics, arm, metric, "pooled")
    return float(rows.loc[rows["seed"] != evaluation.MEAN, "value"].std())


def _listed(names: list[str], total: int) -> str:
    if total > 4:
        return f"{len(names)} of {total}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _clause(row: dict[str, Any]) -> str:
    if not math.isfinite(row["difference"]):
        return f"{row['metric']} {row['verdict']}"
    change = number(row["difference"], sign=True)
    numbers = f"{number(row['ours'])} against {number(row['theirs'])}, change {change}"
    limits = f"{row['level']} interval {interval(row['low'], row['high'], sign=True)}"
    shown = row["verdict"] if row["verdict"].startswith("no ") else f"{row['verdict']}, the interval excludes 0"
    if ONLY_INTERVAL in row["reads"]:
        shown += f" ({ONLY_INTERVAL})"
    if "spread over seeds" in row["reads"]:
        shown += ", but the change is smaller than the spread over seeds"
    if math.isfinite(row.get("holm", math.nan)):
        limits += f", p {'' if row['holm'] < 0.001 else '= '}{p_text(row['holm'])}"
    return f"{row['metric']} {numbers} ({limits}): {shown}"


def _select(metrics: pd.DataFrame, arm: str, metric: str, scope: str) -> pd.DataFrame:
    return metrics[(metrics["arm"] == arm) & (metrics["metric"] == metric) & (metrics["scope"] == scope)]
