"""Cards of model folders: what was trained on what, how well it does, what it is for, and what it is not."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from isoslide import __version__, outcomes
from isoslide.thresholds import RULES

MEAN = "mean"  # seed of the rows of a metrics table that are of all models
PACKAGES = ("torch", "numpy", "safetensors", "onnx")
SCORES = {
    "binary": "probability of class {positive!r}, mean over the models",
    "classes": "probability of poor outcome, mean over the models",
    "multiclass": "probability of the class with the largest mean over the models; p_0, p_1, … of all classes",
    "regression": "predicted value in the unit of the label, mean over the models",
    "cox": "risk between 0 and 1, logistic function of the log risk, mean over the models; only its order counts",
    "hazard": "risk between 0 and 1, 1 less the mean probability to reach the end of each interval without the event",
}
INTENDED_USE = (
    "Research: scores of slides that were stained, scanned and selected as those of the training cohort were. Check "
    "the models on scans of your own with known outcomes before any number is believed."
)
LIMITS = (
    "Research software, not a medical device; not for decisions about patients.",
    "The metrics are those of the models one by one on test patients of their fold, averaged. All folds together have "
    "seen every patient but those kept for tests alone, so the ensemble's own accuracy is not known from this cohort.",
    "Agreement between scanners was measured for the scanners named under the cohort; another scanner, stain protocol, "
    "organ or laboratory may shift the scores. The table of `apply` flags scans outside the training range, which is a "
    "warning where it speaks and no promise where it is silent.",
    "The spread over the models tells how far they disagree; it is not an interval that holds the truth with a known "
    "probability.",
)
NO_PATHOLOGY = "The encoder is not a pathology model: scores show that the method runs, and say nothing about patients."


def training_rows(splits: pd.DataFrame, arm: Mapping[str, Any], scans: Sequence[str]) -> pd.DataFrame:
    """Return a row per scan that trained in some fold.

    Args:
        splits: split table as text.
        arm: block of the config.
        scans: that have features.
    """
    rows = splits[(splits["role"] == "train") & splits["scan"].isin(set(scans))]
    if "scanner" in arm:
        rows = rows[rows["scanner"] == arm["scanner"]]
    return rows.drop_duplicates("scan").sort_values("scan").reset_index(drop=True)


def cohort(rows: pd.DataFrame, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return who trained: counts, scans of each scanner, and the outcomes of the specimens."""
    specimens = rows.drop_duplicates("specimen")
    found: dict[str, Any] = {
        "patients": rows["patient"].nunique(),
        "specimens": len(specimens),
        "scans": len(rows),
        "scans_by_scanner": _counts(rows["scanner"]),
    }
    if outcomes.kind_of(task) == "regression":
        values = specimens["label"].astype(float)
        summary = {"mean": values.mean(), "sd": values.std(ddof=0), "min": values.min(), "max": values.max()}
        return found | {"labels": {name: float(value) for name, value in summary.items()}}
    found["specimens_by_class"] = _counts(specimens.loc[specimens["class"] != "", "class"])
    if task["type"] == "survival":
        times = specimens["time"].astype(float)
        found["events"] = int(specimens["event"].astype(float).sum())
        found["times"] = {"median": float(times.median()), "min": float(times.min()), "max": float(times.max())}
    return found


def class_names(splits: pd.DataFrame, task: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes in the order of their index; none in tasks without."""
    if outcomes.kind_of(task) not in ("binary", "classes", "multiclass"):
        return []
    names = splits[splits["label"] != ""].drop_duplicates("label")
    return list(names.sort_values("label", key=lambda label: label.astype(int))["class"])


def thresholds(cuts: pd.DataFrame, arm: str, models: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Return the threshold that each model got on its tuning scans.

    Args:
        cuts: table of thresholds, as text.
        arm: name.
        models: with fold and seed.
    """
    own = cuts[cuts["arm"] == arm]
    found = {(row.fold, row.seed): _number(row.threshold) for row in own.itertuples()}
    return [found.get((str(one["fold"]), str(one["seed"]))) for one in models]


def threshold(cuts: Sequence[float | None], task: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the ensemble's score is cut: at the mean of the thresholds of its models.

    The mean score is at least the mean threshold just where the models, on average, are at or above their own; with a
    model that has none there is no such cut.
    """
    known = [cut for cut in cuts if cut is not None]
    value = float(np.mean(known)) if known and len(known) == len(cuts) else None
    return {"value": value, "rule": RULES.get(task["type"], ""), "n_models": len(known)}


def metrics(table: pd.DataFrame, arm: str) -> list[dict[str, Any]]:
    """Return the arm's metrics over its models with their intervals, of all scopes that have a value."""
    own = table[(table["arm"] == arm) & (table["seed"] == MEAN) & (table["value"] != "")]
    return [
        {"metric": row["metric"], "scope": row["scope"]}
        | {name: _number(row[name]) for name in ("value", "low", "high", "n")}
        for row in own.to_dict("records")
    ]


def score_meaning(task: Mapping[str, Any]) -> str:
    """Return what the score `p` of the task is."""
    return SCORES[outcomes.kind_of(task)].format(positive=task.get("positive", ""))


def limits(pathology: bool) -> list[str]:
    """Return what the models are not for, in words."""
    return list(LIMITS) if pathology else [*LIMITS, NO_PATHOLOGY]


def versions() -> dict[str, str]:
    """Return the versions of what made the folder."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"isoslide": __version__, "python": platform.python_version(), **found}


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(n) for name, n in values.value_counts().sort_index().items()}


def _number(text: str) -> float | None:
    return float(text) if text else None
