"""Tissue of the demo cohort: mosaics of patches of one real H&E slide, as an island on white glass.

Glass coordinates are µm from the corner of the glass; mosaic pixels have the source slide's size, so that no detail is
lost or made up before a scanner samples them. Patches come from the whole slide for every patient: two patients can
hold the same patch, in training and in test. That cannot give a label away, because patches are drawn given their
class alone and labels given the share of the classes alone, so a known patch tells no more than its class does. What
the demo cannot show for the same reason is how a model does on tissue of another slide.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide

from isoslide import demo

PATCH = 144  # px; 72 µm
STRIDE = 112  # px between patches; the rest is feathered overlap
WHITE = 244  # RGB of the source's glass; also of the reference scanner's
AREA_UM2 = 22.5 * 112**2  # of tissue: then about 24 tiles of 112 µm (224 px at 0.5 µm/px) are at least half full
MARGIN_UM = 115.0  # glass around the tissue: a tile over its edge, shifted and turned, is still on the scan
COARSE_UM = 4.0  # pixel of the drawing board for outline, holes and pen
BOARD_UM = 1600.0
STAIN_SD = 0.12  # of the log amounts of haematoxylin and eosin, between specimens
INKS = ((1.7, 0.9, 0.3), (1.6, 0.5, 1.0), (1.6, 1.5, 1.4))  # optical density (R, G, B) of blue, green, black pens

# Optical densities (R, G, B) of haematoxylin, eosin and the rest: Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
DENSITY = np.maximum(-np.log((np.arange(256) + 1.0) / WHITE), 0).astype(np.float32)  # of a source grey value


@dataclass(frozen=True)
class Source:
    """The real slide: `rgb` (h, w, 3) uint8, its µm/px, and per class the top-left corners (n, 2) of its patches."""

    rgb: np.ndarray
    mpp: float
    corners: dict[str, np.ndarray]


@dataclass(frozen=True)
class Outline:
    """Shape of a specimen on its glass: signed distances in µm (inside is positive), and where the pen went (0-1).

    Both are (rows, columns) at `COARSE_UM`; holes count as outside.
    """

    distance: np.ndarray
    pen: np.ndarray

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the glass."""
        rows, columns = self.distance.shape
        return columns * COARSE_UM, rows * COARSE_UM


def read_source(path: str | Path) -> Source:
    """Read level 0 of the slide and find its patches of epithelium and of stroma."""
    with openslide.OpenSlide(str(path)) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        mpp = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
    return Source(rgb, mpp, find_patches(rgb))


