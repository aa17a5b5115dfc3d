"""Features files: `features` and `coords` as TRIDENT users know them, plus `tile_ids`, and attributes."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from isoslide import __version__, atomic


def write(
    path: Path,
    features: np.ndarray,
    tile_ids: np.ndarray,
    coords: np.ndarray | None,
    attrs: Mapping[str, Any],
    coords_attrs: Mapping[str, Any],
) -> None:
    """Write the features of a scan.

    Args:
        path: of the HDF5 file.
        features: (n, dim) float16, stored in one piece: 26 times faster to read than a chunk a tile.
        tile_ids: (n,) int64, increasing.
        coords: (n, 2), or None where they are not known.
        attrs: of the file; must hold encoder, key, reference, paired.
        coords_attrs: of the coordinates.
    """
    buffer = io.BytesIO()  # made in memory: HDF5 on a full disk fails late and in pieces
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=features).attrs["encoder"] = attrs["encoder"]
        if coords is not None:
            file.create_dataset("coords", data=coords).attrs.update(coords_attrs)
        file.create_dataset("tile_ids", data=tile_ids)
        file.attrs.update(version=__version__, **attrs)
    with atomic.output(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def stored_key(path: Path) -> str:
    """Return the content key that a features or tiles file carries; empty when it is absent or damaged."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("key", ""))
    except OSError as error:
        if atomic.cannot_lock(error):  # the file may be good: it is not made again because its disk has no locks
            raise
        if path.exists():
            logging.warning("%s cannot be read and is made again: %s", path, error)
        return ""
