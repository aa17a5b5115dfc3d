"""Features of a scan: its tiles read ahead in threads, encoded in batches, kept as float16."""

import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from isoslide import features_file, grid
from isoslide.slide import Reading, Slide, SlideError, open_checked
from isoslide.tile_encoder import TileEncoder

BLOCK = 16  # tiles are read in blocks of 16 x 16, whose inner stored tiles no other block needs


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
    encoder: TileEncoder,
    check: Mapping[str, str],
    tiles: grid.Tiles,
    reading: Reading,
    threads: int,
    batch: int,
    clock: Clock,
) -> np.ndarray:
    """Return the features (n, dim) float16 of the tiles of a scan that lie inside it.

    Args:
        encoder: the loaded encoder.
        check: row of the checks table.
        tiles: the scan's tiles.
        reading: how pixels are read.
        threads: that read tiles.
        batch: tiles per forward pass.
        clock: counts tiles and seconds.

    Raises:
        SlideError: `partly_unreadable`, or `non_finite` when a feature is not a finite float16.
    """
    inside, tile_px = ~tiles.out_of_bounds, tiles.attrs["tile_px"]
    side = tile_px * tiles.attrs["mpp"]
    order = _reading_order(tiles.tile_ids[inside])
    affines = grid.tile_affines(tiles.corners_um[inside][order], side, tile_px, tiles.maps[inside][order])
    parts = []
    with open_checked(check, reading) as slide, ThreadPoolExecutor(threads) as pool:
        batches = _read_ahead(slide, affines, tile_px, pool, threads, batch)
        while True:
            start = time.perf_counter()
            images = next(batches, None)
            read = time.perf_counter()
            clock.waiting += read - start
            if images is None:
                break
            parts.append(encoder(torch.from_numpy(images)).half().numpy())
            clock.model += time.perf_counter() - read
            clock.tiles += len(images)
    features = np.concatenate(parts)
    features[order] = features.copy()
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        ids = tiles.tile_ids[inside][bad]
        raise SlideError(
            "non_finite",
            f"{bad.sum()} of {len(bad)} tiles have features that are no finite float16, "
            f"first tile {ids[0]}: check the weights and the precision of encoder {encoder.entry.id}",
        )
    return features


def write(
    path: Path, features: np.ndarray, tiles: grid.Tiles, tiles_path: Path, encoder: TileEncoder, key: str
) -> None:
    """Write a features file in the layout TRIDENT users know: `features` and `coords`, plus `tile_ids`.

    Rows are the tiles that lie inside the scan, in their order; `coords` keeps its attributes from `tiles_path`.
    """
    inside = ~tiles.out_of_bounds
    with h5py.File(tiles_path, "r") as source:
        coords_attrs = dict(source["coords"].attrs)
    attrs = {name: tiles.attrs[name] for name in ("tile_px", "mpp", "mpp_x", "mpp_y", "reference", "paired")}
    attrs |= {
        "key": key,
        "encoder": encoder.entry.id,
        "weights_sha256": encoder.weights_hash,
        "precision": str(encoder.dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
        "n_out_of_bounds": int(tiles.out_of_bounds.sum()),
    }
    features_file.write(path, features, tiles.tile_ids[inside], tiles.coords[inside], attrs, coords_attrs)


def _reading_order(tile_ids: np.ndarray) -> np.ndarray:
    """Return the order (n,) of tiles block by block: what lies together is decoded together."""
    row, column = np.divmod(tile_ids, grid.ROW)
    return np.lexsort((column, row, column // BLOCK, row // BLOCK))


def _read_ahead(
    slide: Slide, affines: np.ndarray, tile_px: int, pool: ThreadPoolExecutor, threads: int, batch: int
) -> Iterator[np.ndarray]:
    """Yield batches (n, tile_px, tile_px, 3) in order while runs of the next ones are read in the background."""
    run = batch * max(1, BLOCK**2 // batch)
    starts = range(0, len(affines), run)
    futures = (pool.submit(slide.read_tiles, affines[start : start + run], tile_px) for start in starts)
    queue = deque(itertools.islice(futures, threads + 1))
    try:
        while queue:
            images = queue.popleft().result()
            queue.extend(itertools.islice(futures, 1))
            for start in range(0, len(images), batch):
                yield images[start : start + batch]
    finally:  # a tile that cannot be read ends the scan: what waits is not read
        for future in queue:
            future.cancel()
