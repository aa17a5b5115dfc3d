"""The values of a scan's tiles as files: a table, and objects with measurements that QuPath opens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoslide import atomic, geojson, grid
from isoslide.tile_values import TileValues

COLUMNS = ("tile_id", "x", "y", "attention", "contribution", "score")
MEASUREMENTS = COLUMNS[3:]


def table(tiles: grid.Tiles, values: TileValues) -> pd.DataFrame:
    """Return a row per tile inside the scan: its id, `coords` (level-0 px) and values; NaN for no contribution.

    In a multiclass task there are also `p_0`, `p_1`, …: the probability of each class, tile alone.
    """
    inside = ~tiles.out_of_bounds
    x, y = tiles.coords[inside].T
    added = np.full(len(x), np.nan) if values.contribution is None else values.contribution
    columns = (tiles.tile_ids[inside], x, y, values.attention, added, values.p)
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)) | dict(values.classes))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that was written of `table`."""
    return pd.read_csv(path, sep="\t", dtype={"tile_id": np.int64})


def values(rows: pd.DataFrame, known: Mapping[str, str]) -> TileValues:
    """Return the values that a table was written of, to its digits; `known` is the scan's row in the status table."""
    added = None if known["no_contribution"] else rows["contribution"].to_numpy()
    return TileValues(
        attention=rows["attention"].to_numpy(),
        p=rows["score"].to_numpy(),
        bag=float(known["p"]),
        contribution=added,
        total=float(known["total"] or "nan"),
        meaning=known["meaning"],
        total_meaning=known["total_meaning"],
        bounded=known["bounded"] == "True",
        no_contribution=known["no_contribution"],
    )


def write_geojson(path: str | Path, rows: pd.DataFrame, corners: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Write tiles as objects of the type `tile` with measurements, as QuPath 0.4 and later save them; one a line.

    Args:
        path: of the file; equal input gives equal bytes.
        rows: of `table`.
        corners: (n, 4, 2) of the same tiles, in level-0 px; they are rounded to 0.01 px.
        facts: what the file is of; kept in the member `isoslide`, which QuPath passes over.
    """
    lines = []
    for row, polygon in zip(rows.to_dict("records"), np.round(corners, 2).tolist(), strict=True):
        numbers = {name: float(f"{row[name]:.6g}") for name in MEASUREMENTS if np.isfinite(row[name])}
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*polygon, polygon[0]]]},
            "properties": {"objectType": "tile", "name": str(row["tile_id"]), "measurements": numbers},
        }
        lines.append(_dumps(feature))
    member = _dumps({**facts, "unit": "level-0 px"})
    body = ",\n".join(lines)
    text = f'{{"type":"FeatureCollection","{geojson.MEMBER}":{member},"features":[\n{body}\n]}}\n'
    atomic.write_text(path, text)


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
