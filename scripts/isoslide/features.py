"""Features of a scan: its tiles read ahead in threads, encoded in batches, kept as float16."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from isoslide import __version__, atomic, grid
from isoslide.encoders import TileEncoder
from isoslide.slide import Slide, SlideError, open_checked


@dataclass
class Clock:
    """Where the seconds of a job go."""

    waiting: float = 0.0
    model: float = 0.0
    tiles: int = 0

    def __str__(self) -> str:
        """Return tiles per second and the share of the time spent waiting for tiles."""
        total = self.waiting + self.model
        return (
            f"{self.tiles} tiles, {self.tiles / max(total, 1e-9):.1f} tiles/s, "
            f"{self.waiting:.1f} s waiting for tiles, {self.model:.1f} s in the model"
        )


def extract(
    encoder: TileEncoder, check: Mapping[str, str], tiles: grid.Tiles, threads: int, batch: int, clock: Clock
) -> np.ndarray:
    """Return the features (n, dim) float16 of the tiles of a scan that lie inside it.

    Args:
        encoder: the loaded encoder.
        check: row of the checks table.
        tiles: the scan's tiles.
        threads: tiles read at the same time.
        batch: tiles per forward pass.
        clock: counts tiles and seconds.

    Raises:
        SlideError: `partly_unreadable`, or `non_finite` when a feature is not a finite float16.
    """
    inside, tile_px = ~tiles.out_of_bounds, tiles.attrs["tile_px"]
    side = tile_px * tiles.attrs["mpp"]
    affines = grid.tile_affines(tiles.corners_um[inside], side, tile_px, tiles.maps[inside])
    parts = []
    with open_checked(check) as slide, ThreadPoolExecutor(threads) as pool:
        images = _read_ahead(slide, affines, tile_px, pool, ahead=2 * batch + threads)
        while True:
            start = time.perf_counter()
            chunk = list(itertools.islice(images, batch))
            read = time.perf_counter()
            clock.waiting += read - start
            if not chunk:
                break
            parts.append(encoder(torch.from_numpy(np.stack(chunk))).half().numpy())
            clock.model += time.perf_counter() - read
            clock.tiles += len(chunk)
    features = np.concatenate(parts)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        ids = tiles.tile_ids[inside][bad]
        raise SlideError(
            "non_finite",
            f"{bad.sum()} of {len(bad)} tiles have features that are no finite float16, "
            f"first tile {ids[0]}: check the weights and the precision of encoder {encoder.entry.id}",
        )
    return features


def write(path: Path, features: np.ndarray, tiles_path: Path, encoder: TileEncoder, key: str) -> None:
    """Write a features file in the layout TRIDENT users know: `features` and `coords`, plus `tile_ids`.

    Rows are the tiles of `tiles_path` that lie inside the scan, in its order.
    """
    tiles = grid.read_tiles_file(tiles_path)
    inside = ~tiles.out_of_bounds
    with h5py.File(tiles_path, "r") as source:
        coords_attrs = dict(source["coords"].attrs)
    with atomic.output(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("features", data=features).attrs["encoder"] = encoder.entry.id
        file.create_dataset("coords", data=tiles.coords[inside]).attrs.update(coords_attrs)
        file.create_dataset("tile_ids", data=tiles.tile_ids[inside])
        file.attrs.update(
            {name: tiles.attrs[name] for name in ("tile_px", "mpp", "mpp_x", "mpp_y", "reference", "paired")}
        )
        file.attrs.update(
            key=key,
            version=__version__,
            encoder=encoder.entry.id,
            weights_sha256=encoder.weights_hash,
            precision=str(encoder.dtype).removeprefix("torch."),
            torch=str(torch.__version__),
            n_out_of_bounds=int(tiles.out_of_bounds.sum()),
        )


def stored_key(path: Path) -> str:
    """Return the content key that a features or tiles file carries; empty when it is absent or damaged."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("key", ""))
    except OSError as error:
        if path.exists():
            logging.warning("%s cannot be read and is made again: %s", path, error)
        return ""


def _read_ahead(
    slide: Slide, affines: np.ndarray, tile_px: int, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[np.ndarray]:
    """Yield tiles in order while at most `ahead` of them are read or being read in the background."""
    futures = (pool.submit(slide.read, affine, (tile_px, tile_px)) for affine in affines)
    queue = list(itertools.islice(futures, ahead))
    while queue:
        image = queue.pop(0).result()
        queue.extend(itertools.islice(futures, 1))
        yield image
