"""Where the tissue is: a classical segmentation of a slide's overview, in optical density and micrometres.

A stained section takes light out of the three colour channels unequally, glass and shadow do so equally. So the signal
is the spread of the optical density (OD) over the channels, measured against the slide's own glass. Marker ink is told
from stain by ratios of densities that haematoxylin, eosin and DAB do not reach; violet ink, of the colour of H&E, by
density without texture; black frames by darkness.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from isoslide import geojson
from isoslide.slide import Slide

MIN_OVERVIEW_PX = 300  # the longer side of a small slide's overview has at least this many pixels
BLACK = 50  # grey level; a region whose brightest channel is below it and that reaches the image's edge is no glass
MIN_FRAME_UM2 = 10_000.0
MAX_OD = 2.5  # beyond it 8-bit values are too coarse to tell colours
MIN_INK_UM2 = 2000.0  # a pigment grain or a dirt speck is no stroke
INK_GROWTH_UM = 200.0  # a stroke's pale margin lies within this distance of its strong part
# OD over 40 µm and its variation (SD / mean) of violet ink: anywhere, and of strokes with glass around them
VIOLET_OVER_TISSUE = (1.1, 0.1)  # H&E reaches an OD of 0.7 in dense epithelium, with a variation of 0.1 to 0.4
VIOLET_ON_GLASS = (0.5, 0.05)  # H&E out of focus can be as smooth, but is not alone on glass
GLASS_AROUND = 0.7  # share of the surroundings, 60 to 90 µm off; of blurred pieces of H&E at most 0.5
VIOLET_MAX_UM_PX = 10.0  # coarser pixels do not show the texture of tissue
MIN_VIOLET_UM2 = 100_000.0
VIOLET_GROWTH_UM = 60.0
GREY_REACH_UM = 60.0  # grey tissue counts within this distance of coloured tissue
TEXTURE_UM = 40.0
TEXTURE_OD = 0.02  # glass at 8 µm/px has about 0.005, pale IHC 0.03, H&E 0.1
ARTEFACT_SMOOTHING_UM = 8.0
WHITE_OD = 0.05  # no channel of glass is darker; the palest tissue is in one of them
OVERLAY_PX = 600
OUTLINE_COLOUR = (0, 160, 0)


@dataclass(frozen=True)
class Segmentation:
    """What each pixel of an overview is; bool arrays of one shape (rows, cols)."""

    tissue: np.ndarray
    ink: np.ndarray
    black: np.ndarray
    um_per_px: float

    @property
    def tissue_mm2(self) -> float:
        """Area of tissue."""
        return float(self.tissue.sum()) * self.um_per_px**2 / 1e6

    @property
    def ink_share(self) -> float:
        """Ink as a share of all that is not glass or frame, 0 to 1; 0 where there is neither ink nor tissue."""
        ink = float(self.ink.sum())
        return ink / max(1.0, ink + float(self.tissue.sum()))

    @property
    def black_share(self) -> float:
        """Black frame as a share of the image, 0 to 1."""
        return float(self.black.mean())


def overview_um_per_px(slide: Slide, um_per_px: float) -> float:
    """Return the µm/px to segment at: `um_per_px`, finer where the slide is small, never finer than level 0."""
    return max(min(um_per_px, max(slide.size_um) / MIN_OVERVIEW_PX), *slide.mpp)


def segment(rgb: np.ndarray, um_per_px: float, settings: Mapping[str, Any]) -> Segmentation:
    """Return what is tissue, ink and black frame in an overview.

    Args:
        rgb: (rows, cols, 3) uint8.
        um_per_px: of the overview.
        settings: the config's `tissue` block.
    """
    black = _black_frame(rgb, um_per_px)
    density = _smooth_density(rgb, ~black, settings["smoothing_um"] / um_per_px)
    red, green, blue = cv2.split(density)
    mean = (red + green + blue) / 3
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    ink = _ink(rgb, density, um_per_px) & ~black if settings["remove_ink"] else np.zeros_like(black)
    spread = high - low
    # Pixels at the rim of a frame or a stroke mix its colour with glass, so a rim is left out too.
    no_tissue = _dilate(black | ink, settings["smoothing_um"] / um_per_px * 2)
    spread[no_tissue] = 0
    tinted = spread > 0.2 * mean  # a shadow of the slide's edge is darker than glass but hardly coloured
    coloured = (spread > 2 * settings["min_od"]) & tinted
    # Brown and blue in one pixel make grey, and pale counterstain nearly is. Grey counts close to coloured tissue, or
    # connected to it where it has texture: a shadow is smooth.
    near = _dilate(without_specks(coloured, 400 / um_per_px**2), GREY_REACH_UM / um_per_px)
    grey = (mean > 3 * settings["min_od"]) & (near | _textured(rgb, um_per_px)) & ~no_tissue
    tissue = _connected(((spread > settings["min_od"]) & tinted) | grey, coloured)
    tissue = _clean(tissue, no_tissue, um_per_px, settings)
    return Segmentation(tissue, ink, black, um_per_px)


def artefacts(rgb: np.ndarray, um_per_px: float) -> dict[str, np.ndarray]:
    """Return what spoils a tile: masks (rows, cols) of `ink`, `black` (any, not only frames) and `white` (glass)."""
    density = _smooth_density(rgb, ~_black_frame(rgb, um_per_px), ARTEFACT_SMOOTHING_UM / um_per_px)
    black = cv2.inRange(rgb, (0, 0, 0), (BLACK - 1,) * 3).astype(bool)
    return {
        "ink": _ink(rgb, density, um_per_px) & ~black,
        "black": black,
        "white": density.max(axis=-1) < WHITE_OD,
    }


def _smooth_density(rgb: np.ndarray, where: np.ndarray, sigma: float) -> np.ndarray:
    """Return the OD (rows, cols, 3) of the blurred overview against the glass found in `where`."""
    smooth = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), sigma) if sigma > 0.3 else rgb.astype(np.float32)
    return optical_density(smooth, glass_colour(rgb, where))


def glass_colour(rgb: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the colour of empty glass (3,): the brightest tenth of the bright and nearly grey pixels.

    Pure white is left out where enough other bright pixels exist: it fills what the scanner did not scan. An image
    without glass gets 245, a usual glass.
    """
    red, green, blue = cv2.split(rgb)
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    bright = where & (low > 170) & (high - low < 25)
    scanned = bright & (low < 254)
    if scanned.sum() > 0.2 * bright.sum():
        bright = scanned
    if bright.sum() < 0.002 * bright.size:
        return np.full(3, 245.0)
    pixels = rgb[bright].astype(np.float32)
    grey = pixels.mean(axis=1)
    return np.median(pixels[grey >= np.percentile(grey, 90)], axis=0)


