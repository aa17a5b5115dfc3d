"""Scans whose true map is known: another scan of a picture of tissue, and a large glass slide that exists nowhere."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from isoslide import geojson, registration, tissue
from isoslide.registration import Affine, View, apply, compose
from isoslide.slide import Slide

GLASS = (244, 243, 244)
TISSUE_SHARE = 0.4  # radius of the generated tissue over the side of its glass
Truth = Callable[[np.ndarray], np.ndarray]  # (n, 2) µm of the reference -> (n, 2) µm of the other scan


class Picture:
    """A scan in memory that reads like `Slide`."""

    def __init__(self, image: np.ndarray, mpp: float):
        self.image, self.mpp = image, (mpp, mpp)
        self.size_um = (image.shape[1] * mpp, image.shape[0] * mpp)

    def read(self, affine: Affine, size: tuple[int, int]) -> np.ndarray:
        """Return (h, w, 3) uint8 under a map from output pixels to µm; outside is glass."""
        step = np.asarray(affine) / self.mpp[0]
        k = max(1, math.ceil(np.hypot(*step[:, 0]) - 0.01))
        warp = np.column_stack([step[:, :2] / k, step[:, :2].sum(axis=1) * 0.5 / k + step[:, 2] - 0.5])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(self.image, warp, (size[0] * k, size[1] * k), flags=flags, borderValue=GLASS)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if k > 1 else image


@dataclass(frozen=True)
class Draw:
    """How a simulated scan differs from the reference scan.

    Attributes:
        angle: degrees.
        mirrored: seen through the back of the glass.
        stretch: true size of the pixels over the stated one.
        ratio: µm/px over the reference's.
        shift: (2,) share of the tissue's box that is moved out of the image, or of glass before it.
        bend_um: amplitude of the smooth distortion, two sines of `wave_um`.
        wave_um: length of its waves.
        blur_um: standard deviation.
        quality: of JPEG.
    """

    angle: float
    mirrored: bool
    stretch: float
    ratio: float
    shift: tuple[float, float]
    bend_um: float
    wave_um: float
    blur_um: float
    quality: int


def draw(rng: np.random.Generator) -> Draw:
    """Return one random difference: any angle, half of them mirrored, 0.4 to 2.2 times the pixel size."""
    return Draw(
        angle=float(rng.uniform(0, 360)),
        mirrored=bool(rng.random() < 0.5),
        stretch=float(rng.uniform(0.97, 1.03)),
        ratio=float(math.exp(rng.uniform(math.log(0.4), math.log(2.2)))),
        shift=(float(rng.uniform(-0.08, 0.1)), float(rng.uniform(-0.08, 0.1))),
        bend_um=float(rng.uniform(0, 4)),
        wave_um=float(rng.uniform(1000, 3000)),
        blur_um=float(rng.uniform(0.2, 1.0)),
        quality=int(rng.integers(50, 91)),
    )


def another_scan(source: Picture, how: Draw, rng: np.random.Generator) -> tuple[Picture, Truth]:
    """Return another scan of what the picture shows, and the true map to it."""
    turn = math.radians(how.angle)
    linear = how.stretch * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = linear @ np.diag([1, -1]) if how.mirrored else linear
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * source.size_um @ linear.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    low = low + np.array(how.shift) * (high - low)
    affine = np.column_stack([linear, -low])
    mpp = source.mpp[0] * how.ratio
    size = tuple(int(n) for n in np.ceil((high - low) / mpp))
    phases = rng.uniform(0, 2 * math.pi, 2).astype(np.float32)

    def bend(points: np.ndarray) -> np.ndarray:
        return how.bend_um * np.sin(points[..., ::-1] * (2 * math.pi / how.wave_um) + phases)

    back = inverse(affine)

    def truth(points: np.ndarray) -> np.ndarray:
        # a pixel at q shows the tissue at B(q) + bend(B(q)); solved for q by iteration, as the bend is gentle
        found = points.copy()
        for _ in range(30):
            found = points - bend(found)
        return apply(affine, found)

    x, y = (np.arange(size[0]) + 0.5) * mpp, (np.arange(size[1])[:, None] + 0.5) * mpp
    x, y = (np.asarray(row[0] * x + row[1] * y + row[2], np.float32) for row in back)
    places = np.stack([x, y], axis=-1)
    places = (places + bend(places)) / np.float32(source.mpp[0]) - np.float32(0.5)
    blur_px = math.hypot(how.blur_um / source.mpp[0], 0.5 * max(0.0, how.ratio - 1))
    soft = cv2.GaussianBlur(source.image, (0, 0), blur_px)
    image = cv2.remap(soft, places, None, cv2.INTER_LINEAR, borderValue=GLASS)
    return Picture(_exposed(image, how.quality, rng), mpp), truth


def inverse(affine: Affine) -> Affine:
    """Return the inverse map."""
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def seen(scan: Picture | Slide, settings: Mapping[str, Any]) -> View:
    """Return the scan as registration sees it, its tissue found as the tissue stage finds it.

    Args:
        scan: the scan.
        settings: the blocks `tissue` and `registration` of the config.
    """
    step = tissue.overview_um_per_px(scan, settings["tissue"]["um_per_px"])
    size = tuple(max(1, round(extent / step)) for extent in scan.size_um)
    rgb = scan.read(np.array([[step, 0.0, 0], [0, step, 0]]), size)
    polygons = geojson.trace(tissue.segment(rgb, step, settings["tissue"]).tissue, (step, step))
    return registration.view(scan.read, scan.size_um, polygons, settings["registration"])


def _exposed(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image in another scanner's colours, with noise and JPEG artefacts."""
    mix = np.eye(3) + rng.normal(0, 0.06, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    gamma, gains = rng.uniform(0.75, 1.35), rng.uniform(0.92, 1, 3)
    curve = 255 * (np.arange(256)[:, None] / 255) ** gamma * gains
    light = cv2.LUT(cv2.transform(image, mix), curve.round().astype(np.uint8)[None])
    noise = rng.standard_normal(light.shape[:2], np.float32)[..., None] * 2
    light = np.clip(light + noise, 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", light, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


@dataclass(frozen=True)
class LargeGlass:
    """A glass slide of any size: real texture folded over the plane, under random structure that never repeats.

    Attributes:
        texture: (rows, cols, 3) uint8, real tissue.
        mpp: of the texture.
        side_um: of the square glass.
        fields: (2, k, k) float32 random numbers: density of the tissue, and coarse and fine structure.
    """

    texture: np.ndarray
    mpp: float
    side_um: float
    fields: np.ndarray

    def show(self, places: np.ndarray) -> np.ndarray:
        """Return (h, w, 3) uint8 at places (h, w, 2) µm."""
        height, width = self.texture.shape[:2]
        # a slow bend turns the copies of the texture against each other; folding leaves no seam
        bent = places + 180 * np.sin(places[..., ::-1] / 700 + places / 1900)
        pixels = bent / np.float32(self.mpp)
        pixels = np.abs((pixels + (width, height)) % (2 * width, 2 * height) - (width, height))
        rgb = cv2.remap(self.texture, pixels.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        cells = (places * ((self.fields.shape[1] - 1) / self.side_um)).astype(np.float32)
        coarse, fine = (
            cv2.remap(field, (cells * share).astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            for field, share in zip(self.fields, (0.25, 1.0), strict=True)
        )
        radius = np.hypot(*np.moveaxis(places / self.side_um - 0.5, -1, 0))
        stain = 0.5 + 0.25 * np.clip(coarse + 0.7 * fine, -2, 2)
        stain = np.where((radius < TISSUE_SHARE) & (coarse + 0.5 * fine > -1.6), np.clip(stain, 0.25, 1), 0)[..., None]
        return (np.array(GLASS) - (np.array(GLASS) - rgb) * stain.astype(np.float32)).clip(0, 255).astype(np.uint8)


def large_glass(slide: Slide, side_um: float, rng: np.random.Generator) -> LargeGlass:
    """Return a glass of `side_um` with the texture of a small slide, and structure of 40 and 160 µm."""
    texture = slide.overview(slide.mpp[0])
    cells = max(8, round(side_um / 40))
    return LargeGlass(texture, slide.mpp[0], side_um, rng.normal(size=(2, cells, cells)).astype(np.float32))


def _tile(glass: LargeGlass, to_glass: Affine, left: int, top: int, side: int) -> np.ndarray:
    """Return (side, side, 3) uint8; computed at half the resolution, which is the texture's, and enlarged."""
    steps = np.arange(-2, side + 2, 2) + 1.0
    x, y = (row[0] * (left + steps) + row[1] * (top + steps[:, None]) + row[2] for row in to_glass)
    radius = np.hypot(x - glass.side_um / 2, y - glass.side_um / 2)
    if radius.min() > TISSUE_SHARE * glass.side_um:
        return np.full((side, side, 3), GLASS, np.uint8)
    half = glass.show(np.stack([x, y], axis=-1).astype(np.float32))
    return cv2.resize(half, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)[2:-2, 2:-2]


def write_large(path: Path, glass: LargeGlass, affine: Affine, mpp: float, side_px: int, gamma: float) -> None:
    """Write a square scan of the glass as a tiled JPEG pyramid, a strip of tiles at a time.

    Args:
        path: of the TIFF file.
        glass: what is scanned.
        affine: from µm of the glass to µm of the scan.
        mpp: of the scan.
        side_px: of the scan.
        gamma: of its colours.
    """
    tile, reduced = 512, []
    curve = (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8)
    to_glass = compose(inverse(affine), np.array([[mpp, 0.0, 0], [0, mpp, 0]]))
    columns = math.ceil(side_px / tile) * tile

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, side_px, tile):
            strip = [curve[_tile(glass, to_glass, left, top, tile)] for left in range(0, columns, tile)]
            quarter = (tile // 4, tile // 4)
            reduced.append(np.hstack([cv2.resize(image, quarter, interpolation=cv2.INTER_AREA) for image in strip]))
            yield from strip

    tags = {
        "tile": (tile, tile),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 85},
        "metadata": None,
        "resolution": (1e4 / mpp, 1e4 / mpp),
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(tiles(), shape=(side_px, side_px, 3), dtype=np.uint8, **tags)
        level = np.vstack(reduced)[: side_px // 4, : side_px // 4]
        while True:
            file.write(np.ascontiguousarray(level), subfiletype=1, **tags)
            if max(level.shape) <= 2 * tile:
                break
            half = (level.shape[1] // 4, level.shape[0] // 4)
            level = cv2.resize(level, half, interpolation=cv2.INTER_AREA)
