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

from isoslide import aggregators, atomic, grid, models, outcomes, tasks
from isoslide.slide import Slide

MEANINGS = {
    "binary": "probability",
    "classes": "probability",
    "regression": "predicted value",
    "cox": "risk, 0 to 1",
    "hazard": "risk, 0 to 1",
}
LONG_SIDE_PX = 900
OPACITY = 0.55


@dataclass(frozen=True)
class TileValues:
    """What the models of an ensemble make of the tiles of one scan, means over the models.

    Attributes:
        attention: (n,) share of the bag times n, so that 1 is what every tile would get if all were alike.
        p: (n,) score for a bag of that tile alone: the column `p` of the predictions; in a multiclass task the
            probability of the class that the models, in the mean, give the whole scan.
        bag: the same of the whole scan.
        meaning: what the score is.
        bounded: whether it lies between 0 and 1.
    """

    attention: np.ndarray
    p: np.ndarray
    bag: float
    meaning: str = "probability"
    bounded: bool = True


def tile_values(paths: Sequence[str], features: np.ndarray, scanner: str | None = None) -> TileValues:
    """Return the values of the tiles of a scan, from its features (n, dim), the models' files and its scanner."""
    loaded = [models.load(path, scanner) for path in paths]
    state, shape = models.stack([state for state, _ in loaded]), loaded[0][1]
    x = torch.from_numpy(features).float()
    with torch.inference_mode():
        attention, tile_logits = aggregators.tile_values(state, shape, x)
        bag_logits = aggregators.predict(state, shape, x, [len(x)])
    tiles, bag = (_scores(paths, logits) for logits in (tile_logits, bag_logits))
    attention = attention.mean(0).numpy() * len(x)
    kind = outcomes.kind_of(models.card(Path(paths[0]))["settings"]["task"])
    if kind == "multiclass":
        index = max(range(shape.outputs), key=lambda one: bag[f"p_{one}"][0])
        column = f"p_{index}"
        return TileValues(attention, tiles[column], float(bag[column][0]), f"probability of class {index}")
    return TileValues(attention, tiles["p"], float(bag["p"][0]), MEANINGS[kind], kind != "regression")


def _scores(paths: Sequence[str], logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the columns of the predictions for n bags, means over the models, from logits (models, n, C)."""
    cards = [models.card(Path(path)) for path in paths]
    each = [
        tasks.columns(card["settings"]["task"], own, card["fitted"]) for card, own in zip(cards, logits, strict=True)
    ]
    return {name: np.mean([columns[name] for columns in each], axis=0) for name in each[0]}


def draw(slide: Slide, tiles: grid.Tiles, values: TileValues, title: str) -> Figure:
    """Return a figure of three panels: the scan, attention, and the score of each tile alone."""
    um_per_px = max(max(slide.size_um) / LONG_SIDE_PX, min(slide.mpp))
    overview = slide.overview(um_per_px)
    corners = outlines(tiles) / um_per_px
    limit = max(2.0, float(np.quantile(values.attention, 0.99)))
    panels = [
        ("scan", None, None, None),
        ("attention (1 = as all tiles)", values.attention, "cividis", Normalize(0, limit)),
        (f"{values.meaning}, tile alone", values.p, "RdBu_r", _scale(values)),
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


def _scale(values: TileValues) -> Normalize:
    """Return colours around 0.5, or around the whole scan's value and as far to both sides as the tiles reach."""
    if values.bounded:
        return TwoSlopeNorm(0.5, 0, 1)
    reach = float(np.abs(values.p - values.bag).max()) or 1.0
    return TwoSlopeNorm(values.bag, values.bag - reach, values.bag + reach)
