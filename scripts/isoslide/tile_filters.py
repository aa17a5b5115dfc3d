"""Optional filters of tiles: ink, black, white and blur, each tile judged in the scan that it is cut from."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoslide import quality, tissue
from isoslide.slide import Slide

SHARES = ("black", "ink", "white")  # settings max_black, max_ink, max_white: largest share of a tile
BLURRED = "blurred"  # setting min_sharpness
NAMES = (*SHARES, BLURRED)
UM_PER_PX = 8.0  # of the overview that shares are measured on
POINTS = 14  # a tile side is sampled at so many points: a tile of 112 µm at the overview's pixels


def wanted(settings: Mapping[str, Any]) -> bool:
    """Return whether any filter of the config's `tiles` block is on."""
    return any(settings[f"max_{name}"] < 1 for name in SHARES) or settings["min_sharpness"] > 0


def failing(slide: Slide, maps: np.ndarray, tile_px: int, settings: Mapping[str, Any]) -> np.ndarray:
    """Return for each tile the first filter that it fails, (n,) text of `NAMES`, empty where it passes all.

    Args:
        slide: to look at.
        maps: (n, 2, 3) from a tile's pixels to µm of the slide (`grid.tile_affines`).
        tile_px: side of a tile.
        settings: the config's `tiles` block.
    """
    found = np.full(len(maps), "", dtype="U8")
    if any(settings[f"max_{name}"] < 1 for name in SHARES):
        for name, share in shares(slide, maps, tile_px).items():
            found[(found == "") & (share > settings[f"max_{name}"])] = name
    if settings["min_sharpness"] > 0:
        for index in np.flatnonzero(found == ""):
            if sharpness(slide, maps[index], tile_px) < settings["min_sharpness"]:
                found[index] = BLURRED
    return found


def shares(slide: Slide, maps: np.ndarray, tile_px: int) -> dict[str, np.ndarray]:
    """Return the share (n,) of each tile that is black, ink and white, from one overview of the slide."""
    um_per_px = tissue.overview_um_per_px(slide, UM_PER_PX)
    masks = tissue.artefacts(slide.overview(um_per_px), um_per_px)
    steps = (np.arange(POINTS) + 0.5) * tile_px / POINTS
    points = np.stack([*(axis.ravel() for axis in np.meshgrid(steps, steps)), np.ones(POINTS**2)])  # (3, POINTS²)
    at = np.floor(maps @ points / um_per_px).astype(int)  # (n, 2, POINTS²), pixel of the overview
    rows, cols = masks["ink"].shape
    x, y = np.clip(at[:, 0], 0, cols - 1), np.clip(at[:, 1], 0, rows - 1)
    return {name: masks[name][y, x].mean(axis=1) for name in SHARES}


def sharpness(slide: Slide, affine: np.ndarray, tile_px: int) -> float:
    """Return the sharpness of a tile, measured as that of a scan (`quality.sharpness`), at 1 µm/px.

    Args:
        slide: to read from.
        affine: (2, 3) from the tile's pixels to µm of the slide.
        tile_px: side of the tile.
    """
    step = np.hypot(*affine[:, 0])  # µm per pixel of the tile
    factor = quality.SHARPNESS_UM_PER_PX / step
    side = max(8, round(tile_px / factor))
    coarse = affine.copy()
    coarse[:, :2] *= tile_px / side
    return quality.detail(slide.read(coarse, (side, side)))
