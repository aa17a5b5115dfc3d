"""Features of many scans as one matrix: in memory, so that a training step draws its tiles without touching a file, or
in their files where they are larger (`stored_features.py`).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from isoslide import status, stored_features
from isoslide.stored_features import Stored

FLOAT32_LIMIT = 2**31  # bytes; above it features stay float16 and each batch is converted when drawn
COMMON_PAIRS = 4096  # pairs of scans whose common tiles are remembered: 0.3 GB at 5,000 tiles


class BagError(ValueError):
    """Features cannot be used together; the message is one line."""


@dataclass
class Bags:
    """The tiles of scans, one scan after another."""

    scans: list[str]
    features: np.ndarray | Stored  # (rows, dim) float32, or float16 when large
    offsets: np.ndarray  # (scans + 1,) first row of each scan
    tile_ids: np.ndarray  # (rows,) index in the specimen's grid, increasing within a scan
    references: list[str]  # scan whose grid the tile ids count; "" where the scan cannot be paired
    keys: list[str]  # content keys of the files
    encoder: str = ""
    _common: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.index = {scan: i for i, scan in enumerate(self.scans)}

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.features.shape[1]

    def tensor(self) -> Tensor | Stored:
        """Return the features as a tensor, or what is indexed like one."""
        return self.features if isinstance(self.features, Stored) else torch.from_numpy(self.features)

    def rows(self, scan: int) -> np.ndarray:
        """Return the rows of a scan."""
        return np.arange(self.offsets[scan], self.offsets[scan + 1])

    def size(self, scan: int) -> int:
        """Return the number of tiles of a scan."""
        return int(self.offsets[scan + 1] - self.offsets[scan])

    def common(self, one: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the tiles that both scans have, in the same order; none if their grids differ."""
        key = (one, other)
        if key not in self._common:
            if not self.references[one] or self.references[one] != self.references[other]:
                empty = np.zeros(0, dtype=np.int64)
                return empty, empty
            a, b = (self.tile_ids[self.offsets[i] : self.offsets[i + 1]] for i in key)
            _, i, j = np.intersect1d(a, b, assume_unique=True, return_indices=True)
            if len(self._common) == COMMON_PAIRS:
                del self._common[next(iter(self._common))]
            self._common[key] = (self.offsets[one] + i, self.offsets[other] + j)
        return self._common[key]


def load(table_path: str, scans: Iterable[str] | None = None, memory_gb: float = 4) -> Bags:
    """Read the feature files that a status table calls ok, or their index only where they are larger than memory.

    Args:
        table_path: status table with the columns scan, status, path, key.
        scans: only these; all where None. Scans that the table does not call ok, or without tiles, are absent from
            the result.
        memory_gb: float16 features up to this size are read; more stay in their files. Whether features are finite
            is checked when they are read.

    Raises:
        BagError: if the files come from different encoders, have different dimensions, or repeat a tile; or a file is
            gone, or not the one that the table means.
    """
    table = status.read(table_path)
    rows = table[table["status"] == status.OK]
    if scans is not None:
        rows = rows[rows["scan"].isin(set(scans))]
    parts = [part for part in map(_open, rows.to_dict("records")) if part["rows"].size]
    if not parts:
        raise BagError(f"{table_path}: no scan has features: see its column reason")
    for name in ("encoder", "dim"):
        values = {part[name]: part["scan"] for part in parts}
        if len(values) > 1:
            (one, scan), (other, second) = list(values.items())[:2]
            raise BagError(f"{table_path}: {name} is {one!r} for scan {scan!r} and {other!r} for {second!r}")
    offsets = np.concatenate(([0], np.cumsum([part["rows"].size for part in parts])))
    gb = int(offsets[-1]) * parts[0]["dim"] * 2 / 1e9
    stored = gb > memory_gb
    logging.info("%d scans, %.2f GB of features %s", len(parts), gb, "stay in their files" if stored else "in memory")
    features = Stored([part["rows"] for part in parts]) if stored else _read(parts, offsets)
    return Bags(
        scans=[part["scan"] for part in parts],
        features=features,
        offsets=offsets,
        tile_ids=np.concatenate([part["tile_ids"] for part in parts]),
        references=[part["reference"] for part in parts],
        keys=[part["key"] for part in parts],
        encoder=parts[0]["encoder"],
    )


def _open(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of one scan's features but the numbers, sorted by tile id."""
    again = f"extract the features of scan {row['scan']!r} again"
    try:
        with h5py.File(row["path"], "r") as file:
            tile_ids, attrs = file["tile_ids"][:], dict(file.attrs)
            order = np.argsort(tile_ids, kind="stable")
            rows = stored_features.locate(file, order)
    except FileNotFoundError as error:
        raise BagError(f"no file {row['path']}: {again}") from error
    if attrs.get("key", row["key"]) != row["key"]:  # made by hand, with other settings
        raise BagError(f"{row['path']}: not the features that the status table means: {again}")
    if (np.diff(tile_ids[order]) == 0).any():
        raise BagError(f"{row['path']}: a tile id stands twice: {again}")
    return {
        "scan": row["scan"],
        "path": row["path"],
        "rows": rows,
        "dim": rows.dim,
        "tile_ids": tile_ids[order],
        "reference": str(attrs.get("reference", "")) if attrs.get("paired", False) else "",
        "encoder": str(attrs.get("encoder", "")),
        "key": row["key"],
    }


def _read(parts: list[dict[str, Any]], offsets: np.ndarray) -> np.ndarray:
    """Return the features of all scans in memory."""
    dim = parts[0]["dim"]
    dtype = np.float32 if int(offsets[-1]) * dim * 4 <= FLOAT32_LIMIT else np.float16
    features = np.empty((offsets[-1], dim), dtype=dtype)
    for part, start, stop in zip(parts, offsets, offsets[1:], strict=False):
        own = features[start:stop]
        part["rows"].take(np.arange(stop - start), own)
        if not np.isfinite(own).all():
            raise BagError(f"{part['path']}: features are not finite: extract those of scan {part['scan']!r} again")
    return features
