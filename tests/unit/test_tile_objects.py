import json

import numpy as np
import pandas as pd
import pytest

from isoslide import geojson, grid, heatmaps, tile_objects, tile_values


@pytest.fixture
def tiles():
    """A scan of 0.25 µm/px: four tiles of 112 µm, the second outside."""
    ids = np.array([0, 1, 2, 1_000_000])
    corners = grid.corners(ids, 112.0)
    return grid.Tiles(
        coords=np.round(corners / 0.25).astype(np.int64),
        tile_ids=ids,
        out_of_bounds=np.array([False, True, False, False]),
        corners_um=corners,
        affine=grid.IDENTITY,
        attrs={"tile_px": 224, "mpp": 0.5},
    )


def values(contribution=(0.5, -0.25, 0.125)):
    added = None if contribution is None else np.array(contribution)
    return tile_values.TileValues(np.array([0.5, 1.0, 1.5]), np.array([0.1, 0.9, 0.5]), 0.5, added, 0.375)


def test_the_table_has_a_row_per_tile_inside(tiles):
    table = tile_objects.table(tiles, values())
    assert tuple(table) == tile_objects.COLUMNS
    assert table["tile_id"].tolist() == [0, 2, 1_000_000]
    assert table[["x", "y"]].to_numpy().tolist() == [[0, 0], [896, 0], [0, 448]]
    assert table["contribution"].tolist() == [0.5, -0.25, 0.125]
    assert tile_objects.table(tiles, values(None))["contribution"].isna().all()


def test_objects_are_what_qupath_reads(tiles, tmp_path):
    """objectType and measurements by name, closed rings in level-0 px, as QuPath 0.4 and later write them."""
    rows = tile_objects.table(tiles, values())
    tile_objects.write_geojson(tmp_path / "a.geojson", rows, heatmaps.outlines(tiles) / 0.25, {"scan": "a"})
    read = json.loads((tmp_path / "a.geojson").read_text())
    assert read["type"] == "FeatureCollection"
    assert read["isoslide"] == {"scan": "a", "unit": "level-0 px"}
    second = read["features"][1]
    assert second["type"] == "Feature"
    ring = [[896, 0], [1344, 0], [1344, 448], [896, 448], [896, 0]]
    assert second["geometry"] == {"type": "Polygon", "coordinates": [ring]}
    assert second["properties"] == {
        "objectType": "tile",
        "name": "2",
        "measurements": {"attention": 1.0, "contribution": -0.25, "score": 0.9},
    }
    assert len(geojson.read(tmp_path / "a.geojson").polygons) == 3


def test_what_does_not_exist_is_no_measurement(tiles, tmp_path):
    rows = tile_objects.table(tiles, values(None))
    tile_objects.write_geojson(tmp_path / "a.geojson", rows, heatmaps.outlines(tiles) / 0.25, {})
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert {tuple(one["properties"]["measurements"]) for one in features} == {("attention", "score")}
    tile_objects.write_geojson(tmp_path / "none.geojson", rows[:0], np.empty((0, 4, 2)), {})
    assert json.loads((tmp_path / "none.geojson").read_text())["features"] == []


def test_a_table_comes_back(tiles, tmp_path):
    from isoslide import atomic

    rows = tile_objects.table(tiles, values(None))
    atomic.write_table(tmp_path / "a.tsv", rows)
    pd.testing.assert_frame_equal(tile_objects.read_table(tmp_path / "a.tsv"), rows)