def find_patches(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """Return the top-left corners (n, 2) as (x, y) of all patches of `epithelium` and `stroma` in an H&E image."""
    unmix = np.linalg.inv(STAINS)[:, 0].astype(np.float32)  # of haematoxylin
    haematoxylin, total = np.zeros((2, *rgb.shape[:2]), np.float32)
    for channel in range(3):  # one by one: half the memory
        density = DENSITY[rgb[..., channel]]
        haematoxylin += density * unmix[channel]
        total += density
    nuclear = _share(cv2.GaussianBlur(haematoxylin, (0, 0), 1) > 0.6)
    tissue = _share(cv2.GaussianBlur(total, (0, 0), 2) > 0.25)
    clean = _share(rgb[..., 1] > rgb[..., 0].astype(np.int16) + 20) < 0.005  # the slide bears green ink
    clean &= _share(total > 4) < 0.2  # horny layers, nearly black
    masks = {
        "epithelium": clean & (tissue > 0.90) & (nuclear > 0.62),
        "stroma": clean & (tissue > 0.85) & (nuclear < 0.30),
    }
    return {name: np.argwhere(mask)[:, ::-1].astype(np.int32) for name, mask in masks.items()}


def draw_outline(specimen: demo.Specimen, seed: int) -> Outline:
    """Draw the specimen's shape: a wavy ellipse of a set area with a few holes, and a pen stroke at its edge or none.

    The area of tissue is `AREA_UM2` for each specimen, so that the number of tiles tells nothing.
    """
    rng = demo.rng(seed, demo.TISSUE, specimen.index, 0)
    n = int(BOARD_UM / COARSE_UM)
    y, x = (np.mgrid[:n, :n] + 0.5) * COARSE_UM - BOARD_UM / 2
    aspect = rng.uniform(1.15, 1.6)
    ratio = _radius_ratio(x, y * aspect, rng)
    holes = _draw_holes(x, y, aspect, rng)
    area = round(AREA_UM2 / COARSE_UM**2 + holes.sum())
    inside = ratio < np.partition(ratio, area, axis=None)[area]
    distance = _signed_distance(inside & ~holes)
    pen = _draw_pen(inside, rng) if specimen.pen else np.zeros(inside.shape, np.float32)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    margin = round(MARGIN_UM / COARSE_UM)
    window = np.s_[rows[0] - margin : rows[-1] + margin + 1, columns[0] - margin : columns[-1] + margin + 1]
    return Outline(distance[window], pen[window])


def lay_tissue(specimen: demo.Specimen, outline: Outline, source: Source, seed: int) -> np.ndarray:
    """Return the glass as light let through, (h, w, 3) float32 from 0 to 1, at the source's µm/px."""
    rng = demo.rng(seed, demo.TISSUE, specimen.index, 1)
    width, height = (round(size / source.mpp) for size in outline.size_um)
    tissue = _matte(outline, (height, width), rng)
    epithelium = _place_epithelium(specimen.share, outline, (height, width), rng)
    density = np.zeros((height, width, 3), np.float32)
    _add_mosaic(density, tissue * epithelium, source.rgb, source.corners["epithelium"], rng)
    _add_mosaic(density, tissue * (1 - epithelium), source.rgb, source.corners["stroma"], rng)
    amounts = np.diag([*np.exp(rng.normal(0, STAIN_SD, 2)), 1.0])
    density = cv2.transform(density, (np.linalg.inv(STAINS) @ amounts @ STAINS).T.astype(np.float32))
    np.maximum(density, 0, out=density)
    if specimen.pen:
        pen = cv2.resize(outline.pen, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        density += pen[..., None] * np.array(INKS[specimen.index % len(INKS)], np.float32)
    return cv2.exp(np.negative(density, out=density), density)


def _share(mask: np.ndarray) -> np.ndarray:
    """Return the share of set pixels in the patch that starts at each pixel; (h - PATCH + 1, w - PATCH + 1)."""
    means = cv2.boxFilter(mask.astype(np.float32), -1, (PATCH, PATCH), anchor=(0, 0))
    return means[: 1 - PATCH, : 1 - PATCH]


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the edge of the mask in µm, positive inside, at `COARSE_UM`."""
    inside, outside = mask.astype(np.uint8), (~mask).astype(np.uint8)
    return COARSE_UM * (cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(outside, cv2.DIST_L2, 5))


def _radius_ratio(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the distance from the centre over the wavy radius in that direction."""
    angle = np.arctan2(y, x)
    radius = np.ones_like(x)
    for k in range(2, 9):
        radius += rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    bumps = cv2.GaussianBlur(rng.normal(size=x.shape), (0, 0), 6)
    return np.hypot(x, y) / radius * (1 + 0.03 * bumps / bumps.std())


def _draw_holes(x: np.ndarray, y: np.ndarray, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """Draw one to three holes of 0.004-0.014 mm² well inside the tissue."""
    holes = np.zeros(x.shape, bool)
    for start in rng.uniform(0, 2 * np.pi) + np.arange(rng.integers(1, 4)) * 2 * np.pi / 3:
        across = rng.uniform(130, 210)
        dx, dy = x - across * np.cos(start), y - across * np.sin(start) / aspect
        holes |= _radius_ratio(dx, dy * rng.uniform(0.8, 1.4), rng) < rng.uniform(40, 65)
    return holes


def _draw_pen(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a stroke of 60-100 µm along the edge of the tissue, half on it; 0-1, uneven as ink on glass is."""
    contour = max(cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    points = np.roll(contour[:, 0], rng.integers(len(contour)), axis=0)[: len(contour) // 4]
    t = np.linspace(-1, 1, len(points))
    smooth = np.stack([np.polyval(np.polyfit(t, points[:, i], 2), t) for i in range(2)], axis=1)
    stroke = np.zeros(inside.shape, np.uint8)
    width = round(rng.uniform(60, 100) / COARSE_UM)
    cv2.polylines(stroke, [smooth.round().astype(np.int32)[:, None]], False, 255, width, cv2.LINE_AA)
    streaks = cv2.GaussianBlur(rng.normal(size=inside.shape), (0, 0), 3)
    soft = cv2.GaussianBlur(stroke.astype(np.float32) / 255, (0, 0), 1)
    return (soft * np.clip(0.75 + 0.15 * streaks / streaks.std(), 0.3, 1)).astype(np.float32)


def _place_epithelium(share: float, outline: Outline, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the opacity (h, w), 0-1, of islands of epithelium that are the wanted share of the tissue.

    A smooth random field (SD 75 µm) is cut where that share of the tissue lies above.
    """
    field = cv2.GaussianBlur(rng.standard_normal(outline.distance.shape, np.float32), (0, 0), 75 / COARSE_UM)
    cut = np.quantile(field[outline.distance > 0], 1 - share)
    distance = cv2.resize(_signed_distance(field > cut), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(distance / 16 + 0.5, 0, 1)


def _add_mosaic(
    density: np.ndarray, opacity: np.ndarray, rgb: np.ndarray, corners: np.ndarray, rng: np.random.Generator
) -> None:
    """Add feathered patches, drawn anew and turned at random, to the density (h, w, 3) where the opacity is above 0."""
    height, width = opacity.shape
    feather = _feather()
    for top in range(STRIDE - PATCH, height, STRIDE):
        for left in range(STRIDE - PATCH, width, STRIDE):
            window = np.s_[max(top, 0) : top + PATCH, max(left, 0) : left + PATCH]
            weight = opacity[window]
            if not weight.any():
                continue
            x, y = corners[rng.integers(len(corners))]
            patch = np.rot90(cv2.LUT(rgb[y : y + PATCH, x : x + PATCH], DENSITY), rng.integers(4))
            patch = patch[::-1] if rng.integers(2) else patch
            part = np.s_[max(-top, 0) :, max(-left, 0) :]
            part_of = np.s_[: weight.shape[0], : weight.shape[1]]
            density[window] += (feather[part][part_of] * weight)[..., None] * patch[part][part_of]


def _feather() -> np.ndarray:
    """Return the weights (PATCH, PATCH) of a patch; those of overlapping patches sum to 1."""
    overlap = PATCH - STRIDE
    ramp = np.ones(PATCH, np.float32)
    ramp[:overlap] = (np.arange(overlap) + 0.5) / overlap
    ramp[-overlap:] = ramp[:overlap][::-1]
    return np.outer(ramp, ramp)


def _matte(outline: Outline, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the tissue's opacity (h, w), 0-1: the outline with a ragged edge of a few µm."""
    height, width = shape
    distance = cv2.resize(outline.distance, (width, height), interpolation=cv2.INTER_CUBIC)
    ragged = cv2.GaussianBlur(rng.standard_normal((height // 2 + 1, width // 2 + 1), np.float32), (0, 0), 4)
    ragged = cv2.resize(ragged / ragged.std(), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip((distance + 5 * ragged) / 3 + 0.5, 0, 1)
