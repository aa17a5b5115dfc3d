"""Features of scans in short: mean and variance over the tiles of each, and what made them; read once per encoder."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from isoslide import atomic, status

ORIGIN = ("encoder", "weights_sha256", "precision", "tile_px", "mpp", "tile_um")  # attributes, alike in all scans
BLOCK_ROWS = 65_536  # tiles in double precision at once


class SummaryError(ValueError):
    """Features cannot be put together; the message is one line."""


@dataclass(frozen=True)
class Summaries:
    """Features of scans in short.

    Attributes:
        scans: ids.
        n_tiles: (n,).
        means: (n, dim) mean over the tiles.
        variances: (n, dim) variance (1 / n) over the tiles.
        origin: attributes of the files, see `ORIGIN`; only those that they have.
    """

    scans: list[str]
    n_tiles: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    origin: Mapping[str, Any]

    def of(self, scans: Sequence[str]) -> "Summaries":
        """Return these scans only, in this order."""
        index = {scan: i for i, scan in enumerate(self.scans)}
        own = [index[scan] for scan in scans]
        return Summaries(list(scans), self.n_tiles[own], self.means[own], self.variances[own], self.origin)


def summarise(table_path: str | Path) -> Summaries:
    """Return the summaries of the scans that a status table of features calls ok, in its order.

    Raises:
        SummaryError: files of different encoders, weights or tiles; no file, or not the one that the table means.
    """
    table = status.read(table_path)
    scans, counts, means, variances, origins = [], [], [], [], {}
    for row in table[table["status"] == status.OK].to_dict("records"):
        again = f"extract the features of scan {row['scan']!r} again"
        try:
            with h5py.File(row["path"], "r") as file:
                attrs = {name: _plain(value) for name, value in file.attrs.items() if name in (*ORIGIN, "key")}
                n_tiles = len(file["features"])
                mean, variance = _moments(file["features"]) if n_tiles else (None, None)
        except FileNotFoundError as error:
            raise SummaryError(f"no file {row['path']}: {again}") from error
        if attrs.pop("key", row["key"]) != row["key"]:  # made by hand, with other settings
            raise SummaryError(f"{row['path']}: not the features that the status table means: {again}")
        if not n_tiles:
            continue
        origins.setdefault(json.dumps(attrs, sort_keys=True), row["scan"])
        scans.append(row["scan"])
        counts.append(n_tiles)
        means.append(mean)
        variances.append(variance)
    if not scans:
        raise SummaryError(f"{table_path}: no scan has features: see its column reason")
    if len(origins) > 1:
        (one, scan), (other, second) = list(origins.items())[:2]
        raise SummaryError(
            f"{table_path}: features of scan {scan!r} come from {one}, of {second!r} from {other}: make one of them "
            "again"
        )
    logging.info("%d scans, %d tiles, %d features", len(scans), sum(counts), len(means[0]))
    found = np.stack(means).astype(np.float32), np.stack(variances).astype(np.float32)
    return Summaries(scans, np.array(counts, dtype=np.int64), *found, json.loads(next(iter(origins))))


def write(path: str | Path, found: Summaries) -> None:
    """Write summaries as safetensors; ids and origin stand in the header."""
    tensors = {"n_tiles": found.n_tiles, "means": found.means, "variances": found.variances}
    # The order of several keys is not kept, and with it the bytes.
    header = {"summaries": json.dumps({"scans": found.scans, "origin": dict(found.origin)}, sort_keys=True)}
    with atomic.output(path) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, temporary, header)


def read(path: str | Path) -> Summaries:
    """Read what `write` wrote."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["summaries"])
        tensors = [file.get_tensor(name) for name in ("n_tiles", "means", "variances")]
    return Summaries(header["scans"], *tensors, header["origin"])


def _moments(dataset: h5py.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (dim,) of the rows, in double precision, block by block."""
    total = np.zeros(dataset.shape[1])
    for first in range(0, len(dataset), BLOCK_ROWS):
        total += dataset[first : first + BLOCK_ROWS].sum(0, dtype=np.float64)
    mean = total / len(dataset)
    squares = np.zeros(dataset.shape[1])
    for first in range(0, len(dataset), BLOCK_ROWS):
        squares += np.square(dataset[first : first + BLOCK_ROWS] - mean).sum(0)
    return mean, squares / len(dataset)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
