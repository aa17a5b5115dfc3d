"""A slide as a pyramid of JPEG pictures that a page can show without a server: {z}/{x}_{y}.jpg, z = 0 the coarsest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from isoslide.slide import Slide

TILE_PX = 512
QUALITY = 85


@dataclass(frozen=True)
class Level:
    """One level: µm per pixel, and its size (w, h) in pixels; pixel (0, 0) begins at the slide's corner."""

    um_per_px: float
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of pictures."""
        return tuple(-(-extent // TILE_PX) for extent in self.size)


def levels(size_um: tuple[float, float], um_per_px: float) -> list[Level]:
    """Return the levels, coarsest first: each twice as fine as the one before, the coarsest in one picture."""
    found = []
    while True:
        size = tuple(max(1, int(np.ceil(extent / um_per_px - 1e-6))) for extent in size_um)
        found.append(Level(um_per_px, size))
        if max(size) <= TILE_PX:
            return found[::-1]
        um_per_px *= 2


def write(slide: Slide, folder: Path, um_per_px: float) -> int:
    """Write the pictures into a folder and return their number.

    Args:
        slide: the scan.
        folder: that exists; files of a killed run in it are written again.
        um_per_px: of the finest level.

    Raises:
        SlideError: a part of the slide cannot be read.
    """
    n = 0
    for z, level in enumerate(levels(slide.size_um, um_per_px)):
        columns, rows = level.grid
        (folder / str(z)).mkdir(exist_ok=True)
        for y in range(rows):
            for x in range(columns):
                corner = np.array([x, y]) * TILE_PX
                size = tuple(int(extent) for extent in np.minimum(TILE_PX, np.array(level.size) - corner))
                affine = np.column_stack([np.eye(2) * level.um_per_px, corner * level.um_per_px])
                picture = Image.fromarray(slide.read(affine, size))
                picture.save(folder / str(z) / f"{x}_{y}.jpg", quality=QUALITY)
                n += 1
    return n
