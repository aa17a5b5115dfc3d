"""Features of scans: tiles read ahead in threads, across scans, while the encoder works; kept as float16.

Threads share the slide's decoded tiles and hand over images without copies between processes, so /dev/shm is not used.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from isoslide import features_file, grid
from isoslide.pace import Clock
from isoslide.slide import Reading, Slide, SlideError, open_checked
from isoslide.staging import Staging
from isoslide.tile_encoder import TileEncoder

BLOCK = 16  # tiles are read in blocks of 16 x 16, whose inner stored tiles no other block needs
IN_FLIGHT = 2  # batches that a GPU has before it: it never waits for the host, which never runs far ahead


class ScanTiles:
    """The tiles of a scan that lie inside it, to be read by any thread; the first one opens the slide, or its copy.

    Attributes:
        row: what the caller knows of the scan.
        tiles: all tiles.
        n_tiles: that lie inside.
        given_up: set where a tile could not be read: the others need not be.
    """

    def __init__(
        self,
        row: Mapping[str, Any],
        check: Mapping[str, str],
        tiles: grid.Tiles,
        reading: Reading,
        staging: Staging | None = None,
    ):
        self.row, self.tiles, self._check, self._reading, self._staging = row, tiles, check, reading, staging
        inside, self._tile_px = ~tiles.out_of_bounds, tiles.attrs["tile_px"]
        self._order = _reading_order(tiles.tile_ids[inside])
        self.n_tiles = len(self._order)
        corners, maps = tiles.corners_um[inside][self._order], tiles.maps[inside][self._order]
        self._affines = grid.tile_affines(corners, self._tile_px * tiles.attrs["mpp"], self._tile_px, maps)
        self.given_up = False
        self._slide: Slide | None = None
        self._open = ExitStack()  # the slide, and the copy that it is read from
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tiles (n, tile_px, tile_px, 3) uint8, counted in the order of reading.

        Raises:
            SlideError: the slide or a tile cannot be read, or there is no tile.
        """
        if not self.n_tiles:
            raise SlideError("zero_tiles", "no tile lies inside the scan")
        with self._lock:
            if self._slide is None:
                self._slide = self._opened()
        return self._slide.read_tiles(self._affines[start:stop], self._tile_px)

    def close(self) -> None:
        """Close the slide, once no thread reads it."""
        self._open.close()
        self._slide = None

    def _opened(self) -> Slide:
        check = dict(self._check)
        if self._staging is not None:
            check["path"] = self._open.enter_context(self._staging.copy(check["path"]))
        return self._open.enter_context(open_checked(check, self._reading))

    def in_order(self, features: np.ndarray) -> np.ndarray:
        """Return features (n, dim) in the order of the tiles."""
        ordered = np.empty_like(features)
        ordered[self._order] = features
        return ordered

    @property
    def tile_ids(self) -> np.ndarray:
        """Ids (n,) of the tiles inside."""
        return self.tiles.tile_ids[~self.tiles.out_of_bounds]


class Feeder:
    """Gives an encoder its batches: on a GPU without waiting for the one before, halved where memory is short.

    Attributes:
        encoder: the loaded encoder.
        batch: tiles per forward pass.
        launched: batches that were given to a GPU so far.
    """

    def __init__(self, encoder: TileEncoder, batch: int):
        self.encoder, self.batch, self.launched = encoder, batch, 0
        self._events: deque[torch.cuda.Event] = deque()

    def feed(self, images: Tensor) -> list[Tensor]:
        """Return features (n, dim) float32 of images, in parts; on a GPU they are there after `wait(launched)`."""
        parts: list[Tensor] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.batch]
            try:
                parts.append(self._launch(part))
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.batch = len(part) // 2
                torch.cuda.empty_cache()
                logging.info("device memory is short: %d tiles per batch from here on", self.batch)
                continue
            start += len(part)
        return parts

    def wait(self, number: int) -> None:
        """Wait until so many of the batches launched are done."""
        while self.launched - len(self._events) < number:
            self._events.popleft().synchronize()

    def _launch(self, images: Tensor) -> Tensor:
        if self.encoder.device.type == "cpu":
            return self.encoder(images)
        self.wait(self.launched - IN_FLIGHT + 1)
        features = self.encoder.launch(images)
        host = _pinned(features).copy_(features, non_blocking=True)
        self._events.append(torch.cuda.Event())
        self._events[-1].record()
        self.launched += 1
        return host


Found = np.ndarray | SlideError


