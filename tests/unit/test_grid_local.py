"""Tiles whose scan has a smooth correction: each carries an affine of its own."""

import numpy as np
import pytest

from isoslide import grid

AFFINE = np.array([[0.0, -1.01, 2000.0], [0.99, 0.002, 30.0]])
CORNERS = np.array([[0.0, 0.0], [112.0, 224.0], [896.0, 112.0]])


def tiles(local):
    return grid.Tiles(
        coords=np.zeros((3, 2), np.int64),
        tile_ids=np.array([0, 2000001, 1000008]),
        out_of_bounds=np.zeros(3, bool),
        corners_um=CORNERS,
        affine=AFFINE,
        attrs={"tile_px": 224, "mpp": 0.5, "mpp_x": 0.5, "mpp_y": 0.5, "reference": "a", "paired": True, "scan": "b"},
        local=local,
    )


def test_equal_local_affines_are_the_same_as_the_one():
    many = np.broadcast_to(AFFINE, (3, 2, 3))
    for function in (
        lambda affine: grid.tile_affines(CORNERS, 112.0, 224, affine),
        lambda affine: grid.outside(CORNERS, 112.0, affine, (2000, 900)),
        lambda affine: grid.level0_corners(CORNERS, 112.0, affine, (0.5, 0.4)),
    ):
        assert np.allclose(function(AFFINE), function(many))


def test_each_tile_follows_its_own():
    local = np.stack([AFFINE, AFFINE, AFFINE])
    local[1, :, 2] += (3, -4)
    moved = grid.tile_affines(CORNERS, 112.0, 224, local) - grid.tile_affines(CORNERS, 112.0, 224, AFFINE)
    assert moved[1, :, 2] == pytest.approx([3, -4])
    assert not moved[[0, 2]].any()
    shift = grid.level0_corners(CORNERS, 112.0, local, (0.5, 0.5)) - grid.level0_corners(
        CORNERS, 112.0, AFFINE, (0.5, 0.5)
    )
    assert shift.tolist() == [[0, 0], [6, -8], [0, 0]]


def test_files_keep_them_and_tell_them_apart(tmp_path):
    local = np.stack([AFFINE, AFFINE, AFFINE])
    local[1, :, 2] += (3, -4)
    grid.write(tmp_path / "bent.h5", tiles(local), (4000, 4000))
    grid.write(tmp_path / "straight.h5", tiles(None), (4000, 4000))
    bent, straight = grid.read_tiles_file(tmp_path / "bent.h5"), grid.read_tiles_file(tmp_path / "straight.h5")
    assert np.array_equal(bent.maps, local)
    assert straight.local is None
    assert np.array_equal(straight.maps[2], AFFINE)
    assert grid.content(bent) != grid.content(straight)
