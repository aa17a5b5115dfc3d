"""Features of many scans in one matrix, so that a training step draws its tiles without touching a file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from isoslide import status

FLOAT32_LIMIT = 2**31  # bytes; above it features stay float16 and each batch is converted when drawn


class BagError(ValueError):
    """Features cannot be used together; the message is one line."""


@dataclass
class Bags:
    """The tiles of scans, one scan after another."""

    scans: list[str]
    features: np.ndarray  # (rows, dim) float32, or float16 when large
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
            self._common[key] = (self.offsets[one] + i, self.offsets[other] + j)
        return self._common[key]


def load(table_path: str, scans: Iterable[str] | None = None) -> Bags:
    """Read the feature files that a status table calls ok into memory.

    Args:
        table_path: status table with the columns scan, status, path, key.
        scans: only these; all where None. Scans that the table does not call ok, or without tiles, are absent from
            the result.

    Raises:
        BagError: if the files come from different encoders, have different dimensions, or repeat a tile.
    """
    table = status.read(table_path)
    rows = table[table["status"] == status.OK]
    if scans is not None:
        rows = rows[rows["scan"].isin(set(scans))]
    parts = [part for part in map(_read, rows.to_dict("records")) if len(part["features"])]
    if not parts:
        raise BagError(f"{table_path}: no scan has features: see its column reason")
    for name in ("encoder", "dim"):
        values = {part[name]: part["scan"] for part in parts}
        if len(values) > 1:
            (one, scan), (other, second) = list(values.items())[:2]
            raise BagError(f"{table_path}: {name} is {one!r} for scan {scan!r} and {other!r} for {second!r}")
    offsets = np.concatenate(([0], np.cumsum([len(part["features"]) for part in parts])))
    size = int(offsets[-1]) * parts[0]["dim"] * 4
    features = np.empty((offsets[-1], parts[0]["dim"]), dtype=np.float32 if size <= FLOAT32_LIMIT else np.float16)
    for part, start, stop in zip(parts, offsets, offsets[1:], strict=False):
        features[start:stop] = part.pop("features")
    return Bags(
        scans=[part["scan"] for part in parts],
        features=features,
        offsets=offsets,
        tile_ids=np.concatenate([part["tile_ids"] for part in parts]),
        references=[part["reference"] for part in parts],
        keys=[part["key"] for part in parts],
        encoder=parts[0]["encoder"],
    )


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one scan's features sorted by tile id."""
    with h5py.File(row["path"], "r") as file:
        features, tile_ids = file["features"][:], file["tile_ids"][:]
        attrs = dict(file.attrs)
    order = np.argsort(tile_ids, kind="stable")
    if (np.diff(tile_ids[order]) == 0).any():
        raise BagError(f"{row['path']}: a tile id stands twice: extract the features of scan {row['scan']!r} again")
    if not np.isfinite(features).all():
        raise BagError(f"{row['path']}: features are not finite: extract those of scan {row['scan']!r} again")
    return {
        "scan": row["scan"],
        "features": features[order],
        "dim": features.shape[1],
        "tile_ids": tile_ids[order],
        "reference": str(attrs.get("reference", "")) if attrs.get("paired", False) else "",
        "encoder": str(attrs.get("encoder", "")),
        "key": row["key"],
    }
