"""What a report is written from: the tables of a run, read once, and the names and orders that all its parts share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from isoslide.measures import MAIN

FEATURE_TITLES = {
    "top1": "same place found first",
    "top10": "same place among the first ten",
    "same_cosine": "cosine of the same place on two scanners",
    "other_cosine": "cosine of tiles of two patients on two scanners",
    "scanner_probe": "scanner told from one tile (balanced accuracy)",
    "robustness_index": "robustness index",
    "mari": "MaRI",
    "croma": "CRoMa",
}
"""Metrics of the table that evaluate_features.py writes, in the order of the page."""


@dataclass
class Result:
    """The tables of one task and encoder; predictions, models, curves, tile embeddings and their maps by arm."""

    task: str
    encoder: str
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    models: dict[str, pd.DataFrame] = field(default_factory=dict)
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    thresholds: pd.DataFrame | None = None
    embeddings: dict[str, pd.DataFrame] = field(default_factory=dict)
    embedding_maps: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass
class Features:
    """What is known of an encoder before training: table of metrics, map of tiles, what the features were made with."""

    metrics: pd.DataFrame
    map: pd.DataFrame
    facts: dict[str, Any]


@dataclass
class Run:
    """Everything a report is written from.

    Attributes:
        config: the whole configuration, with defaults.
        sheet: the sample sheet.
        stages: status table of each stage by its name, in order.
        splits: split table by task.
        results: one for each task and encoder.
        tissue: folder of the tissue overlays.
        registrations: folder of the checkerboard pictures.
        notes: lines of the banner.
        features: by encoder.
        metadata: table of the metadata-only models by task.
    """

    config: dict[str, Any]
    sheet: pd.DataFrame
    stages: dict[str, pd.DataFrame]
    splits: dict[str, pd.DataFrame]
    results: list[Result]
    tissue: Path | None = None
    registrations: Path | None = None
    notes: list[str] = field(default_factory=list)
    features: dict[str, Features] = field(default_factory=dict)
    metadata: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG and PDF, with the table it was drawn from and what it shows."""

    name: str
    svg: str
    pdf: bytes
    table: pd.DataFrame
    caption: str


Draw = Callable[[str, Figure, pd.DataFrame, str], Drawing]
"""Keeps a figure under a name with its data and caption, and returns it as a drawing."""


def arms_of(run: Run, result: Result) -> list[str]:
    """Return the arms of a result in the order of the configuration."""
    present = list(result.metrics["arm"].drop_duplicates())
    return [arm for arm in run.config["arms"] if arm in present] + [a for a in present if a not in run.config["arms"]]


def robust_arms(run: Run) -> list[str]:
    """Return the arms with a robustness loss; where there is none, all but the control."""
    arms = run.config["arms"]
    chosen = [name for name, arm in arms.items() if arm.get("embedding_weight", 0) or arm.get("score_weight", 0)]
    return chosen or [name for name in arms if name != run.config["control"]]


def main_metric(run: Run, result: Result) -> str:
    """Return the name of the accuracy metric of a result: auc or c_index."""
    return MAIN[run.config["tasks"][result.task]["type"]]


def case_name(run: Run, task: str, encoder: str) -> str:
    """Return the task, with the encoder where there are several."""
    return f"{task} ({encoder})" if len({result.encoder for result in run.results}) > 1 else task
