"""Features files as other tools write them, made up: the same tiles in every format."""

import h5py
import numpy as np
import torch

DIM = 8


def tiles(n=12, seed=0, dim=DIM):
    """Features (n, dim) float32 and corners (n, 2) of a grid 4 wide, in tiles, the rows in no order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    corners = np.column_stack([order % 4, order // 4])
    return rng.normal(size=(n, dim)).astype(np.float32), corners


def trident(path, features, corners, side_px=512):
    """Level-0 px; float32 in chunks of a tile; the tile's size as attributes of the coordinates."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(1, features.shape[1]), maxshape=(None, DIM))
        file["features"].attrs["encoder"] = "uni_v1"
        coords = file.create_dataset("coords", data=corners * side_px)
        coords.attrs.update(patch_size=256, patch_size_level0=float(side_px), level0_magnification=40, overlap=0)


def clam(path, features, corners, side_px=512):
    """Level-0 px and no attributes."""
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features, corners * side_px


def clam_pt(path, features, corners, side_px=512):
    """A tensor, and beside it the coordinates in a file of their own."""
    torch.save(torch.from_numpy(features), path)
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["coords"] = corners * side_px
        file["coords"].attrs.update(patch_size=256, patch_level=1)


def stamp1(path, features, corners):
    """Pixels of the tile; one augmented copy of a tile at the end."""
    with h5py.File(path, "w") as file:
        file["feats"] = np.concatenate([features, features[:1] + 1]).astype(np.float16)
        file["coords"] = np.concatenate([corners, corners[:1]]) * 224
        file["augmented"] = np.arange(len(features) + 1) == len(features)
        file.attrs["extractor"] = "STAMP-extract-001"


def stamp2(path, features, corners, tile_um=256.0):
    """µm."""
    with h5py.File(path, "w") as file:
        file["feats"], file["coords"] = features.astype(np.float16), corners * tile_um
        file.attrs.update(stamp_version="2.4.0", extractor="uni", unit="um", tile_size_um=tile_um, tile_size_px=224)


def npz(path, features, corners, tile_um=256.0):
    """Arrays by name, the unit and the side as arrays of one value."""
    np.savez(path, features=features, coords=corners * tile_um, unit="um", tile_um=tile_um)


def pt(path, features, corners, tile_um=256.0):
    """A dictionary of tensors, bfloat16."""
    values = {"features": torch.from_numpy(features).bfloat16(), "coords": torch.from_numpy(corners * tile_um)}
    torch.save(values | {"unit": "um", "tile_um": tile_um}, path)


FORMATS = {"trident.h5": trident, "clam.h5": clam, "clam.pt": clam_pt, "stamp1.h5": stamp1, "stamp2.h5": stamp2}
FORMATS |= {"plain.npz": npz, "plain.pt": pt}
