import h5py
import numpy as np
import pytest

from isoslide import grid


def box(x0, y0, x1, y1):
    return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)]


def turned(degrees, shift=(0.0, 0.0)):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def test_ids_say_row_and_column():
    ids = grid.tissue_tiles([box(200, 100, 400, 200)], (1000, 500), 100, 0.5)
    assert ids.tolist() == [1_000_002, 1_000_003]
    assert grid.corners(ids, 100).tolist() == [[200, 100], [300, 100]]


@pytest.mark.parametrize(("min_tissue", "n"), [(0.5, 1), (0.51, 0), (0.0, 1)])
def test_share_of_a_half_filled_tile(min_tissue, n):
    assert len(grid.tissue_tiles([box(0, 0, 50, 100)], (300, 300), 100, min_tissue)) == n


def test_ids_do_not_depend_on_other_tissue():
    few = grid.tissue_tiles([box(200, 100, 400, 200)], (1000, 500), 100, 0.5)
    many = grid.tissue_tiles([box(0, 0, 1000, 500)], (1000, 500), 100, 0.5)
    assert len(many) == 50
    assert set(few) < set(many)


def test_last_column_of_a_wide_slide_lies_in_place():
    # complaint G-J2: 10,007 px, tiles of 557 px; 17 whole tiles, the 18th reaches over the edge
    width, side, mpp = 10_007, 557, 0.5
    size_um = (width * mpp, side * mpp)
    ids = grid.tissue_tiles([box(0, 0, *size_um)], size_um, side * mpp, 0.5)
    corners_um = grid.corners(ids, side * mpp)
    assert len(ids) == 18
    outside = grid.outside(corners_um, side * mpp, grid.IDENTITY, size_um)
    assert outside.tolist() == [False] * 17 + [True]
    coords = grid.level0_corners(corners_um, side * mpp, grid.IDENTITY, (mpp, mpp))
    assert coords[:, 0].tolist() == [557 * i for i in range(18)]


def test_grid_does_not_drift_where_a_tile_is_no_whole_number_of_pixels():
    corners_um = grid.corners(np.arange(90), 112)
    coords = grid.level0_corners(corners_um, 112, grid.IDENTITY, (0.2271, 0.2271))
    assert np.abs(coords[:, 0] - np.arange(90) * 112 / 0.2271).max() <= 0.5


def test_size_that_is_a_whole_number_of_tiles_has_no_extra_column():
    size_um = (3 * 0.1, 2 * 0.1)  # 0.30000000000000004: rounding is no reason for a fourth column
    assert len(grid.tissue_tiles([box(0, 0, 1, 1)], size_um, 0.1, 0.5)) == 6


def test_quarter_turn_carries_tiles():
    # p = (x, y) goes to (1000 - y, x): a scan of 1000 x 800 µm, the reference is 800 x 1000
    affine = np.array([[0, -1, 1000], [1, 0, 0]], float)
    corners_um = np.array([[0, 0], [700, 900]], float)
    assert grid.level0_corners(corners_um, 100, affine, (0.5, 0.5)).tolist() == [[1800, 0], [0, 1400]]
    assert not grid.outside(corners_um, 100, affine, (1000, 800)).any()
    assert grid.outside(corners_um, 100, affine, (1000, 799)).tolist() == [False, True]


@pytest.mark.parametrize("degrees", [0, 3, 90, -45])
def test_tile_maps_end_at_the_carried_corners(degrees):
    affine = turned(degrees, (30, 500))
    corners_um = np.array([[0, 0], [224, 112]], float)
    maps = grid.tile_affines(corners_um, 112, 224, affine)
    assert maps.shape == (2, 2, 3)
    for corner, tile in zip(corners_um, maps, strict=True):
        for u, v in ((0, 0), (224, 0), (0, 224), (112, 56)):
            p = corner + np.array([u, v]) / 2
            assert np.allclose(tile @ [u, v, 1], affine @ [*p, 1])


def test_upright_square_shares_the_centre_of_a_turned_tile():
    affine = turned(3, (100, 50))
    corners_um = np.array([[336.0, 224.0]])
    (coords,) = grid.level0_corners(corners_um, 112, affine, (0.25, 0.25))
    assert np.allclose(coords * 0.25 + 56, affine @ [392, 280, 1], atol=0.126)


def test_flat_pixels_that_are_no_squares():
    assert grid.level0_corners(np.array([[100.0, 100.0]]), 50, grid.IDENTITY, (0.5, 0.25)).tolist() == [[200, 400]]


def test_larger_sample_holds_the_smaller_one():
    ids = np.arange(100) * 7
    few, more = (grid.sample(ids, n, np.random.default_rng(3)) for n in (10, 30))
    assert (len(few), len(more)) == (10, 30)
    assert set(few) < set(more)
    assert np.array_equal(few, np.sort(few))
    assert np.array_equal(grid.sample(ids, 0, np.random.default_rng(3)), ids)


def tiles():
    corners_um = grid.corners(np.array([0, 1, 1_000_000]), 112)
    return grid.Tiles(
        coords=grid.level0_corners(corners_um, 112, grid.IDENTITY, (0.25, 0.25)),
        tile_ids=np.array([0, 1, 1_000_000]),
        out_of_bounds=np.array([False, True, False]),
        corners_um=corners_um,
        affine=grid.IDENTITY,
        attrs={"tile_px": 224, "mpp": 0.5, "tile_um": 112.0, "mpp_x": 0.25, "mpp_y": 0.25, "key": "k", "paired": True},
    )


def test_file_is_read_back_and_has_equal_bytes(tmp_path):
    for name in "ab":
        grid.write(tmp_path / f"{name}.h5", tiles(), (1000, 900))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    read = grid.read_tiles_file(tmp_path / "a.h5")
    for name in ("coords", "tile_ids", "out_of_bounds", "corners_um", "affine"):
        assert np.array_equal(getattr(read, name), getattr(tiles(), name))
        assert getattr(read, name).dtype == getattr(tiles(), name).dtype
    assert {name: read.attrs[name] for name in tiles().attrs} == tiles().attrs
    assert read.attrs["paired"] is True


def test_file_has_what_trident_reads(tmp_path):
    grid.write(tmp_path / "a.h5", tiles(), (1000, 900))
    with h5py.File(tmp_path / "a.h5") as file:
        coords = file["coords"]
        assert coords.chunks is None
        assert coords.dtype == np.int64
        assert np.diff(coords[:2, 0]).tolist() == [448]  # complaint G-B4: 224 px at 0.5 µm/px, from 0.25 µm/px
        wanted = {
            "patch_size": 224,
            "patch_size_level0": 448,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "level0_width": 1000,
            "level0_height": 900,
        }
        assert {name: coords.attrs[name] for name in wanted} == wanted
