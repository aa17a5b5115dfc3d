"""Two scans of one specimen side by side: what each arm makes of the same tiles on two scanners, and the difference.

All panels are drawn in the frame of the specimen's grid, so the same place of the tissue stands at the same place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from isoslide import grid, heatmaps
from isoslide.slide import Slide

MARGIN_UM = 60.0
LONG_SIDE_PX = 700
DIFFERENCE_COLOURS = "PuOr"


@dataclass(frozen=True)
class Seen:
    """What an arm makes of the tiles that two scans have in common.

    Attributes:
        arm: its name.
        first: (n,) score of each tile alone on the first scan.
        second: (n,) the same on the second.
        bags: scores of the two whole scans.
    """

    arm: str
    first: np.ndarray
    second: np.ndarray
    bags: tuple[float, float]

    @property
    def difference(self) -> float:
        """Mean distance of the two scores of a tile."""
        return float(np.abs(self.second - self.first).mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the scores over the tiles of a scan, root mean square of the two scans."""
        return float(np.sqrt((self.first.var() + self.second.var()) / 2))


def pairs(scans: Sequence[str], specimens: pd.Series) -> list[tuple[str, str]]:
    """Return of each specimen its first named scan with each other named one; `specimens` is indexed by scan."""
    found: dict[str, list[str]] = {}
    for scan in scans:
        found.setdefault(specimens[scan], []).append(scan)
    return [(own[0], other) for own in found.values() for other in own[1:]]


def seen(arm: str, tables: tuple[pd.DataFrame, pd.DataFrame], column: str, bags: tuple[float, float]) -> Seen:
    """Return what an arm makes of the common tiles of two scans, from their tables (see `tile_objects.table`)."""
    first, second = (table.set_index("tile_id")[column] for table in tables)
    common = first.index.intersection(second.index)
    return Seen(arm, first[common].to_numpy(), second[common].to_numpy(), bags)


def draw(
    slides: tuple[Slide, Slide],
    tiles: tuple[grid.Tiles, grid.Tiles],
    arms: Sequence[Seen],
    names: tuple[str, str],
    meaning: str,
    title: str,
) -> Figure:
    """Return a figure with a row per arm: scores on the first scan, on the second, and the difference.

    Colours mean the same in every row, of the scores and of the differences.

    Args:
        slides: the two scans.
        tiles: their tiles, on one grid.
        arms: with the common tiles in the order of their ids.
        names: of the two scanners.
        meaning: what a score is.
        title: of the figure.
    """
    corners = common_corners(tiles)
    side = tiles[0].attrs["tile_px"] * tiles[0].attrs["mpp"]
    origin, size_um = corners.min(0) - MARGIN_UM, np.ptp(corners, axis=0) + side + 2 * MARGIN_UM
    um_per_px = float(max(size_um.max() / LONG_SIDE_PX, *slides[0].mpp, *slides[1].mpp))
    size = tuple(int(np.ceil(extent / um_per_px)) for extent in size_um)
    views = [view(slide, own.affine, origin, um_per_px, size) for slide, own in zip(slides, tiles, strict=True)]
    grey = cv2.cvtColor(cv2.cvtColor(views[0], cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side
    polygons = (corners[:, None] + square - origin) / um_per_px
    scale, apart = score_scale(arms, meaning), difference_scale(arms)
    figure = Figure(figsize=(13.5, 0.6 + len(arms) * (0.4 + 3.7 * size[1] / size[0])), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(arms), 3, squeeze=False)
    for row, own in zip(axes, arms, strict=True):
        texts = [f"{own.arm}, scanner {name}: {meaning} {bag:.3f}" for name, bag in zip(names, own.bags, strict=True)]
        texts.append(
            f"{own.arm}, {names[1]} minus {names[0]}: mean distance {own.difference:.3f}, spread {own.spread:.3f}"
        )
        images = [
            heatmaps.paint(image, polygons, scale(numbers), "RdBu_r")
            for image, numbers in zip(views, (own.first, own.second), strict=True)
        ]
        images.append(heatmaps.paint(grey, polygons, apart(own.second - own.first), DIFFERENCE_COLOURS))
        for panel, image, text in zip(row, images, texts, strict=True):
            panel.imshow(image)
            panel.set_title(text, fontsize=9)
            panel.set_axis_off()
    figure.colorbar(ScalarMappable(scale, "RdBu_r"), ax=axes[:, 1], shrink=0.7, label=f"{meaning}, tile alone")
    figure.colorbar(ScalarMappable(apart, DIFFERENCE_COLOURS), ax=axes[:, 2], shrink=0.7, label="difference")
    return figure


def common_corners(tiles: tuple[grid.Tiles, grid.Tiles]) -> np.ndarray:
    """Return the corners (n, 2), µm of the reference scan, of the tiles that lie inside both scans, by tile id."""
    ids = [own.tile_ids[~own.out_of_bounds] for own in tiles]
    wanted = np.isin(tiles[0].tile_ids, np.intersect1d(*ids))
    return tiles[0].corners_um[wanted]


def view(slide: Slide, affine: np.ndarray, origin: np.ndarray, um_per_px: float, size: tuple[int, int]) -> np.ndarray:
    """Return a scan as it lies in the reference scan's frame: `size` (w, h) pixels from `origin` (x, y) µm on."""
    matrix = np.column_stack([affine[:, :2] * um_per_px, affine[:, :2] @ origin + affine[:, 2]])
    return slide.read(matrix, size)


def score_scale(arms: Sequence[Seen], meaning: str) -> Normalize:
    """Return the colours of the scores: around 0.5 from 0 to 1, or of values around the mean of the scans."""
    if not meaning.startswith("predicted value"):
        return TwoSlopeNorm(0.5, 0, 1)
    centre = float(np.mean([own.bags for own in arms]))
    reach = max(float(np.abs(numbers - centre).max()) for own in arms for numbers in (own.first, own.second)) or 1.0
    return TwoSlopeNorm(centre, centre - reach, centre + reach)


def difference_scale(arms: Sequence[Seen]) -> Normalize:
    """Return the colours of the differences: as far to both sides as 99 % of them reach in the arm with the largest."""
    reach = max(float(np.quantile(np.abs(own.second - own.first), 0.99)) for own in arms) or 1.0
    return TwoSlopeNorm(0, -reach, reach)