def encode_scans(
    scans: Iterable[tuple[ScanTiles, Sequence[Feeder]]], threads: int, clock: Clock
) -> Iterator[tuple[ScanTiles, list[Found]]]:
    """Yield every scan with, for each of its encoders, its features (n, dim) float16 or the error that ends it.

    Each tile is read once for all encoders of its scan. While they work, threads read on, also in the next scans. A
    scan comes out when the first tiles of the one after it are on their way, so that a GPU has work while files are
    written.

    Args:
        scans: each with the feeders of its encoders; taken one by one, as reading comes to them.
        threads: that read.
        clock: counts tiles and seconds.
    """
    waiting: _Encoded | None = None
    runs = _read_ahead(scans, threads)
    for scan, group in itertools.groupby(runs, key=lambda run: run[0]):
        encoded: _Encoded | None = None
        for _, feeders, future in group:
            encoded = encoded or _Encoded(scan, feeders, [[] for _ in feeders])
            if encoded.error:
                if not future.cancel():
                    wait([future])  # the slide must not be closed under it
                continue
            try:
                with clock.waiting():
                    images = future.result()
            except SlideError as error:
                encoded.error, scan.given_up = error, True
                continue
            with clock.model(len(images)):
                for feeder, parts in zip(feeders, encoded.parts, strict=True):
                    parts += feeder.feed(images)
            if waiting:
                yield _finish(waiting, clock)
                waiting = None
        if waiting:
            yield _finish(waiting, clock)
        encoded.launched = [feeder.launched for feeder in encoded.feeders]
        waiting = encoded
    if waiting:
        yield _finish(waiting, clock)


@dataclass
class _Encoded:
    """A scan whose tiles were given to its encoders: what comes back of each, in parts, and after which launch."""

    scan: ScanTiles
    feeders: Sequence[Feeder]
    parts: list[list[Tensor]]
    launched: list[int] = field(default_factory=list)
    error: SlideError | None = None


def _finish(done: _Encoded, clock: Clock) -> tuple[ScanTiles, list[Found]]:
    done.scan.close()
    if done.error:
        return done.scan, [done.error for _ in done.feeders]
    found = []
    for feeder, parts, launched in zip(done.feeders, done.parts, done.launched, strict=True):
        with clock.model(0):
            feeder.wait(launched)
        features = done.scan.in_order(torch.cat(parts).half().numpy())
        found.append(_not_finite(done.scan, features, feeder) or features)
    return done.scan, found


def _not_finite(scan: ScanTiles, features: np.ndarray, feeder: Feeder) -> SlideError | None:
    bad = ~np.isfinite(features).all(axis=1)
    if not bad.any():
        return None
    return SlideError(
        "non_finite",
        f"{bad.sum()} of {len(bad)} tiles have features that are no finite float16, first tile "
        f"{scan.tile_ids[bad][0]}: check the weights and the precision of encoder {feeder.encoder.entry.id}",
    )


def write(path: Path, features: np.ndarray, scan: ScanTiles, tiles_path: Path, feeder: Feeder, key: str) -> None:
    """Write a features file: the tiles inside the scan, in their order; `coords` has its attributes of `tiles_path`."""
    tiles, encoder = scan.tiles, feeder.encoder
    with h5py.File(tiles_path, "r") as source:
        coords_attrs = dict(source["coords"].attrs)
    attrs = {name: tiles.attrs[name] for name in ("tile_px", "mpp", "mpp_x", "mpp_y", "reference", "paired")}
    attrs |= {
        "key": key,
        "encoder": encoder.entry.id,
        "weights_sha256": encoder.weights_hash,
        "precision": encoder.precision,
        "batch": feeder.batch,
        "device": encoder.device.type,
        "torch": str(torch.__version__),
        "n_out_of_bounds": int(tiles.out_of_bounds.sum()),
    }
    features_file.write(path, features, scan.tile_ids, tiles.coords[~tiles.out_of_bounds], attrs, coords_attrs)


def _pinned(features: Tensor) -> Tensor:
    """Return memory of the host that a GPU writes features to while both go on."""
    return torch.empty(features.shape, dtype=features.dtype, pin_memory=True)


def _reading_order(tile_ids: np.ndarray) -> np.ndarray:
    """Return the order (n,) of tiles block by block: what lies together is decoded together."""
    row, column = np.divmod(tile_ids, grid.ROW)
    return np.lexsort((column, row, column // BLOCK, row // BLOCK))


Run = tuple[ScanTiles, Sequence[Feeder], Future[Tensor]]


def _read_ahead(scans: Iterable[tuple[ScanTiles, Sequence[Feeder]]], threads: int) -> Iterator[Run]:
    """Yield runs of tiles in order, some of them still to be read, while the next ones are read in the background."""

    def read(scan: ScanTiles, start: int, stop: int, pin: bool) -> Tensor:
        images = torch.from_numpy(scan.read(start, stop))
        return images.pin_memory() if pin else images

    def submitted(pool: ThreadPoolExecutor) -> Iterator[Run]:
        size = 1  # of a run: the first ones are short, so that the encoder soon has something to do
        for scan, feeders in scans:
            pin = any(one.encoder.device.type == "cuda" for one in feeders)  # uploaded from there while the GPU works
            batch, start = max(one.batch for one in feeders), 0
            size = max(size, batch)
            while start < max(1, scan.n_tiles) and not scan.given_up:
                yield scan, feeders, pool.submit(read, scan, start, start + size, pin)
                start, size = start + size, min(batch * max(1, BLOCK**2 // batch), 2 * size)

    with ThreadPoolExecutor(threads) as pool:
        futures = submitted(pool)
        queue = deque(itertools.islice(futures, threads + 1))
        try:
            while queue:
                run_of_scan = queue.popleft()
                queue.extend(itertools.islice(futures, 1))
                yield run_of_scan
        finally:
            for _, _, future in queue:
                future.cancel()
