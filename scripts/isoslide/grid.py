"""Tiles: one grid per specimen, fixed in micrometres of its reference scan, and carried to its other scans.

The lattice begins at the reference scan's corner (0, 0) and knows nothing of the tissue, so a tile's id says where it
is: `tile id = row * 1,000,000 + column`, the same in every scan of the specimen and whatever tissue is found.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from isoslide import __version__, atomic, geojson, keys
from isoslide.geojson import Polygon

ROW = 1_000_000  # tile ids of neighbouring rows differ by this
SAMPLES = 16  # per tile side: tissue is tested at 16 x 16 points of a tile
EDGE_UM = 0.001  # a tile that passes the scan's edge by less is inside: rounding, not geometry
TOO_COARSE = 1.5  # a scan may be coarser than the wanted µm/px by this factor
IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class View:
    """How a tile is seen: `tile_px` pixels a side at `mpp` µm per pixel."""

    tile_px: int
    mpp: float

    @property
    def tile_um(self) -> float:
        """Side of a tile in µm."""
        return self.tile_px * self.mpp


@dataclass(frozen=True)
class Tiles:
    """The tiles of one scan.

    Attributes:
        coords: (n, 2) int64, level-0 px; top left corner of the upright square of a tile's size about its centre.
        tile_ids: (n,) int64, increasing.
        out_of_bounds: (n,) bool; some part of the tile lies outside this scan.
        corners_um: (n, 2) float64, µm of the reference scan; top left corner of each tile.
        affine: (2, 3) float64, from µm of the reference scan to µm of this scan.
        attrs: all else the file says: view, µm/px, reference, key.
        local: (n, 2, 3) float64, the affine of each tile where the scan's map has a smooth correction; else None.
    """

    coords: np.ndarray
    tile_ids: np.ndarray
    out_of_bounds: np.ndarray
    corners_um: np.ndarray
    affine: np.ndarray
    attrs: Mapping[str, Any]
    local: np.ndarray | None = None

    @property
    def maps(self) -> np.ndarray:
        """The affine (n, 2, 3) of each tile, from µm of the reference scan to µm of this scan."""
        return np.broadcast_to(self.affine, (len(self.tile_ids), 2, 3)) if self.local is None else self.local


def step_um(tile_um: float, overlap: float) -> float:
    """Return the distance of neighbouring tiles in µm; the overlap, a share of a side, is rounded to sixteenths."""
    return tile_um * max(1, round(SAMPLES * (1 - overlap))) / SAMPLES


def tissue_tiles(
    polygons_um: list[Polygon], size_um: tuple[float, float], tile_um: float, min_tissue: float, overlap: float = 0
) -> np.ndarray:
    """Return the ids (n,) of the tiles of which at least `min_tissue` is tissue, in increasing order.

    A tile that passes the scan's right or lower edge counts the part outside as not tissue.

    Args:
        polygons_um: tissue in µm of the scan.
        size_um: (w, h) of the scan.
        tile_um: side of a tile.
        min_tissue: share of the tile's area, above 0 and up to 1.
        overlap: share of a side that neighbours have in common, 0 to below 1.
    """
    step = round(step_um(tile_um, overlap) / tile_um * SAMPLES)  # in samples
    cols, rows = (int(np.ceil((extent - EDGE_UM) / tile_um * SAMPLES / step)) for extent in size_um)
    shape = ((rows - 1) * step + SAMPLES, (cols - 1) * step + SAMPLES)
    mask = geojson.rasterise(polygons_um, tile_um / SAMPLES, shape)
    windows = np.lib.stride_tricks.sliding_window_view(mask, (SAMPLES, SAMPLES))[::step, ::step]
    share = windows.mean(axis=(2, 3))
    row, col = np.nonzero(share >= max(min_tissue, 1e-9))
    return (row * ROW + col).astype(np.int64)


def corners(tile_ids: np.ndarray, step_um: float) -> np.ndarray:
    """Return the top left corners (n, 2) of tiles in µm of the reference scan; without overlap a step is a tile."""
    row, col = np.divmod(np.asarray(tile_ids), ROW)
    return np.column_stack([col, row]) * float(step_um)


def sample(tile_ids: np.ndarray, max_tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Return at most `max_tiles` of the ids, in increasing order; 0 means all.

    The ids are shuffled and the first ones taken, so a larger cap adds tiles and drops none.
    """
    if not max_tiles or len(tile_ids) <= max_tiles:
        return tile_ids
    return np.sort(rng.permutation(tile_ids)[:max_tiles])


