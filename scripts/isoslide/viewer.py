"""The page to look at a slide: what the models make of its tiles, over a deep-zoom picture; opens without a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm, to_hex

from isoslide import grid, heatmaps, pyramid
from isoslide.tile_values import TileValues

TEMPLATES = Path(__file__).parent / "page"
SHADES = 64  # of each row of colours


@dataclass(frozen=True)
class Model:
    """What an arm makes of the scan: names, where its tiles are listed, its values; or why there are none."""

    task: str
    encoder: str
    arm: str
    view: str = ""
    values: TileValues | None = None
    n_models: int = 0
    reason: str = ""


def render(
    scan: Mapping[str, str],
    folder: str,
    levels: Sequence[pyramid.Level],
    views: Mapping[str, grid.Tiles],
    models: Sequence[Model],
) -> str:
    """Return the page.

    Args:
        scan: its `scan`, `scanner` and `specimen`.
        folder: of the pictures, relative to the page.
        levels: of the pyramid.
        views: the tiles by name of their view.
        models: in the order of the choice.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = [model for model in models if model.values is not None]
    fine = levels[-1].um_per_px
    data = {
        "folder": quote(folder),
        "tile": pyramid.TILE_PX,
        "um": fine,
        "levels": [level.size for level in levels],
        "views": {name: corners(tiles, fine) for name, tiles in views.items()},
        "ids": {name: tiles.tile_ids[~tiles.out_of_bounds].tolist() for name, tiles in views.items()},
        "models": [_model(model) for model in shown],
        "colours": {name: _shades(name) for name in ("cividis", "RdBu_r")},
    }
    missing = [model for model in models if model.values is None]
    return environment.get_template("viewer.html.j2").render(scan=scan, data=data, models=shown, missing=missing)


def corners(tiles: grid.Tiles, um_per_px: float) -> list[list[float]]:
    """Return the corners of the tiles inside the scan, eight numbers each, in pixels of the finest level, to 0.01."""
    places = heatmaps.outlines(tiles) / um_per_px
    return np.round(places.reshape(len(places), 8), 2).tolist()


def _model(model: Model) -> dict[str, Any]:
    layers = []
    for panel in heatmaps.panels(model.values):
        layer = {"name": panel.name, "title": panel.title, "colours": panel.colours, "values": None}
        if panel.numbers is not None:
            layer |= {"values": [float(f"{value:.4g}") for value in panel.numbers], "ends": _ends(panel.scale)}
        layers.append(layer)
    return {"view": model.view, "layers": layers}


def _ends(scale: Normalize) -> list[float]:
    """Return what the first, the middle and the last colour stand for."""
    middle = scale.vcenter if isinstance(scale, TwoSlopeNorm) else (scale.vmin + scale.vmax) / 2
    return [float(f"{value:.6g}") for value in (scale.vmin, middle, scale.vmax)]


def _shades(name: str) -> list[str]:
    return [to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, SHADES))]