def optical_density(rgb: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """Return -ln(rgb / glass), shape of `rgb` (float32), from 0 (glass or brighter) to `MAX_OD`."""
    return np.clip(np.log((glass + 1).astype(np.float32)) - np.log(rgb + 1), 0, MAX_OD)


def _black_frame(rgb: np.ndarray, um_per_px: float) -> np.ndarray:
    dark = cv2.inRange(rgb, (0, 0, 0), (BLACK - 1,) * 3)
    if not dark.any():
        return dark.astype(bool)
    # Smaller dark pieces at the edge are stained nuclei or dirt.
    _, labels = cv2.connectedComponents(without_specks(dark, MIN_FRAME_UM2 / um_per_px**2).astype(np.uint8))
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.unique(edge[edge > 0]))


def _ink(rgb: np.ndarray, density: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return marker ink of every colour; `density` (rows, cols, 3) is that of the blurred overview `rgb`."""
    red, green, blue = cv2.split(density)
    return _coloured_ink(red, green, blue, um_per_px) | _violet_ink(rgb, red, green, blue, um_per_px)


def _violet_ink(rgb: np.ndarray, red: np.ndarray, green: np.ndarray, blue: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return violet and purple marker ink: strokes of the colour of H&E, denser than tissue and without its texture.

    On H&E of five slides (7 mm²) this found nothing, at up to twice their density, nor where they were blurred by 8 to
    32 µm at up to 1.25 times. Of a real marker stroke over tissue, its ink made violet, it found 67 to 89 %.
    """
    violet = (green > 1.1 * red) & (green > 1.1 * blue) & (red > 0.25 * green)
    mean = (red + green + blue) / 3
    least = MIN_VIOLET_UM2 / um_per_px**2
    ink = np.zeros(red.shape, bool)
    if um_per_px > VIOLET_MAX_UM_PX or not without_specks(violet & (mean > VIOLET_ON_GLASS[0]), least).any():
        return ink
    sharp = optical_density(rgb.astype(np.float32), glass_colour(rgb, mean < MAX_OD)).mean(axis=-1)
    side = 2 * max(1, round(TEXTURE_UM / um_per_px / 2)) + 1
    local = cv2.blur(sharp, (side, side))
    variance = cv2.blur(sharp**2, (side, side)) - local**2
    growth = VIOLET_GROWTH_UM / um_per_px
    for (least_od, variation), alone in ((VIOLET_OVER_TISSUE, False), (VIOLET_ON_GLASS, True)):
        strong = violet & (local > least_od) & (variance < (variation * local) ** 2)
        strong = without_specks(strong, least / 4)
        near = violet & (sharp > least_od / 2) & _dilate(strong, growth)
        found = without_specks(_connected(strong | near, strong), least)
        if alone and found.any():
            found &= _amid_glass(found, sharp, growth)
            found = _connected(found | (violet & (mean > 0.1) & _dilate(found, 2 * growth)), found)  # its pale margin
        ink |= found
    return ink


def _amid_glass(pieces: np.ndarray, density: np.ndarray, distance: float) -> np.ndarray:
    """Return the pixels whose nearest piece has glass around it, one to one and a half `distance` px off."""
    away, labels = cv2.distanceTransformWithLabels(
        (~pieces).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_CCOMP
    )
    ring = (away > distance) & (away <= 1.5 * distance)
    n = np.bincount(labels[ring], minlength=labels.max() + 1)
    glass = np.bincount(labels[ring & (density < 2 * WHITE_OD)], minlength=labels.max() + 1)
    return (glass >= GLASS_AROUND * np.maximum(n, 1))[labels]


def _coloured_ink(red: np.ndarray, green: np.ndarray, blue: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return marker ink but violet: strong strokes by density ratios that no stain reaches, and their paler margins.

    Over ten images of H&E and IHC at 2-40 µm/px, 99 % of stained pixels had OD red / green below 1.45 (blue
    counterstain the most; H&E 0.9) and red / green above 0.15 wherever green passed 1. Markers have 1.6 to 3 (blue,
    green) or under 0.15 (red, orange, yellow), or darken all channels alike (black).
    """
    mean, warm = (red + green + blue) / 3, np.maximum(green, blue)
    # Melanin and DAB take more blue than red, haematoxylin less.
    tilt = np.abs(blue - red)
    dark = np.minimum(np.minimum(red, green), blue)
    kinds = (
        (  # blue, green
            ((red > 1.6 * green) & (red - green > 0.15) & (red > 0.3))
            | ((red > 1.2 * green) & (red > 1.2))  # over tissue; no counterstain is that dense
            | ((green > 0.9) & (red > 0.9 * green) & (blue > 0.7 * green) & (tilt < 0.25 * mean)),
            ((red > 1.1 * green) & (red - green > 0.04))
            | ((green > 0.5) & (red > 0.9 * green) & (blue > 0.72 * green) & (tilt < 0.25 * mean)),
        ),
        (  # red, orange, yellow
            (warm > 1.0) & (red < 0.15 * warm) & (blue > 0.6 * green),
            (warm > 0.4) & (red < 0.2 * warm) & (blue > 0.6 * green),
        ),
        (  # black
            (dark > 1.5) & (tilt < 0.25 * mean),
            (dark > 0.65) & (tilt < 0.35 * mean),
        ),
    )
    ink = np.zeros(red.shape, bool)
    for strong, weak in kinds:
        # Green ink over dense epithelium is as black as black ink: a stroke that is explained starts no other kind.
        strong = without_specks(strong & ~ink, MIN_INK_UM2 / um_per_px**2)
        if strong.any():
            ink |= _connected(strong | (weak & _dilate(strong, INK_GROWTH_UM / um_per_px)), strong)
    return ink


def _textured(rgb: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return where the grey OD has a standard deviation above `TEXTURE_OD` over about 40 µm, along x and along y.

    The shadow of an edge varies across the edge but hardly along it.
    """
    side = 2 * max(1, round(TEXTURE_UM / um_per_px / 2)) + 1
    density = np.log(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) + 1)
    textured = np.ones(density.shape, bool)
    for line, across in (((side, 1), (1, side)), ((1, side), (side, 1))):
        variance = cv2.blur(density**2, line) - cv2.blur(density, line) ** 2
        textured &= cv2.blur(variance, across) > TEXTURE_OD**2
    return textured


def _clean(tissue: np.ndarray, no_tissue: np.ndarray, um_per_px: float, settings: Mapping[str, Any]) -> np.ndarray:
    """Close gaps, fill small holes, remove lines and small pieces; nothing grows into `no_tissue`."""
    mask = cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_CLOSE, _disc(settings["closing_um"] / um_per_px / 2))
    # The low threshold puts the outline of smoothed tissue outside its edge: by 0.5 sigma where it is pale, 1.6 where
    # it is strong. One sigma back leaves an error of about half a sigma either way.
    mask = cv2.erode(mask, _disc(settings["smoothing_um"] / um_per_px))
    holes = mask == 0
    mask = (~without_specks(holes, settings["min_hole_um2"] / um_per_px**2)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(settings["opening_um"] / um_per_px / 2))
    return without_specks(mask.astype(bool) & ~no_tissue, settings["min_area_um2"] / um_per_px**2)


