"""The part of the report on what is known before training: features by encoder, and the label in the metadata."""

import math
from typing import Any

import pandas as pd

from isoslide import score_figures, wording
from isoslide.run import FEATURE_TITLES, Draw, Drawing, Run

GUESS = 0.5


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
