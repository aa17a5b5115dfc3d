"""Features that are larger than memory: they stay in their files, and a step maps the rows it draws.

An HDF5 dataset that was written in one piece lies in its file as plain rows behind an offset, so that a memory map
reads random rows without a copy on disk and without a call into HDF5 per tile. What was read lately, the operating
system keeps as long as it has memory to spare; what the process itself holds is one batch.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The feature rows of one scan, and where they lie in its file."""

    path: str
    offset: int | None  # bytes; None where the file is chunked or compressed
    size: int
    dim: int
    dtype: np.dtype
    order: np.ndarray | None = None  # rows of the file by tile id, where they do not lie so
    kept: np.ndarray | None = None  # (size, dim) in memory

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Write the features of rows (n,), in order of tile id, into `out` (n, dim)."""
        if self.order is not None:
            rows = self.order[rows]
        whole = self.whole()
        if whole.dtype == out.dtype:
            np.take(whole, rows, axis=0, out=out, mode="clip")  # other modes take by way of a copy
        else:
            out[:] = whole[rows]

    def announce(self) -> None:
        """Tell the system that the rows are wanted soon, so that the disk serves several scans at once."""
        if self.offset is None or not hasattr(os, "posix_fadvise"):
            return
        with open(self.path, "rb") as file:
            n_bytes = self.size * self.dim * self.dtype.itemsize
            os.posix_fadvise(file.fileno(), self.offset, n_bytes, os.POSIX_FADV_WILLNEED)

    def whole(self) -> np.ndarray:
        """Return all rows in the order of the file: mapped, or in memory where they do not lie in one piece."""
        if self.kept is not None:
            return self.kept
        if self.offset is not None:
            return np.memmap(self.path, self.dtype, "r", self.offset, (self.size, self.dim))
        with h5py.File(self.path, "r") as file:
            return file["features"][:]


def locate(file: h5py.File, order: np.ndarray) -> Rows:
    """Return where the dataset `features` of an open file lies.

    Args:
        file: the file.
        order: its rows by tile id.
    """
    data = file["features"]
    return Rows(
        path=file.filename,
        offset=data.id.get_offset(),
        size=data.shape[0],
        dim=data.shape[1],
        dtype=data.dtype,
        order=order if (order[1:] < order[:-1]).any() else None,
    )


class Stored:
    """The features of many scans, one after another, in their files; indexed like a tensor (rows, dim)."""

    device = torch.device("cpu")
    dtype = torch.float16

    def __init__(self, parts: Sequence[Rows]) -> None:
        scattered = sum(part.offset is None for part in parts)
        if scattered:
            logging.warning("%d features files are chunked or compressed and are read into memory", scattered)
        self._parts = [replace(part, kept=part.whole()) if part.offset is None else part for part in parts]
        self._offsets = np.concatenate(([0], np.cumsum([part.size for part in parts])))
        self.shape = (int(self._offsets[-1]), parts[0].dim)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return 2 * self.shape[0] * self.shape[1]

    def to(self, device: torch.device) -> Tensor:
        """Return all features in the memory of a device, copied scan by scan."""
        whole = torch.empty(self.shape, dtype=torch.float16, device=device)
        for start, stop in zip(self._offsets, self._offsets[1:], strict=False):
            whole[start:stop] = self[torch.arange(start, stop)].to(device)
        return whole

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the features (n, dim) float16 of rows (n,), which are best in runs of one scan."""
        rows = rows.numpy()
        out = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        scans = np.searchsorted(self._offsets, rows, side="right") - 1
        ends = [*np.flatnonzero(np.diff(scans)) + 1, len(rows)] if len(rows) else []
        for scan in np.unique(scans):
            self._parts[scan].announce()
        start = 0
        for end in ends:
            scan = scans[start]
            self._parts[scan].take(rows[start:end] - self._offsets[scan], out[start:end])
            start = end
        return torch.from_numpy(out)
