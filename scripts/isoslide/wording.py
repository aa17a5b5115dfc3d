"""What the numbers say, in words: one place that decides when a difference may be called one.

The rule: a difference is named only when its interval excludes 0; anything else is "no difference shown", which is not
"no difference". A collapsed arm is named as such and its robustness figures are never read.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from isoslide import evaluation
from isoslide.estimates import BY_NAME

MINUS = "−"


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
    for arm in pooled["arm"].drop_duplicates():
        collapsed = evaluation.is_collapsed(metrics, arm)
        for row in pooled[(pooled["arm"] == arm) & pooled["metric"].isin(names)].to_dict("records"):
            seeds = max(seed_spread(metrics, name, row["metric"]) for name in (arm, row["control"]))
            small = math.isfinite(seeds) and abs(row["difference"]) < seeds
            reads = verdict(row) + (f", and less than the spread over seeds ({number(seeds)})" if small else "")
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
                    "level": f"{100 * level:g} %",
                    "verdict": verdict(row),
                    "reads": f"means nothing: collapsed ({collapsed})" if collapsed else reads,
                    "collapsed": collapsed,
                }
            )
    return result


def sentence(rows: list[dict[str, Any]]) -> str:
    """Return one sentence in words for an arm of a task from its readings of inconsistency and accuracy."""
    collapsed = rows[0]["collapsed"]
    accuracy = next((row for row in rows if row["name"] != "inconsistency"), None)
    if collapsed:
        tail = f" ({accuracy['metric']} {number(accuracy['ours'])})" if accuracy else ""
        return f"collapsed, {collapsed}{tail}: its robustness figures mean nothing."
    return "; ".join(_clause(row) for row in rows) + "."


def value(metrics: pd.DataFrame, arm: str, metric: str, scope: str = "pooled") -> float:
    """Return the mean over seeds of a metric, NaN where there is none."""
    rows = _select(metrics, arm, metric, scope)
    rows = rows[rows["seed"] == evaluation.MEAN]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan


def seed_spread(metrics: pd.DataFrame, arm: str, metric: str) -> float:
    """Return the SD (1/(n-1)) of a metric over seeds, NaN with fewer than two."""
    rows = _select(metrics, arm, metric, "pooled")
    return float(rows.loc[rows["seed"] != evaluation.MEAN, "value"].std())


def _clause(row: dict[str, Any]) -> str:
    if not math.isfinite(row["difference"]):
        return f"{row['metric']} {row['verdict']}"
    change = number(row["difference"], sign=True)
    numbers = f"{number(row['ours'])} against {number(row['theirs'])}, change {change}"
    limits = f"{row['level']} interval {interval(row['low'], row['high'], sign=True)}"
    shown = row["verdict"] if row["verdict"].startswith("no ") else f"{row['verdict']}, the interval excludes 0"
    if "spread over seeds" in row["reads"]:
        shown += ", but the change is smaller than the spread over seeds"
    return f"{row['metric']} {numbers} ({limits}): {shown}"


def _select(metrics: pd.DataFrame, arm: str, metric: str, scope: str) -> pd.DataFrame:
    return metrics[(metrics["arm"] == arm) & (metrics["metric"] == metric) & (metrics["scope"] == scope)]
