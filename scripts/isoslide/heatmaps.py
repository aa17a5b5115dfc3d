"""Heatmaps: where on a scan the models look, and what each tile alone would say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from isoslide import aggregators, atomic, grid, models
from isoslide.slide import Slide

LONG_SIDE_PX = 900
OPACITY = 0.55


@dataclass(frozen=True)
class TileValues:
    """What the models of an ensemble make of the tiles of one scan, means over the models.

    Attributes:
        attention: (n,) share of the bag times n, so that 1 is what every tile would get if all were alike.
        p: (n,) probability of class 1 for a bag of that tile alone.
        bag: probability of class 1 of the whole scan.
    """

    attention: np.ndarray
    p: np.ndarray
    bag: float


def tile_values(paths: Sequence[str], features: np.ndarray, scanner: str | None = None) -> TileValues:
    """Return the values of the tiles of a scan, from its features (n, dim), the models' files and its scanner."""
    loaded = [models.load(path, scanner) for path in paths]
    state, shape = models.stack([state for state, _ in loaded]), loaded[0][1]
    x = torch.from_numpy(features).float()
    with torch.inference_mode():
        attention, tile_logits = aggregators.tile_values(state, shape, x)
        bag_logits = aggregators.predict(state, shape, x, [len(x)])
    return TileValues(
        attention=attention.mean(0).numpy() * len(x),
        p=_probability(tile_logits).mean(0).numpy(),
        bag=float(_probability(bag_logits).mean()),
    )


def draw(slide: Slide, tiles: grid.Tiles, values: TileValues, title: str) -> Figure:
    """Return a figure of three panels: the scan, attention, and the probability of each tile alone."""
    um_per_px = max(max(slide.size_um) / LONG_SIDE_PX, min(slide.mpp))
    overview = slide.overview(um_per_px)
    corners = outlines(tiles) / um_per_px
    limit = max(2.0, float(np.quantile(values.attention, 0.99)))
    panels = [
        ("scan", None, None, None),
        ("attention (1 = as all tiles)", values.attention, "cividis", Normalize(0, limit)),
        ("probability, tile alone", values.p, "RdBu_r", TwoSlopeNorm(0.5, 0, 1)),
    ]
    height, width = overview.shape[:2]
    figure = Figure(figsize=(13.5, 1.2 + 4.2 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, (name, numbers, colours, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        image = overview if numbers is None else paint(overview, corners, scale(numbers), colours)
        axes.imshow(image)
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
        if numbers is not None:
            figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.7)
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


def _probability(logits: torch.Tensor) -> torch.Tensor:
    logits = logits.double()
    return (logits[..., 1] - logits[..., 0]).sigmoid()
