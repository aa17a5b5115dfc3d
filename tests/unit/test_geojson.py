import json

import numpy as np
import pytest

from isoslide import geojson


def square(x, y, side):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def mask_of(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_outline_runs_along_pixel_edges():
    (polygon,) = geojson.trace(mask_of(".....", ".###.", ".###.", "....."), (10, 20))
    (ring,) = polygon
    assert sorted(map(tuple, ring.tolist())) == [(10, 20), (10, 60), (40, 20), (40, 60)]
    assert geojson.area(polygon) == 30 * 40


def test_mask_at_the_edge_of_the_image_reaches_the_edge():
    (polygon,) = geojson.trace(np.ones((3, 4), bool), (1, 1))
    assert geojson.area(polygon) == 12


def test_hole_keeps_its_size_but_for_its_corners():
    mask = np.ones((20, 20), bool)
    mask[5:15, 4:14] = False
    (polygon,) = geojson.trace(mask, (1, 1))
    assert len(polygon) == 2
    assert geojson.area(polygon) == pytest.approx(400 - 100, abs=10)  # a quarter of a pixel along the rim
    assert polygon[1].min(axis=0).tolist() == [4, 5]
    assert polygon[1].max(axis=0).tolist() == [14, 15]


def test_island_in_a_hole_is_a_polygon_of_its_own():
    empty, middle = "#.....#", "#..#..#"
    polygons = geojson.trace(mask_of("#######", empty, empty, middle, empty, empty, "#######"), (1, 1))
    assert [len(polygon) for polygon in polygons] == [2, 1]
    assert geojson.area(polygons[1]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_rasterise_undoes_trace(seed):
    rng = np.random.default_rng(seed)
    blocks = rng.random((12, 15)) < 0.5
    mask = np.kron(blocks, np.ones((4, 4))).astype(bool)
    polygons = geojson.trace(mask, (2.5, 2.5))
    assert np.array_equal(geojson.rasterise(polygons, 2.5, mask.shape), mask)


def test_rasterise_tests_pixel_centres():
    # pixels 0 to 3 have centres 0.5 to 3.5; the square from 0.6 to 2.6 holds 1.5 and 2.5
    mask = geojson.rasterise([[square(0.6, 0.6, 2)]], 1, (4, 4))
    assert np.argwhere(mask).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


@pytest.mark.parametrize("turned", [False, True])
def test_rasterise_cuts_holes_and_counts_overlaps_once(turned):
    outline, hole = square(0, 0, 6), square(2, 2, 2)
    rings = [outline[::-1], hole] if turned else [outline, hole]
    mask = geojson.rasterise([rings, [square(3, 3, 6)]], 1, (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[:6, :6] = True
    expected[2:4, 2:4] = False
    expected[3:8, 3:8] = True
    assert np.array_equal(mask, expected)


def test_rasterise_cuts_off_what_lies_outside():
    assert geojson.rasterise([[square(-5, -5, 20)]], 1, (3, 4)).all()
    assert not geojson.rasterise([[square(-5, -5, 4)], [square(10, 0, 4)]], 1, (3, 4)).any()


def test_file_is_read_back_unchanged_and_has_equal_bytes(tmp_path):
    polygons = [[square(0, 0, 10.5), square(2, 2, 3)], [square(20, 20, 5)]]
    for name in "ab":
        geojson.write(tmp_path / name, polygons, {"key": "k", "tissue_mm2": 0.5})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    outlines = geojson.read(tmp_path / "a")
    assert not outlines.edited
    assert outlines.facts["key"] == "k"
    for polygon, expected in zip(outlines.polygons, polygons, strict=True):
        for ring, wanted in zip(polygon, expected, strict=True):
            assert np.array_equal(ring, wanted)


def test_features_are_what_qupath_reads(tmp_path):
    geojson.write(tmp_path / "a", [[square(0, 0, 10)]], {})
    (feature,) = json.loads((tmp_path / "a").read_text())["features"]
    assert feature["geometry"]["type"] == "Polygon"
    assert feature["geometry"]["coordinates"][0][0] == feature["geometry"]["coordinates"][0][-1]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tissue"


def test_changed_polygon_is_an_edit_and_a_new_layout_is_not(tmp_path):
    path = tmp_path / "a"
    geojson.write(path, [[square(0, 0, 10)]], {"key": "k"})
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value, indent=2))
    assert not geojson.read(path).edited
    value["features"][0]["geometry"]["coordinates"][0][1][0] = 11
    path.write_text(json.dumps(value))
    assert geojson.read(path).edited


def test_no_polygons_is_a_valid_file(tmp_path):
    geojson.write(tmp_path / "a", [], {"key": "k"})
    outlines = geojson.read(tmp_path / "a")
    assert (outlines.polygons, outlines.edited) == ([], False)


POLYGON = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}
MULTI = {"type": "MultiPolygon", "coordinates": [POLYGON["coordinates"], [[[9, 9], [10, 9], [10, 10], [9, 9]]]]}
POINT = {"type": "Point", "coordinates": [1, 1]}


def feature(geometry, name=None):
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}} if name else None}


@pytest.mark.parametrize(
    ("value", "n"),
    [
        (POLYGON, 1),
        (MULTI, 2),
        (feature(POLYGON), 1),
        ([feature(POLYGON), feature(MULTI)], 3),
        ({"type": "FeatureCollection", "features": [feature(POLYGON), feature(POINT)]}, 1),
        ({"type": "FeatureCollection", "features": [feature(POLYGON, "Ignore*"), feature(POLYGON, "Tumor")]}, 1),
        ({"type": "GeometryCollection", "geometries": [POLYGON, POINT]}, 1),
        ({"type": "FeatureCollection", "features": []}, 0),
    ],
)
def test_files_of_other_origin_are_edits(tmp_path, value, n):
    (tmp_path / "a").write_text(json.dumps(value))
    outlines = geojson.read(tmp_path / "a")
    assert len(outlines.polygons) == n
    assert outlines.edited


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}', '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}'])
def test_broken_file_is_a_named_error(tmp_path, text):
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(geojson.GeoJSONError, match=r"a\.geojson"):
        geojson.read(tmp_path / "a.geojson")
