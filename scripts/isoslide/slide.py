"""Reading slides in micrometres: any rectangle, at any µm/px, under any affine map."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import openslide
from openslide import OpenSlideError
from PIL import ImageCms

from isoslide import dicom_levels, icc, jpeg_tiles, keys, openslide_fast, slide_files, stored_tiles, tiff_levels
from isoslide.slide_files import SlideError, slide_file
from isoslide.stored_tiles import StoredTiles

Affine = np.ndarray  # (2, 3)

MAX_CROP_PX = 8192  # per side, of what is decoded at once; also keeps cv2.warpAffine below its 32,767 px limit
ON_GRID_PX = 1e-3  # a map that misses whole pixels by less is a plain copy: 0.3 grey levels at the sharpest edge


@dataclass(frozen=True)
class Reading:
    """How pixels are read, the same for all slides of a cohort.

    Attributes:
        icc: `ignore` leaves colours as stored, `srgb` takes them to sRGB where the file has a colour profile.
        downsampling: `fast` lets the JPEG decoder shrink by 2, 4 or 8, `exact` decodes all and takes area means.
    """

    icc: str = "ignore"
    downsampling: str = "fast"


class Slide:
    """An open slide. Threads may read from it at the same time; processes open their own.

    Args:
        path: a slide file, or a folder that holds one slide's DICOM files.
        mpp: µm per pixel of level 0 (x, y); by default what the file says.
        reading: how pixels are read.

    Raises:
        SlideError: `missing`, `unreadable`, `unsupported_codec` or `no_mpp`.
    """

    def __init__(self, path: str | Path, mpp: tuple[float, float] | None = None, reading: Reading | None = None):
        self.path = Path(path)
        self.reading = reading or Reading()
        self._handle = slide_files.open_file(self.path)
        properties = self._handle.properties
        self.mpp = mpp or file_mpp(properties)
        if self.mpp is None:
            self._handle.close()
            raise SlideError("no_mpp", "the file does not say its µm/px: give it in the sheet's column 'mpp'")
        self.size: tuple[int, int] = self._handle.dimensions
        self.size_um = (self.size[0] * self.mpp[0], self.size[1] * self.mpp[1])
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self.background = tuple(bytes.fromhex(colour))
        self.properties = properties
        self.levels = list(zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True))
        exact = self.reading.downsampling == "exact"
        self._stored = StoredTiles(slide_file(self.path), slide_files.stored_levels(self.path, self._handle), exact)

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
        self._stored.close()

    def read_through_openslide(self) -> None:
        """Leave direct reading, for a comparison."""
        self._stored.levels = [None] * len(self.levels)

    def overview(self, um_per_px: float) -> np.ndarray:
        """Return the whole slide, (rows, cols, 3) uint8; pixel (u, v) begins at µm (u, v) * um_per_px."""
        size = tuple(max(1, round(extent / um_per_px)) for extent in self.size_um)
        return self.read(np.array([[um_per_px, 0, 0], [0, um_per_px, 0]]), size)

    def read(self, affine: Affine, size: tuple[int, int]) -> np.ndarray:
        """Return an image of `size` (w, h) as (h, w, 3) uint8 RGB.

        `affine` (2, 3) takes an output coordinate (u, v), the output covering [0, w] x [0, h], to µm from the top left
        corner of level 0. Pixels come from the coarsest level that is still at least as fine as the output; each output
        pixel is the mean of a k x k grid of samples a source pixel or less apart (an area mean where the map is a plain
        reduction). With `downsampling: fast` the JPEG decoder does the shrinking where it hits the output's pixels, or
        leaves at least 2 x 2 samples to each. What lies outside the slide or is transparent shows the slide's
        background colour.

        Raises:
            SlideError: `partly_unreadable`, with the place.
        """
        out = np.empty((size[1], size[0], 3), np.uint8)
        self._read_all(np.asarray(affine, float)[None], out[None])
        return out

    def read_tiles(self, affines: np.ndarray, tile_px: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return tiles (n, tile_px, tile_px, 3) uint8, for each of the maps (n, 2, 3) what `read` gives.

        Stored tiles that neighbours share are decoded once where the file's tiles can be reached directly, so tiles
        should come in an order that stays in one place: row by row, as a grid has them. `out` takes the tiles if given.
        """
        out = np.empty((len(affines), tile_px, tile_px, 3), np.uint8) if out is None else out
        linear = np.asarray(affines)[:, :, :2]
        if (linear == linear[:1]).all():
            self._read_all(np.asarray(affines, float), out)
        else:
            for affine, tile in zip(affines, out, strict=True):
                self._read_all(affine[None], tile[None])
        return out

    def _read_all(self, affines: np.ndarray, out: np.ndarray) -> None:
        """Fill images (n, h, w, 3); the maps (n, 2, 3) differ by a shift only."""
        size = (out.shape[2], out.shape[1])
        matrices = affines / np.array(self.mpp)[:, None]  # output -> level-0 px
        for source, indices, corners in self._plan(matrices, size):
            if source.samples == 1 and corners.size:
                self._boxes(source, corners, [out[index] for index in indices])
                continue
            for index, corner in zip(indices, corners, strict=True):
                if corner.size:
                    self._read_means(source, corner, size, out[index])
                else:
                    self._read_warped(source, matrices[index] / source.ratio, size, out[index])
        if self._to_srgb:
            for image in out:
                image[:] = self._to_srgb(image)

    @functools.cached_property
    def _to_srgb(self) -> icc.Transform | None:
        if self.reading.icc == "ignore":
            return None
        try:
            profile = self._handle.color_profile
            return icc.to_srgb(profile) if profile else None
        except (ImageCms.PyCMSError, OSError) as error:
            raise SlideError("unreadable", f"its colour profile cannot be used: {error}") from error

    def _plan(self, matrices: np.ndarray, size: tuple[int, int]) -> Iterator[tuple["_Source", np.ndarray, np.ndarray]]:
        """Yield what to read images from: source, numbers (m,) of images, and their corners on the source's pixels.

        Corners are (m, 2) int64, or (m, 0) where images do not fall on whole pixels of the source.

        Args:
            matrices: (n, 2, 3), output -> level-0 px; they differ by a shift only.
            size: (w, h) of the output.
        """
        linear, shifts = matrices[0, :, :2], matrices[:, :, 2]
        step = min(np.hypot(*linear[:, 0]), np.hypot(*linear[:, 1]))  # level-0 px per output px
        # 1 % of slack: a level of downsample 4.0008 still serves a request of 4
        level = max(i for i, (_, ratio) in enumerate(self.levels) if i == 0 or ratio <= step * 1.01)
        stored = self._stored.levels[level]
        reductions = (1,) if stored is None else stored.reductions
        sources = [_Source.of(level, n, self.levels[level][1], step) for n in reductions]
        left = np.arange(len(matrices))
        for source in reversed(sources):
            if np.abs(linear / source.ratio - source.samples * np.eye(2)).max() * max(size) > ON_GRID_PX:
                continue
            corners = shifts[left] / source.ratio
            # OpenSlide takes whole pixels of level 0, direct reading whole pixels of the source
            places = shifts[left] if stored is None else corners
            plain = np.abs(np.stack([corners, places]) - np.round([corners, places])).max(axis=(0, 2)) < ON_GRID_PX
            yield source, left[plain], np.round(corners[plain]).astype(np.int64)
            left = left[~plain]
        fast = self.reading.downsampling == "fast"
        source = next(s for s in reversed(sources) if s.reduction == 1 or (fast and s.samples >= 2))
        yield source, left, np.empty((len(left), 0), np.int64)

    def _read_means(self, source: "_Source", corner: np.ndarray, size: tuple[int, int], out: np.ndarray) -> None:
        """Fill an image with the means of k x k pixels of the source from `corner` on."""
        k = source.samples
        rows = max(1, MAX_CROP_PX**2 // (size[0] * k * k))  # at once
        for row in range(0, size[1], rows):
            part = out[row : row + rows]
            box = self._box(source, corner + (0, row * k), (size[0] * k, len(part) * k))
            cv2.resize(box, (size[0], len(part)), dst=part, interpolation=cv2.INTER_AREA)

    def _read_warped(self, source: "_Source", matrix: Affine, size: tuple[int, int], out: np.ndarray) -> None:
        """Fill an image with samples between pixels; `matrix` (2, 3): output -> pixels of the source.

        Halves the output until a crop fits in memory.
        """
        samples = source.samples
        corners = np.array([[0, 0, 1], [size[0], 0, 1], [0, size[1], 1], [size[0], size[1], 1]]) @ matrix.T
        low, high = corners.min(axis=0), corners.max(axis=0)
        if max(*(high - low), samples * size[0], samples * size[1]) > MAX_CROP_PX and max(size) > 1:
            axis = 0 if size[0] >= size[1] else 1
            half = size[axis] // 2
            shifted = matrix.copy()
            shifted[:, 2] += matrix[:, axis] * half
            first, second = (out[:, :half], out[:, half:]) if axis == 0 else (out[:half], out[half:])
            self._read_warped(source, matrix, first.shape[1::-1], first)
            self._read_warped(source, shifted, second.shape[1::-1], second)
            return
        width, height = (math.ceil(extent / source.reduction) for extent in self.levels[source.level][0])
        start = np.clip(np.floor(low) - 2, -2, (width, height)).astype(int)
        stop = np.clip(np.ceil(high) + 2, start + 1, (width + 2, height + 2)).astype(int)
        crop = self._box(source, start, stop - start)
        if self._stored.levels[source.level] is None:
            start = np.where(start < 0, start, np.round(start * source.ratio) / source.ratio)  # where the crop begins
        # cv2 counts from pixel centres: sample j of k per output pixel sits at (j + 0.5) / k
        warp = np.empty((2, 3))
        warp[:, :2] = matrix[:, :2] / samples
        warp[:, 2] = matrix[:, :2].sum(axis=1) * 0.5 / samples + matrix[:, 2] - start - 0.5
        image = cv2.warpAffine(
            crop,
            warp,
            (size[0] * samples, size[1] * samples),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=self.background,
        )
        out[:] = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if samples > 1 else image

    def _box(self, source: "_Source", corner: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """Return `size` (w, h) pixels (h, w, 3) of the source from its pixel `corner` (x, y) on."""
        out = np.empty((size[1], size[0], 3), np.uint8)
        self._boxes(source, corner[None], [out])
        return out

    def _boxes(self, source: "_Source", corners: np.ndarray, out: list[np.ndarray]) -> None:
        """Fill images (h, w, 3) with pixels of the source, each from its corner (n, 2) on."""
        level, stored = source.level, self._stored.levels[source.level]
        if stored is None:
            for corner, image in zip(np.asarray(corners, int), out, strict=True):
                self._openslide_box(source, corner, image)
            return
        try:
            self._stored.read(level, source.reduction, corners, out, self.background)
        except stored_tiles.TileError as error:
            row, column = divmod(error.index, stored.layout.columns)
            width, height = stored.layout.tile
            ratio = self.levels[level][1]
            place = (round(column * width * ratio), round(row * height * ratio))
            raise _unreadable(error, level, place, (width, height)) from error

    def _openslide_box(self, source: "_Source", corner: np.ndarray, out: np.ndarray) -> None:
        """Fill an image through OpenSlide, asking for nothing left of or above the slide.

        OpenSlide 4.0.1 puts a region that begins there a pixel off where the level's downsample is no whole number.
        """
        skip = np.maximum(0, -corner)
        inside = out
        if skip.any():
            out[:] = self.background
            if (skip >= out.shape[1::-1]).any():
                return
            inside = np.empty_like(out[skip[1] :, skip[0] :])
        x, y = np.round((corner + skip) * source.ratio).astype(int).tolist()
        self._region(source.level, (x, y), inside)
        if skip.any():
            out[skip[1] :, skip[0] :] = inside

    def _region(self, level: int, location: tuple[int, int], out: np.ndarray) -> None:
        """Fill an image through OpenSlide."""
        size = (out.shape[1], out.shape[0])
        try:
            openslide_fast.read(self._handle, location, level, size, self.background, out)
        except OpenSlideError as error:
            raise _unreadable(error, level, location, size) from error


@dataclass(frozen=True)
class _Source:
    """Pixels to read from.

    Attributes:
        level: of the file.
        reduction: whole number that the level is shrunk by.
        ratio: level-0 px per pixel.
        samples: along each side of an output pixel.
    """

    level: int
    reduction: int
    ratio: float
    samples: int

    @classmethod
    def of(cls, level: int, reduction: int, level_ratio: float, step: float) -> "_Source":
        """Return the source for an output of `step` level-0 px per pixel."""
        ratio = level_ratio * reduction
        return cls(level, reduction, ratio, max(1, math.ceil(step / ratio - 0.01)))


def _unreadable(error: Exception, level: int, place: tuple[int, int], size: tuple[int, int]) -> SlideError:
    where = f"level {level}, level-0 px ({place[0]}, {place[1]}), {size[0]} x {size[1]} px"
    return SlideError("partly_unreadable", f"{error} at {where}")


def code(reading: Reading | None = None) -> dict[str, Any]:
    """Return what decides which pixels `Slide.read` gives: the hash of the code, and the settings."""
    modules = (stored_tiles, jpeg_tiles, tiff_levels, dicom_levels, openslide_fast, icc)
    return {"code": keys.code_hash(Slide, _Source, slide_files.stored_levels, *modules), **asdict(reading or Reading())}


def file_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the µm/px that the file states, (x, y), or None."""
    try:
        mpp = (float(properties[openslide.PROPERTY_NAME_MPP_X]), float(properties[openslide.PROPERTY_NAME_MPP_Y]))
    except (KeyError, ValueError):
        return None
    return mpp if all(math.isfinite(value) and value > 0 for value in mpp) else None


def open_checked(row: Mapping[str, Any], reading: Reading | None = None) -> Slide:
    """Open the scan of a row of the checks table, with the µm/px decided there.

    Raises:
        SlideError: also `changed` when the file's size is no longer what the check saw.
    """
    slide = Slide(row["path"], (float(row["mpp_x"]), float(row["mpp_y"])), reading)
    if slide.size != (int(row["width"]), int(row["height"])):
        slide.close()
        raise SlideError("changed", f"{slide.size} px, but {row['width']} x {row['height']} px when it was checked")
    return slide