def tile_affines(corners_um: np.ndarray, tile_um: float, tile_px: int, affine: np.ndarray) -> np.ndarray:
    """Return for each tile the map (n, 2, 3) from its output pixels to µm of a scan, as `Slide.read` takes it.

    Args:
        corners_um: (n, 2), top left corners in µm of the reference scan.
        tile_um: side of a tile.
        tile_px: output pixels a side.
        affine: (2, 3) or one for each tile (n, 2, 3), from µm of the reference scan to µm of the scan.
    """
    affine = np.asarray(affine, float)
    maps = np.empty((len(corners_um), 2, 3))
    maps[:, :, :2] = affine[..., :2] * (tile_um / tile_px)
    maps[:, :, 2] = carry(affine, np.asarray(corners_um)[:, None])[:, 0]
    return maps


def carry(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points of tiles (n, k, 2) under one affine (2, 3) or each tile's own (n, 2, 3)."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def outside(corners_um: np.ndarray, tile_um: float, affine: np.ndarray, size_um: tuple[float, float]) -> np.ndarray:
    """Return (n,) bool: does any part of the tile, carried to the scan, lie outside [0, w] x [0, h] µm."""
    square = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * tile_um
    points = carry(affine, corners_um[:, None] + square)
    return ((points < -EDGE_UM) | (points > np.array(size_um) + EDGE_UM)).any(axis=(1, 2))


def level0_corners(corners_um: np.ndarray, tile_um: float, affine: np.ndarray, mpp: tuple[float, float]) -> np.ndarray:
    """Return (n, 2) int64 level-0 px: top left corner of the upright square of a tile's size about its centre.

    That is the tile itself up to the rounding where the scan is not turned, or turned by quarters.
    """
    centres = carry(affine, corners_um[:, None] + tile_um / 2)[:, 0]
    side = tile_um * np.sqrt(abs(np.linalg.det(affine[..., :2])))
    return np.round((centres - np.expand_dims(side, -1) / 2) / np.array(mpp)).astype(np.int64)


def write(path: str | Path, tiles: Tiles, size: tuple[int, int]) -> None:
    """Write the tiles of a scan, readable by TRIDENT (`coords` and its attributes); equal input gives equal bytes.

    Args:
        path: of the HDF5 file.
        tiles: `attrs` must hold tile_px, mpp, mpp_x, mpp_y.
        size: (w, h) of level 0.
    """
    attrs = tiles.attrs
    side = attrs["tile_px"] * attrs["mpp"]
    level0_mpp = (attrs["mpp_x"] + attrs["mpp_y"]) / 2
    # Made in memory: HDF5 on a full disk fails late and in pieces, and shared disks may refuse its locks.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        units = {
            "coords": "level-0 px, top left corner of the upright square about the tile's centre",
            "tile_ids": "row * 1000000 + column in the grid of the reference scan",
            "out_of_bounds": "1 where a part of the tile lies outside the scan",
            "corners_um": "µm of the reference scan, top left corner",
        }
        for name, unit in units.items():
            file.create_dataset(name, data=getattr(tiles, name)).attrs["unit"] = unit
        file["coords"].attrs.update(
            patch_size=attrs["tile_px"],
            patch_size_level0=round(side / level0_mpp),
            level0_magnification=round(10 / level0_mpp),  # 40 for 0.25 µm/px; not the scanner's nominal power
            target_magnification=10 / attrs["mpp"],
            overlap=round(attrs["tile_px"] * (1 - attrs.get("step_um", side) / side)),
            name=str(attrs.get("scan", "")),
            level0_width=size[0],
            level0_height=size[1],
        )
        file.attrs["version"] = __version__
        file.attrs["affine"] = tiles.affine
        if tiles.local is not None:
            unit = "each tile's map, µm of the reference scan to µm of this scan; only where the map is not affine"
            file.create_dataset("affines", data=tiles.local).attrs["unit"] = unit
        for name in sorted(attrs):
            file.attrs[name] = attrs[name]
    with atomic.output(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def content(tiles: Tiles) -> str:
    """Return 16 hex digits of where the tiles lie, whatever made them: equal tiles keep the features made of them."""
    arrays = [tiles.tile_ids, tiles.out_of_bounds, tiles.corners_um, tiles.affine]
    arrays += [] if tiles.local is None else [tiles.local]
    names = ("tile_px", "mpp", "reference", "paired", "scan", "mpp_x", "mpp_y")
    digests = [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays]
    return keys.content_key(arrays=digests, **{name: tiles.attrs[name] for name in names})


def row_key(scan_key: str, tiles: Tiles) -> str:
    """Return the key of a scan's row of the tiles table, from that of its checks: what its features depend on."""
    return keys.content_key(scan=scan_key, tiles=content(tiles))


def read_tiles_file(path: str | Path) -> Tiles:
    """Read a file of `write`, without a lock: it never changes once it has its name."""
    with h5py.File(path, "r", locking=False) as file:
        attrs = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in file.attrs.items()
            if name != "affine"
        }
        names = ("coords", "tile_ids", "out_of_bounds", "corners_um")
        local = file["affines"][()] if "affines" in file else None
        return Tiles(*(file[name][()] for name in names), affine=file.attrs["affine"][()], attrs=attrs, local=local)
