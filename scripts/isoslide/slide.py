"""Reading slides in micrometres: any rectangle, at any µm/px, under any affine map."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import openslide
from openslide import OpenSlideError, OpenSlideUnsupportedFormatError
from PIL import UnidentifiedImageError

from isoslide import keys

Affine = np.ndarray  # (2, 3)

MAX_CROP_PX = 8192  # per side, of what is decoded at once; also keeps cv2.warpAffine below its 32,767 px limit


class SlideError(Exception):
    """A slide, or a part of it, cannot be used. The one error that batch jobs turn into a status row."""

    def __init__(self, status: str, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class Slide:
    """An open slide.

    Args:
        path: a slide file, or a folder that holds one slide's DICOM files.
        mpp: µm per pixel of level 0 (x, y); by default what the file says.

    Raises:
        SlideError: `missing`, `unreadable`, or `no_mpp`.
    """

    def __init__(self, path: str | Path, mpp: tuple[float, float] | None = None):
        self.path = Path(path)
        self._handle = _open(self.path)
        properties = self._handle.properties
        self.mpp = mpp or file_mpp(properties)
        if self.mpp is None:
            self.close()
            raise SlideError("no_mpp", "the file does not say its µm/px: give it in the sheet's column 'mpp'")
        self.size: tuple[int, int] = self._handle.dimensions
        self.size_um = (self.size[0] * self.mpp[0], self.size[1] * self.mpp[1])
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self.background = tuple(bytes.fromhex(colour))
        self.properties = properties
        self.levels = list(zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True))

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def overview(self, um_per_px: float) -> np.ndarray:
        """Return the whole slide, (rows, cols, 3) uint8; pixel (u, v) begins at µm (u, v) * um_per_px."""
        size = tuple(max(1, round(extent / um_per_px)) for extent in self.size_um)
        return self.read(np.array([[um_per_px, 0, 0], [0, um_per_px, 0]]), size)

    def read(self, affine: Affine, size: tuple[int, int]) -> np.ndarray:
        """Return an image of `size` (w, h) as (h, w, 3) uint8 RGB.

        `affine` (2, 3) takes an output coordinate (u, v), the output covering [0, w] x [0, h], to µm from the top left
        corner of level 0. Pixels come from the coarsest level that is still at least as fine as the output; each output
        pixel is the mean of a k x k grid of samples a source pixel or less apart (an area mean where the map is a plain
        reduction). What lies outside the slide or is transparent shows the slide's background colour.

        Raises:
            SlideError: `partly_unreadable`, with the place.
        """
        to_pixels = np.asarray(affine, float) / np.array(self.mpp)[:, None]  # output -> level-0 px
        step = min(np.hypot(*to_pixels[:, 0]), np.hypot(*to_pixels[:, 1]))  # level-0 px per output px
        # 1 % of slack: a level of downsample 4.0008 still serves a request of 4
        level = max(i for i, (_, ratio) in enumerate(self.levels) if i == 0 or ratio <= step * 1.01)
        downsample = self.levels[level][1]
        samples = max(1, math.ceil(step / downsample - 0.01))
        return self._read_level(to_pixels / downsample, size, level, samples)

    def _read_level(self, matrix: Affine, size: tuple[int, int], level: int, samples: int) -> np.ndarray:
        """Read with `matrix` (2, 3): output -> pixels of the level; halves the output until a crop fits in memory."""
        corners = np.array([[0, 0, 1], [size[0], 0, 1], [0, size[1], 1], [size[0], size[1], 1]]) @ matrix.T
        low, high = corners.min(axis=0), corners.max(axis=0)
        if max(*(high - low), samples * size[0], samples * size[1]) > MAX_CROP_PX and max(size) > 1:
            axis = 0 if size[0] >= size[1] else 1
            half = size[axis] // 2
            first, second = list(size), list(size)
            first[axis], second[axis] = half, size[axis] - half
            shifted = matrix.copy()
            shifted[:, 2] += matrix[:, axis] * half
            parts = (
                self._read_level(matrix, (first[0], first[1]), level, samples),
                self._read_level(shifted, (second[0], second[1]), level, samples),
            )
            return np.concatenate(parts, axis=1 - axis)
        crop, origin = self._crop(low, high, level)
        # cv2 counts from pixel centres: sample j of k per output pixel sits at (j + 0.5) / k
        warp = np.empty((2, 3))
        warp[:, :2] = matrix[:, :2] / samples
        warp[:, 2] = matrix[:, :2].sum(axis=1) * 0.5 / samples + matrix[:, 2] - origin - 0.5
        image = cv2.warpAffine(
            crop,
            warp,
            (size[0] * samples, size[1] * samples),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=self.background,
        )
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if samples > 1 else image

    def _crop(self, low: np.ndarray, high: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Return RGB pixels that cover the box and a rim, and the level coordinate of their first corner."""
        (width, height), downsample = self.levels[level]
        start = np.clip(np.floor(low) - 2, -2, (width, height)).astype(int)
        stop = np.clip(np.ceil(high) + 2, start + 1, (width + 2, height + 2)).astype(int)
        location = np.round(start * downsample).astype(int)
        w, h = (int(extent) for extent in stop - start)
        try:
            region = np.asarray(self._handle.read_region((int(location[0]), int(location[1])), level, (w, h)))
        except OpenSlideError as error:
            place = f"level {level}, level-0 px ({location[0]}, {location[1]}), {w} x {h} px"
            raise SlideError("partly_unreadable", f"{error} at {place}") from error
        return _on_background(region, self.background), location / downsample


def code() -> str:
    """Return the hash of the code that decides what pixels `Slide.read` gives."""
    return keys.code_hash(Slide.read, Slide._read_level, Slide._crop, _on_background)


def file_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the µm/px that the file states, (x, y), or None."""
    try:
        mpp = (float(properties[openslide.PROPERTY_NAME_MPP_X]), float(properties[openslide.PROPERTY_NAME_MPP_Y]))
    except (KeyError, ValueError):
        return None
    return mpp if all(math.isfinite(value) and value > 0 for value in mpp) else None


def open_checked(row: Mapping[str, Any]) -> Slide:
    """Open the scan of a row of the checks table, with the µm/px decided there.

    Raises:
        SlideError: also `changed` when the file's size is no longer what the check saw.
    """
    slide = Slide(row["path"], (float(row["mpp_x"]), float(row["mpp_y"])))
    if slide.size != (int(row["width"]), int(row["height"])):
        slide.close()
        raise SlideError("changed", f"{slide.size} px, but {row['width']} x {row['height']} px when it was checked")
    return slide


def slide_file(path: Path) -> Path:
    """Return the file to open: the path itself, or of a DICOM folder the largest file, which is of level 0."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.dcm"), key=lambda file: (-file.stat().st_size, file.name))
    if not files:
        raise SlideError("unreadable", "a folder without .dcm files: name the slide's file")
    return files[0]


def _open(path: Path) -> openslide.AbstractSlide:
    if not path.exists():
        raise SlideError("missing", f"no file {path}")
    try:
        return openslide.open_slide(slide_file(path))
    except OpenSlideUnsupportedFormatError as error:
        raise SlideError("unreadable", "a format that OpenSlide does not know, or a damaged header") from error
    except (OpenSlideError, UnidentifiedImageError, OSError) as error:
        raise SlideError("unreadable", str(error)) from error


def _on_background(rgba: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    rgb = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        return rgb
    clear = alpha < 255
    weight = alpha[clear, None].astype(np.float32) / 255
    rgb[clear] = np.round(rgb[clear] * weight + np.array(background, np.float32) * (1 - weight))
    return rgb
