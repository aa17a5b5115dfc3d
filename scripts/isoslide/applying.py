"""Scores of new scans by a model folder: one row per scan, whatever became of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoslide import bags, model_folder, outcomes, ranges, scoring, status, summaries

COLUMNS = ("scan", "status", "reason", "specimen", "scanner", "n_tiles", "p", "p_sd", "p_low", "p_high")
AFTER = ("decision", "out_of_range", "range_reasons", "distance")
RISKS = ("lower risk", "higher risk")


def members(folder: str | Path, card: Mapping[str, Any]) -> list[scoring.Member]:
    """Return the models of a folder."""
    settings = {"settings": {"task": card["task"]["settings"]}}
    return [scoring.member(Path(folder, one["file"]), one | settings) for one in card["models"]]


def apply(
    folder: str | Path, card: Mapping[str, Any], table_path: str, slides: Sequence[pd.DataFrame], memory_gb: float = 4
) -> pd.DataFrame:
    """Return a row per scan of a features table: status, scores, decision, and whether it lies outside the range.

    Args:
        folder: of the models.
        card: its card.
        table_path: status table of the features.
        slides: status tables of checks and tissue; none where features were imported.
        memory_gb: features above this size stay in their files.

    Raises:
        FolderError: features of other weights, tiles or length than those of the training.
        SummaryError: features that do not go together.
    """
    table = status.read(table_path)
    rows = table[["scan", "status", "reason", "specimen", "scanner", "n_tiles"]].copy()
    good = rows.loc[rows["status"] == status.OK, "scan"].tolist()
    if not good:
        return rows.reindex(columns=[*COLUMNS, *AFTER])
    short = summaries.summarise(table_path)
    model_folder.check_tiles(folder, card, short.origin)
    model_folder.check_weights(folder, card, str(short.origin.get("weights_sha256", "")))
    model_folder.check_dim(folder, card, short.means.shape[1])
    features = bags.load(table_path, short.scans, memory_gb)
    scans = np.array([features.index[scan] for scan in short.scans], dtype=np.int64)
    own = rows.set_index("scan").loc[short.scans]
    ensemble = members(folder, card)
    logits = scoring.logits(ensemble, features.tensor(), features, scans, own["scanner"].to_numpy(str))
    each = scoring.columns(ensemble, logits)
    scores = scoring.ensemble(_centred(each, card), card["task"]["settings"])
    found = pd.DataFrame(scores, index=own.index).drop(columns="predicted", errors="ignore")
    found["decision"] = decisions(scores, card)
    found = found.join(outside(own, short, slides, ranges.read(Path(folder, model_folder.RANGE))))
    joined = rows.join(found, on="scan")
    classes = [name for name in joined if name.startswith("p_") and name not in COLUMNS]
    return joined[[*COLUMNS, *classes, *AFTER]]


def decisions(scores: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> list[str]:
    """Return what each scan counts as: a class, or a risk group; nothing where the task or the card has no cut."""
    task, names, cut = card["task"]["settings"], card["task"]["classes"], card["threshold"]["value"]
    if outcomes.kind_of(task) == "multiclass":
        return [names[index] for index in scores["predicted"]]
    if cut is None:
        return [""] * len(scores["p"])
    below, above = names if task["type"] == "binary" else RISKS
    return [above if p >= cut else below for p in scores["p"]]


def outside(
    rows: pd.DataFrame, short: summaries.Summaries, slides: Sequence[pd.DataFrame], found: ranges.Range
) -> pd.DataFrame:
    """Return out_of_range (yes or no), range_reasons and distance of scans, by scan.

    Args:
        rows: scanner, by scan.
        short: features of these scans, in the same order.
        slides: status tables that say more of the scans; absent cells are not judged.
        found: the training range.
    """
    known = rows[["scanner"]]
    for table in slides:
        known = known.join(table.set_index("scan")[[name for name in ranges.SLIDE_COLUMNS if name in table]])
    distances = ranges.distances(short.means, found)
    reasons = [
        ranges.reasons(row, distance, found)
        for row, distance in zip(known.fillna("").to_dict("records"), distances, strict=True)
    ]
    return pd.DataFrame(
        {
            "out_of_range": ["yes" if words else "no" for words in reasons],
            "range_reasons": ["; ".join(words) for words in reasons],
            "distance": distances,
        },
        index=rows.index,
    )


def _centred(each: Sequence[Mapping[str, np.ndarray]], card: Mapping[str, Any]) -> list[Mapping[str, np.ndarray]]:
    """Return the models' columns; of a Cox task, where each model's risk has a zero of its own, moved to one threshold.

    That leaves the mean over the models as it is, and their spread is that of their opinions on the scan.
    """
    cuts = [one["threshold"] for one in card["models"]]
    if outcomes.kind_of(card["task"]["settings"]) != "cox" or None in cuts:
        return list(each)
    middle = float(np.mean(cuts))
    return [{"p": one["p"] - cut + middle} for one, cut in zip(each, cuts, strict=True)]
