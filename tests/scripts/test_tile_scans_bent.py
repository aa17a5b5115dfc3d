"""The tiles of a scan whose registration has a smooth correction show the tissue of the reference's tiles."""

import json

import numpy as np
import test_tile_scans
from test_tile_scans import Cohort

from isoslide import grid, registration_warp


def test_tiles_follow_the_correction(tmp_path):
    path = tmp_path / "a.tif"
    test_tile_scans.synth.slide(path, blobs=((500, 500, 300),))
    made = Cohort(tmp_path, [("a", "s", path), ("b", "s", path)])
    places = np.random.default_rng(0).uniform(200, 800, (40, 2))
    shifts = np.column_stack([4 * np.sin(places[:, 1] / 150), np.zeros(40)])
    warp = registration_warp.Warp(grid.IDENTITY, places, shifts, 0.001)
    made.register({"a": grid.IDENTITY, "b": grid.IDENTITY}, reference="a")
    before = made.tile()
    content = json.loads((tmp_path / "registration.json").read_text())
    content["scans"]["b"]["correction"] = warp.record()
    (tmp_path / "registration.json").write_text(json.dumps(content))
    table = made.tile()
    tiles, reference = made.read("b"), made.read("a")
    assert reference.local is None
    assert np.array_equal(tiles.affine, grid.IDENTITY)
    centres = tiles.corners_um + 56
    found = grid.carry(tiles.maps, centres[:, None])[:, 0] - centres
    assert np.abs(found - np.column_stack([4 * np.sin(centres[:, 1] / 150), np.zeros(len(centres))])).max() < 0.5
    assert (tiles.coords - reference.coords)[:, 0].max() >= 7  # level 0 is 0.5 µm/px
    assert table["key"]["b"] != before["key"]["b"]
    assert table["key"]["a"] == before["key"]["a"]
