"""Features files that others made: TRIDENT, CLAM, STAMP, plain .pt and .npz, and our own, read into one form."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

UNIT_NAMES = {  # as our own files say them
    "level0_px": "level-0 px, top left corner",
    "um": "µm of the scan, top left corner",
    "tile_px": "pixels of the tile's own resolution, top left corner",
}
UNITS = tuple(UNIT_NAMES)
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)
FEATURES = ("features", "feats")  # names of the matrix, in h5, npz and dictionaries of tensors


class FeaturesError(Exception):
    """A file cannot be used.

    Attributes:
        status: for the status table.
        reason: one line.
    """

    def __init__(self, status: str, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason


@dataclass
class Found:
    """The tiles of a scan as a file has them.

    Attributes:
        features: (n, dim) floats.
        coords: (n, 2) x and y of the top left corners in `unit`, or None.
        tile_ids: (n,) int64, or None.
        attrs: of the file, its datasets and its arrays of one number, by lower-case name.
        kind: what the file looks like: trident, clam, stamp, isoslide, npz, pt.
        unit: of the coordinates, one of `UNITS`.
    """

    features: np.ndarray
    coords: np.ndarray | None
    tile_ids: np.ndarray | None
    attrs: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    unit: str = "level0_px"

    def number(self, *names: str) -> float:
        """Return the first of the attributes that is a number above 0; 0 if none is."""
        for name in names:
            value = self.attrs.get(name)
            if isinstance(value, int | float) and value > 0:
                return float(value)
        return 0.0


def read(path: Path, coords_path: Path | None = None) -> Found:
    """Read a features file by what it holds, and the coordinates from a second one where that is given.

    Augmented copies of tiles (STAMP 1) are left out. Code in a pickle is never run.

    Raises:
        FeaturesError: absent, unreadable, of an unknown kind, or with wrong shapes.
    """
    arrays, attrs = _arrays(path)
    name = next((name for name in FEATURES if name in arrays), None)
    if name is None:
        raise FeaturesError(
            "unreadable", f"{path}: holds {sorted(arrays)}, none of them called {' or '.join(FEATURES)}"
        )
    if coords_path is not None:
        others, more = _arrays(coords_path)
        arrays |= {key: others[key] for key in ("coords", "tile_ids") if key in others}
        attrs = more | attrs
    level = str(attrs.get("feat_type", "tile"))
    if level != "tile":
        raise FeaturesError("wrong_shape", f"{path}: features of a {level}, where features of tiles are wanted")
    kind = _kind(path, name, arrays, attrs)
    found = Found(_matrix(arrays[name], path), arrays.get("coords"), arrays.get("tile_ids"), attrs, kind)
    found.unit = _unit(kind, attrs)
    _check(found, path, arrays.get("augmented"))
    if "augmented" in arrays:
        _keep(found, ~np.asarray(arrays["augmented"], bool))
    _check_tiles(found, path)
    return found


def digest(*paths: Path) -> str:
    """Return 16 hex digits of the bytes of files."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by name, and its attributes."""
    if not os.path.exists(path):
        raise FeaturesError("no_features", f"no file {path}")
    reader = _read_h5 if h5py.is_hdf5(path) else READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise FeaturesError("unreadable", f"{path}: neither HDF5 nor one of {known}")
    try:
        arrays, attrs = reader(path)
    except DAMAGE as error:
        text = " ".join(str(error).split())[:200]
        if not text or isinstance(error, KeyError | TypeError):  # of a parser that lost its way: its words say little
            text = f"damaged, or no {path.suffix} file ({type(error).__name__} {text})"
        raise FeaturesError("unreadable", f"{path}: {text}") from error
    single = {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    return arrays, {key.lower(): _plain(value) for key, value in (attrs | single).items()}


def _read_h5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, attrs = {}, {}
    with h5py.File(path, "r", locking=False) as file:
        for name in (*FEATURES, "coords", "tile_ids", "augmented"):
            if name in file:
                if not isinstance(file[name], h5py.Dataset) or file[name].shape is None:
                    raise ValueError(f"{name} is no array")
                arrays[name] = file[name][()]
                attrs |= dict(file[name].attrs)
        return arrays, attrs | dict(file.attrs)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _read_pt(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        loaded = {"features": loaded}
    if not isinstance(loaded, Mapping):
        raise ValueError(f"holds a {type(loaded).__name__}, where a tensor or a dictionary of tensors is wanted")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    arrays = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in tensors.items()
    }
    return arrays, {name: value for name, value in loaded.items() if name not in tensors}


READERS = {".npz": _read_npz, ".pt": _read_pt, ".pth": _read_pt, ".h5": _read_h5, ".hdf5": _read_h5}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def _kind(path: Path, name: str, arrays: Mapping[str, Any], attrs: Mapping[str, Any]) -> str:
    if not h5py.is_hdf5(path):
        return path.suffix.lower().removeprefix(".")
    if name == "feats":
        return "stamp"
    if "tile_ids" in arrays:
        return "isoslide"
    return "trident" if "patch_size_level0" in attrs else "clam"


def _unit(kind: str, attrs: Mapping[str, Any]) -> str:
    """Return the unit that a file says or, where it says none, that its kind has."""
    unit = str(attrs.get("unit", ""))
    unit = next((name for name, text in UNIT_NAMES.items() if text == unit), unit)
    if unit in ("um", "µm") or (kind == "stamp" and "tile_size_um" in attrs):
        return "um"
    if unit in UNITS:
        return unit
    return "tile_px" if kind == "stamp" else "level0_px"  # STAMP 1 counts pixels of the tile, 224 a side


def _matrix(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 3 and values.shape[0] == 1:  # (1, n, dim), as some tools write it
        values = values[0]
    if values.ndim != 2 or values.dtype.kind != "f":
        raise FeaturesError(
            "wrong_shape", f"{path}: features {values.shape} {values.dtype}, where (tiles, dimension) floats are wanted"
        )
    if not values.shape[0]:
        raise FeaturesError("zero_tiles", f"{path}: no tiles")
    return values


def _keep(found: Found, keep: np.ndarray) -> None:
    found.features = found.features[keep]
    for name in ("coords", "tile_ids"):
        if getattr(found, name) is not None:
            setattr(found, name, getattr(found, name)[keep])


def _check(found: Found, path: Path, augmented: np.ndarray | None) -> None:
    """Refuse arrays that do not belong together."""
    n = len(found.features)
    wanted = {"coords": (found.coords, (n, 2), "iuf"), "tile_ids": (found.tile_ids, (n,), "iu")}
    wanted["augmented"] = (augmented, (n,), "biu")
    for name, (values, shape, kinds) in wanted.items():
        if values is not None and (values.shape != shape or values.dtype.kind not in kinds):
            text = f"{name} {values.shape} {values.dtype} for {n} tiles, where {shape} is wanted"
            raise FeaturesError("wrong_shape", f"{path}: {text}")


def _check_tiles(found: Found, path: Path) -> None:
    """Refuse tiles that are all augmented, tiles that stand twice and values that float16 cannot hold."""
    n = len(found.features)
    if not n:
        raise FeaturesError("zero_tiles", f"{path}: no tiles but augmented ones")
    for name in ("coords", "tile_ids"):
        values = getattr(found, name)
        if values is None:
            continue
        if not np.isfinite(values).all():
            raise FeaturesError("non_finite", f"{path}: {name} that are no numbers")
        extra = n - len(np.unique(values, axis=0))
        if extra:
            raise FeaturesError("duplicate_tiles", f"{path}: {extra} of {n} tiles have the {name} of another tile")
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(found.features.astype(np.float16)).all(axis=1)
    if bad.any():
        raise FeaturesError(
            "non_finite",
            f"{path}: {bad.sum()} of {n} tiles have features that are no finite float16, first tile {np.argmax(bad)}",
        )
