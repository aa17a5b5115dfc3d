"""The parts of the report on features by encoder, tile embeddings of trained models, and the label in the metadata."""

import math
from typing import Any

import pandas as pd

from isoslide import score_figures, wording
from isoslide.run import FEATURE_TITLES, Draw, Drawing, Result, Run, arms_of, robust_arms

GUESS = 0.5
DRAWN = {"scanner_probe": "← better", "top1": "better →", "robustness_index": "better →"}
"""Measures of tile embeddings that are drawn, and which way is better."""


def feature_part(run: Run, draw: Draw) -> dict[str, Any] | None:
    """Return the numbers of every encoder side by side, its maps, and the numbers by pair of scanners."""
    if not run.features:
        return None
    encoders = list(run.features)
    tables = {name: run.features[name].metrics.set_index(["metric", "scope"]) for name in encoders}
    keys = dict.fromkeys(key for table in tables.values() for key in table.index)
    order = list(FEATURE_TITLES)
    rows = []
    for metric, scope in sorted(keys, key=lambda key: order.index(key[0])):
        if not scope.startswith("pair:"):
            title = FEATURE_TITLES[metric] + ("" if scope == "pooled" else f", {scope}")
            rows.append({"title": title, "cells": [_cell(tables[name], (metric, scope)) for name in encoders]})
    return {
        "encoders": encoders,
        "rows": rows,
        "pairs": [row for name in encoders for row in _pairs(name, run.features[name].metrics)],
        "maps": [_maps(run, name, draw) for name in encoders],
        "facts": [{"encoder": name} | run.features[name].facts for name in encoders],
    }


def _cell(table: pd.DataFrame, key: tuple[str, str]) -> dict[str, Any] | None:
    return table.loc[key].to_dict() if key in table.index else None


def _pairs(encoder: str, metrics: pd.DataFrame) -> list[dict[str, Any]]:
    pairs = metrics[metrics["scope"].str.startswith("pair:")]
    table = pairs.pivot_table(index="scope", columns="metric", values="value", dropna=False)
    return [
        {"encoder": encoder, "pair": scope.removeprefix("pair:")} | values
        for scope, values in zip(table.index, table.to_dict("records"), strict=True)
    ]


def _maps(run: Run, encoder: str, draw: Draw) -> list[Drawing]:
    """Return the map of an encoder coloured by scanner and by the class of each task."""
    tiles = run.features[encoder].map
    if tiles.empty:
        return []
    drawings = []
    for column in ("scanner", *(task for task in run.config["tasks"] if task in tiles)):
        rows = tiles[tiles[column] != ""]
        if rows.empty:
            continue
        figure = score_figures.embedding_map(rows, column, f"{encoder}: {column}")
        caption = f"A mark is a tile ({len(rows)} of a sample), placed near tiles with like features (t-SNE)."
        drawings.append(draw(f"features-{encoder}-{column}", figure, rows, caption))
    return drawings


def embedding_part(run: Run, result: Result, prefix: str, draw: Draw) -> dict[str, Any] | None:
    """Return the measures of every arm's tile embeddings beside those of the features, drawn, and maps of both."""
    arms = [arm for arm in arms_of(run, result) if len(result.embeddings.get(arm, ()))]
    if not arms:
        return None
    table = pd.concat([result.embeddings[arm].assign(arm=arm) for arm in arms])
    cells = table.set_index(["metric", "arm"])
    rows = [
        {
            "title": title,
            "cells": [cells.loc[(name, arm)].to_dict() if (name, arm) in cells.index else None for arm in arms],
        }
        for name, title in FEATURE_TITLES.items()
        if name in set(table["metric"])
    ]
    drawings = []
    for name, better in DRAWN.items():
        ours = table[table["metric"] == name]
        if ours["after"].notna().any():
            title = FEATURE_TITLES[name].split(" (")[0]
            figure = score_figures.before_after(ours, arms_of(run, result), run.config["control"], title, better)
            drawings.append(draw(f"{prefix}-embedding-{name}", figure, ours, "Hollow: features; filled: embeddings."))
    return {"arms": arms, "rows": rows, "figures": drawings, "maps": _embedding_maps(run, result, arms, prefix, draw)}


def _embedding_maps(run: Run, result: Result, arms: list[str], prefix: str, draw: Draw) -> list[list[Drawing]]:
    """Return rows of maps, one by scanner, one by class: features, embeddings of the control and of a robust arm."""
    control = run.config["control"]
    shown = [arm for arm in dict.fromkeys([control, *_both_losses(run)]) if len(result.embedding_maps.get(arm, ()))][:2]
    if not shown:
        return []
    panels = [("features", shown[0], "before"), *((arm, arm, "after") for arm in shown)]
    found = []
    for column in ("scanner", "class"):
        row = []
        for name, arm, stage in panels:
            tiles = result.embedding_maps[arm]
            tiles = tiles[(tiles["stage"] == stage) & (tiles[column] != "")]
            if tiles.empty:
                continue
            title = f"{name}, by {column}" if stage == "before" else f"embeddings of {name}, by {column}"
            figure = score_figures.embedding_map(tiles, column, title)
            caption = f"{len(tiles)} tiles of test specimens of fold {tiles['fold'].iloc[0]} (t-SNE)."
            row.append(draw(f"{prefix}-embedding-map-{name}-{column}", figure, tiles, caption))
        found.append(row)
    return found


def _both_losses(run: Run) -> list[str]:
    """Return the arms with both robustness losses first, then those with one."""
    arms = run.config["arms"]
    both = [name for name, arm in arms.items() if arm.get("embedding_weight") and arm.get("score_weight")]
    return [*both, *robust_arms(run)]


def metadata_part(run: Run, task: str) -> dict[str, Any] | None:
    """Return the table of the metadata-only models of a task, and what it says in words."""
    table = run.metadata.get(task)
    if table is None or table.empty:
        return None
    rows = table.to_dict("records")
    return {"rows": rows, "tied": any(row["low"] > GUESS for row in rows), "text": metadata_text(task, rows)}


def metadata_text(task: str, rows: list[dict[str, Any]]) -> str:
    """Return one or two sentences: can the label be told from facts about the scan?"""
    known = [row for row in rows if math.isfinite(row["value"])]
    if not known:
        return f"Whether facts about the scan tell {task} could not be measured: {rows[0]['reason']}."
    tied = [row for row in known if row["low"] > GUESS]
    if not tied:
        return f"Facts about the scan alone do not tell {task}: no interval lies above 0.5."
    best = max(tied, key=lambda row: row["low"])
    limits = wording.interval(best["low"], best["high"])
    return (
        f"A model that never sees the tissue tells {task} from {best['predictors']} with an AUC of "
        f"{wording.number(best['value'], 2)} ({limits}). An image model can score well in training by recognising the "
        f"same; its accuracy on scanners and sites where the tie is absent may then be lower."
    )
