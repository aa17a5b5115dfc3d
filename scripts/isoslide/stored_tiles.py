"""Levels as the tiles a file stores: each is read and decoded once, kept for its neighbours, and put together."""

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

CACHE_BYTES = 512 * 2**20  # most that decoded tiles may take: two rows of 1,300 tiles of 256 px
ROWS_KEPT = 3  # rows (or columns) of stored tiles kept; memory that is used again is faster than fresh memory


class TileError(Exception):
    """A stored tile is damaged or cut off. `index` is its number in the level."""

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True)
class Layout:
    """Where the tiles of a level lie in the image and in the file.

    Attributes:
        size: (w, h) of the level in px.
        tile: (w, h) of a stored tile; those at the right and lower edge are stored whole.
        offsets: byte where each tile begins, row by row.
        lengths: bytes of each tile; 0 where none is stored.
        path: the file, where it is another than the slide's.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    path: Path | None = None

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return -(-self.size[0] // self.tile[0])

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.size[1] // self.tile[1])


class StoredLevel(Protocol):
    """What a level must offer to be read here."""

    layout: Layout
    shrinks: bool  # whether its decoder can do so well enough
    reductions: tuple[int, ...]  # 1, and whole numbers by which a tile can shrink

    def decode(self, file: int, index: int, reduction: int, buffer: np.ndarray | None) -> np.ndarray:
        """Return a tile (h, w, 3) uint8 RGB, in the memory of `buffer` where possible. Raises TileError."""


class StoredTiles:
    """Reads boxes of levels through a cache of decoded tiles. Threads may share it.

    Args:
        path: the slide's file.
        levels: None for those that are not read here.
        exact: whether a reduction is the mean of all pixels, instead of the decoder's.
    """

    def __init__(self, path: Path, levels: list[StoredLevel | None], exact: bool):
        self.levels = levels
        self._exact = exact
        paths = {level.layout.path or path for level in levels if level is not None}
        self._files = {name: os.open(name, os.O_RDONLY) for name in sorted(paths)}
        self._path = path
        self._cache = _Cache()

    def close(self) -> None:
        """Close the files and let the decoded tiles go."""
        while self._files:
            os.close(self._files.popitem()[1])
        self._cache = _Cache()

    def read(
        self,
        level: int,
        reduction: int,
        corners: np.ndarray,
        out: Sequence[np.ndarray],
        background: tuple[int, ...],
    ) -> None:
        """Fill boxes of a level shrunk by `reduction`; background where nothing is stored.

        Each stored tile is decoded once, in the order of the file, and copied while it is still in the processor's
        cache; only those that reach beyond the boxes are kept for the next call.

        Args:
            level: number of a level that is stored here.
            reduction: one of the level's.
            corners: (n, 2) int64, (x, y) of each box in px of the shrunk level; may lie outside.
            out: n arrays (h, w, 3) uint8.
            background: RGB.

        Raises:
            TileError: a tile is damaged.
        """
        stored = self.levels[level]
        layout = stored.layout
        buffer = np.empty(3 * layout.tile[0] * layout.tile[1] // reduction**2, np.uint8)
        parts = _parts(layout, reduction, corners, out, background)
        for index in sorted(parts):
            if not layout.lengths[index]:
                for *_, target in parts[index]:
                    target[:] = background
                continue
            tile, is_new = self._tile(stored, (level, reduction, index), buffer)
            wanted = 0
            for x, y, target in parts[index]:
                h, w = target.shape[:2]
                target[:] = tile[y : y + h, x : x + w]
                wanted += h * w
            if is_new and wanted < tile.shape[0] * tile.shape[1]:
                longest = max(layout.columns, layout.rows)
                kept = tile.copy() if np.may_share_memory(tile, buffer) else tile
                self._cache.put((level, reduction, index), kept, min(CACHE_BYTES, ROWS_KEPT * longest * tile.nbytes))

    def _tile(self, stored: StoredLevel, key: tuple[int, int, int], buffer: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return a decoded tile, which may lie in `buffer`, and whether it has been decoded now."""
        _, reduction, index = key
        tile = self._cache.get(key)
        if tile is not None:
            return tile, False
        file = self._files[stored.layout.path or self._path]
        if reduction == 1 or (stored.shrinks and not self._exact):
            return stored.decode(file, index, reduction, buffer), True
        tile = stored.decode(file, index, 1, None)
        size = (tile.shape[1] // reduction, tile.shape[0] // reduction)
        return cv2.resize(tile, size, interpolation=cv2.INTER_AREA), True


def _parts(
    layout: Layout, reduction: int, corners: np.ndarray, out: Sequence[np.ndarray], background: tuple[int, ...]
) -> dict[int, list[tuple[int, int, np.ndarray]]]:
    """Return {number of stored tile: [(x, y) in it, the part of a box to fill from there]}; fill what lies outside."""
    parts = defaultdict(list)
    # whole pixels only: at a reduction the last one may mix the image with the padding of its tile
    width, height = layout.size[0] // reduction, layout.size[1] // reduction
    tile_w, tile_h = layout.tile[0] // reduction, layout.tile[1] // reduction
    columns = layout.columns
    for (x, y), image in zip(corners.tolist(), out, strict=True):
        h, w = image.shape[:2]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if (x0, y0, x1, y1) != (x, y, x + w, y + h):
            image[:] = background
        if x0 >= x1:
            continue
        for row in range(y0 // tile_h, (y1 - 1) // tile_h + 1):
            top = row * tile_h
            y_from, y_to = max(y0, top), min(y1, top + tile_h)
            for column in range(x0 // tile_w, (x1 - 1) // tile_w + 1):
                left = column * tile_w
                x_from, x_to = max(x0, left), min(x1, left + tile_w)
                target = image[y_from - y : y_to - y, x_from - x : x_to - x]
                parts[row * columns + column].append((x_from - left, y_from - top, target))
    return parts


class _Cache:
    """The arrays used last."""

    def __init__(self) -> None:
        self._bytes = 0
        self._arrays: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int]) -> np.ndarray | None:
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
            return array

    def put(self, key: tuple[int, int, int], array: np.ndarray, limit: int) -> None:
        """Keep an array; the oldest go until all together have at most `limit` bytes."""
        with self._lock:
            if key in self._arrays:
                return
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > limit and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes


def stored_bytes(file: int, layout: Layout, index: int) -> bytes:
    """Return the bytes of a tile.

    Raises:
        TileError: the file ends before them.
    """
    length = layout.lengths[index]
    data = os.pread(file, length, layout.offsets[index])
    if len(data) < length:
        raise TileError(index, f"the file ends {length - len(data)} bytes before the end of a tile")
    return data