def _connected(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Return the connected pieces of `weak` that hold a pixel of `strong` (hysteresis)."""
    n, labels = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    keep = np.zeros(n, bool)
    keep[labels[strong & weak]] = True
    keep[0] = False
    return keep[labels]


def without_specks(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Return the connected pieces (4 neighbours) of at least `min_px` pixels."""
    if min_px <= 1 or not mask.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False
    return keep[labels]


def _dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    if not mask.any():
        return mask
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= radius


def _disc(radius: float) -> np.ndarray:
    """Return a structuring element of the pixels within `radius`, at least the centre."""
    r = math.floor(radius)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


def overlay(rgb: np.ndarray, polygons: list[geojson.Polygon], um_per_px: float, mpp: tuple[float, float]) -> np.ndarray:
    """Return the overview, at most 600 px a side, with the outlines drawn.

    Args:
        rgb: (rows, cols, 3) uint8 overview.
        polygons: in level-0 px.
        um_per_px: of the overview.
        mpp: µm/px of level 0.
    """
    factor = min(1.0, OVERLAY_PX / max(rgb.shape[:2]))
    image = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    bits = 4  # OpenCV takes sub-pixel coordinates as integers of 1/16
    to_px = np.array(mpp) * factor / um_per_px * (1 << bits)
    rings = [np.round(ring * to_px).astype(np.int32) for polygon in polygons for ring in polygon]
    cv2.polylines(image, rings, True, OUTLINE_COLOUR, 2, cv2.LINE_AA, bits)
    return image
