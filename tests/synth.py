"""Synthetic slides for tests: pink blobs on white glass, as tiled pyramidal TIFF files that OpenSlide opens."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile

GLASS = (244, 243, 244)
STAIN = {
    "he": ((225, 150, 195), (120, 70, 150)),  # matrix and nuclei
    "pale": ((240, 226, 236), (216, 200, 220)),
    "ihc": ((210, 216, 224), (110, 70, 50)),
}
PENS = {
    "blue": (40, 100, 200),
    "green": (40, 150, 110),
    "red": (225, 40, 70),
    "black": (25, 24, 26),
    "violet": (80, 35, 130),
}
Blob = tuple[float, float, float]  # centre x, y and radius in µm


def slide(
    path: Path,
    *,
    mpp: float = 0.5,
    size_um: tuple[float, float] = (1200, 1000),
    size_px: tuple[int, int] | None = None,
    blobs: Sequence[Blob] = ((500, 500, 300),),
    stain: str = "he",
    pen: str | None = None,
    pen_box_um: tuple[float, float, float, float] = (950, 100, 1150, 900),
    frame_um: float = 0,
    noise: float = 2.0,
    with_mpp: bool = True,
    flat: bool = False,
    transform: np.ndarray | None = None,
    seed: int = 0,
) -> Path:
    """Write a slide; equal arguments give equal pixels, and blobs look alike at every µm/px.

    Args:
        path: ends with .tif.
        mpp: µm per pixel of level 0, written to the resolution tags unless `with_mpp` is false.
        size_um: (w, h) of the slide; `size_px` instead gives level-0 pixels.
        size_px: (w, h) in level-0 px.
        blobs: discs of tissue (centre x, y, radius in µm).
        stain: a key of `STAIN`.
        pen: a key of `PENS`: a bar of marker ink that covers `pen_box_um` (x0, y0, x1, y1).
        pen_box_um: of the bar.
        frame_um: width of a black frame around the slide.
        noise: standard deviation in grey levels.
        with_mpp: whether the resolution tags are written.
        flat: one level only.
        transform: (2, 3) from the µm of this scan to the µm in which blobs, nuclei and pen are given: makes another
            scan of the same specimen.
        seed: of the noise.
    """
    width, height = size_px or (round(size_um[0] / mpp), round(size_um[1] / mpp))
    image = render((width, height), mpp, blobs, stain, transform)
    if pen:
        x0, y0, x1, y1 = (round(value / mpp) for value in pen_box_um)
        image[y0:y1, x0:x1] = PENS[pen]
    if frame_um:
        n = round(frame_um / mpp)
        inner = image[n:-n, n:-n].copy()
        image[:] = 5
        image[n:-n, n:-n] = inner
    if noise:
        tile = np.random.default_rng(seed).normal(0, noise, (256, 256, 3)).astype(np.float32)
        image += cv2.repeat(tile, height // 256 + 1, width // 256 + 1)[:height, :width]
        np.clip(image, 0, 255, out=image)
    write(path, np.round(image).astype(np.uint8), mpp if with_mpp else None, flat)
    return path


def render(
    size: tuple[int, int],
    mpp: float,
    blobs: Sequence[Blob],
    stain: str = "he",
    transform: np.ndarray | None = None,
) -> np.ndarray:
    """Return (h, w, 3) float32: discs of tissue with dark nuclei on a 20 µm lattice that is bent, so never repeats."""
    width, height = size
    x, y = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) * np.float32(mpp) for n in size))
    if transform is not None:
        (a, b, c), (d, e, f) = np.asarray(transform, np.float32)
        x, y = a * x + b * y + c, d * x + e * y + f
    inside = np.zeros(x.shape, bool)
    for cx, cy, radius in blobs:
        inside |= (x - cx) ** 2 + (y - cy) ** 2 < radius**2
    x, y = x[inside], y[inside]
    u, v = x + 9 * np.sin(y / 37) + 5 * np.sin(x / 61), y + 9 * np.sin(x / 43) + 5 * np.sin(y / 71)
    nuclei = (u % 20 - 10) ** 2 + (v % 20 - 10) ** 2 < 16 + 12 * np.sin(x / 90 + y / 130)
    matrix, nucleus = np.array(STAIN[stain], np.float32)
    image = np.full((height, width, 3), GLASS, np.float32)
    image[inside] = np.where(nuclei[:, None], nucleus, matrix)
    return image


def write(path: Path, image: np.ndarray, mpp: float | None, flat: bool = False, tile: int = 256) -> None:
    """Write (h, w, 3) uint8 as a tiled JPEG TIFF whose levels halve down to one tile."""
    levels = [image]
    while not flat and max(levels[-1].shape[:2]) > tile:
        h, w = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA))
    tags = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for index, level in enumerate(levels):
            file.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=1 if index else 0,
                metadata=None,
                **tags,
            )
