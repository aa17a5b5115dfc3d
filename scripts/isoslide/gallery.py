"""Galleries: the tiles that speak most for and most against the score of a scan, at the resolution the models saw."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isoslide import atomic, grid
from isoslide.slide import Slide
from isoslide.tile_values import TileValues

SHOWN = 6  # tiles of each row
GAP, LINE, HEADING = 10, 15, 22  # px
LINES = 3  # of a caption
LEAST_PX = 190  # width of a column: room for the caption


@dataclass(frozen=True)
class Row:
    """A row of the gallery: its heading, and the places of its tiles among the tiles of the scan."""

    heading: str
    places: np.ndarray


def rows(values: TileValues, shown: int = SHOWN) -> list[Row]:
    """Return the tiles with most and with least contribution, best first; ties in the order of the tiles.

    Where there are no contributions: those with most and least attention.
    """
    ranked = values.attention if values.contribution is None else values.contribution
    what = "attention" if values.contribution is None else "contribution"
    order = np.argsort(-ranked, kind="stable")
    n = min(shown, (len(order) + 1) // 2)  # no tile stands in both rows
    low = order[::-1][: min(shown, len(order) - n)]
    return [Row(f"most {what}", order[:n]), Row(f"least {what}", low)]


def draw(slide: Slide, tiles: grid.Tiles, values: TileValues, title: str) -> Image.Image:
    """Return the picture: a title, and under each tile its level-0 coordinates and values.

    Args:
        slide: the scan.
        tiles: its tiles, of which `values` has those inside the scan.
        values: of the tiles.
        title: of the picture.

    Raises:
        SlideError: a tile cannot be read.
    """
    inside = np.flatnonzero(~tiles.out_of_bounds)
    side, tile_um = int(tiles.attrs["tile_px"]), tiles.attrs["tile_px"] * tiles.attrs["mpp"]
    column = max(side, LEAST_PX) + GAP
    found = [row for row in rows(values) if len(row.places)]
    height = HEADING + GAP + sum(HEADING + side + LINES * LINE + GAP for _ in found)
    image = Image.new("RGB", (GAP + column * max(SHOWN, 3), height), "white")
    pen, font, bold = ImageDraw.Draw(image), _font(12), _font(14, "-Bold")
    pen.text((GAP, GAP / 2), title, "black", bold)
    top = HEADING + GAP
    for row in found:
        pen.text((GAP, top), row.heading, "black", _font(12, "-Bold"))
        top += HEADING
        chosen = inside[row.places]
        maps = grid.tile_affines(tiles.corners_um[chosen], tile_um, side, tiles.maps[chosen])
        pixels = slide.read_tiles(maps, side)
        for place, index, tile, left in zip(row.places, chosen, pixels, _lefts(column), strict=False):
            image.paste(Image.fromarray(tile), (left, top))
            text = caption(tiles, int(index), values, int(place))
            pen.multiline_text((left, top + side + 1), text, "black", font, spacing=2)
        top += side + LINES * LINE + GAP
    return image


def caption(tiles: grid.Tiles, index: int, values: TileValues, place: int) -> str:
    """Return what stands under a tile: `index` among all tiles, `place` among those inside the scan."""
    x, y = tiles.coords[index]
    score = f"score {values.p[place]:.3g}, attention {values.attention[place]:.3g}"
    added = "" if values.contribution is None else f"contribution {values.contribution[place]:+.3g}"
    return f"x {x}, y {y} px\n{score}" + (f"\n{added}" if added else "")


def write(path: str | Path, image: Image.Image) -> None:
    """Write the picture; equal pictures give equal bytes."""
    with atomic.output(path) as temporary:
        image.save(temporary)


def _lefts(column: int) -> list[int]:
    return [GAP + column * i for i in range(SHOWN)]


def _font(size: int, kind: str = "") -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/DejaVuSans{kind}.ttf"), size)
