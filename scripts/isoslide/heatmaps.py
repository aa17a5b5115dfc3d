"""Heatmaps: where on a scan the models look, what each tile adds to its score, and what each tile alone would say."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from isoslide import atomic, grid
from isoslide.slide import Slide
from isoslide.tile_values import TileValues

LONG_SIDE_PX = 900
OPACITY = 0.55


@dataclass(frozen=True)
class Panel:
    """A layer of numbers on the scan: its name and title, the numbers (n,), and how they are coloured.

    `numbers` is None where they do not exist; the title then says why.
    """

    name: str
    title: str
    numbers: np.ndarray | None
    colours: str
    scale: Normalize


def panels(values: TileValues) -> list[Panel]:
    """Return the layers of a scan: attention, contribution, and the score of each tile alone."""
    limit = max(2.0, float(np.quantile(values.attention, 0.99)))
    if values.contribution is None:
        contribution = Panel(
            "contribution", f"contribution not available:\n{values.no_contribution}", None, "", Normalize()
        )
    else:
        reach = float(np.quantile(np.abs(values.contribution), 0.99)) or 1.0
        title = f"contribution; all tiles together: {values.total_meaning} {values.total:+.3f}"
        contribution = Panel("contribution", title, values.contribution, "RdBu_r", TwoSlopeNorm(0, -reach, reach))
    return [
        Panel("attention", "attention (1 = as all tiles)", values.attention, "cividis", Normalize(0, limit)),
        contribution,
        Panel("score", f"{values.meaning}, tile alone", values.p, "RdBu_r", _scale(values)),
    ]


def draw(slide: Slide, tiles: grid.Tiles, values: TileValues, title: str) -> Figure:
    """Return a figure of four panels: the scan, attention, contribution, and the score of each tile alone."""
    um_per_px = max(max(slide.size_um) / LONG_SIDE_PX, min(slide.mpp))
    overview = slide.overview(um_per_px)
    corners = outlines(tiles) / um_per_px
    height, width = overview.shape[:2]
    columns = 4 if height > width else 2
    figure = Figure(
        figsize=(13.5, 0.6 + 4 / columns * (0.4 + (13.5 / columns - 1.1) * height / width)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    first, *others = figure.subplots(4 // columns, columns).flat
    first.imshow(overview)
    first.set_title("scan", fontsize=10)
    first.set_axis_off()
    for axes, panel in zip(others, panels(values), strict=True):
        axes.set_title(panel.title, fontsize=10)
        axes.set_axis_off()
        if panel.numbers is None:
            axes.imshow(overview)
            continue
        axes.imshow(paint(overview, corners, panel.scale(panel.numbers), panel.colours))
        figure.colorbar(ScalarMappable(panel.scale, panel.colours), ax=axes, shrink=0.7)
    return figure


def outlines(tiles: grid.Tiles) -> np.ndarray:
    """Return the corners (n, 4, 2) of the tiles inside the scan, in its µm, in the order of a features file."""
    side = tiles.attrs["tile_px"] * tiles.attrs["mpp"]
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side
    inside = ~tiles.out_of_bounds
    return grid.carry(tiles.maps[inside], tiles.corners_um[inside][:, None] + square)


def paint(overview: np.ndarray, corners: np.ndarray, values: np.ndarray, colours: str) -> np.ndarray:
    """Return the overview with each tile (n, 4, 2, in pixels) tinted by its value (n,) between 0 and 1.

    Tiles are placed by their coordinates, to a sixteenth of a pixel, never by their place in a grid.
    """
    shift = 4
    layer = overview.copy()
    rgb = (matplotlib.colormaps[colours](np.clip(values, 0, 1))[:, :3] * 255).round()
    for polygon, colour in zip(corners, rgb, strict=True):
        points = np.round((polygon - 0.5) * 2**shift).astype(np.int32)  # cv2 counts from pixel centres
        cv2.fillConvexPoly(layer, points, colour.tolist(), shift=shift)
    return cv2.addWeighted(layer, OPACITY, overview, 1 - OPACITY, 0)


def write(path: str | Path, figure: Figure) -> None:
    """Write the picture; equal figures give equal bytes."""
    with atomic.output(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None} if temporary.suffix == ".png" else None)


def _scale(values: TileValues) -> Normalize:
    """Return colours around 0.5, or around the whole scan's value and as far to both sides as the tiles reach."""
    if values.bounded:
        return TwoSlopeNorm(0.5, 0, 1)
    reach = float(np.abs(values.p - values.bag).max()) or 1.0
    return TwoSlopeNorm(values.bag, values.bag - reach, values.bag + reach)
