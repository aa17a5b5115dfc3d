import json

import h5py
import numpy as np
import pandas as pd
import pytest
import synth
import toy_models
from PIL import Image
from stages import Stages, files

import draw_heatmaps
import predict_scans
from isoslide import grid, heatmaps, status, tile_objects

VIEW = {"tile_px": 557, "mpp": 0.5}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A scan 10,007 px wide with tissue to its right and lower edge, one without tissue, and one that no fold tests."""
    folder = tmp_path_factory.mktemp("heatmaps")
    synth.slide(folder / "a.tif", size_px=(10_007, 1_121), blobs=((2500, 250, 3500),), noise=0)
    synth.slide(folder / "b.tif", size_um=(900, 600), blobs=())
    synth.slide(folder / "c.tif", size_um=(900, 600), blobs=((400, 300, 280),))
    stages = Stages(folder, [{"scan": name, "path": str(folder / f"{name}.tif"), "scanner": "S"} for name in "abc"])
    stages.checks()
    stages.tissue()
    tiles = stages.tiles(VIEW)
    rng, rows = np.random.default_rng(0), []
    for scan, row in tiles.iterrows():
        if row["status"] != "ok":
            rows.append(dict(row, scan=scan))
            continue
        found = grid.read_tiles_file(row["path"])
        ids = found.tile_ids[~found.out_of_bounds]
        with h5py.File(folder / f"{scan}.h5", "w") as file:
            file["features"] = rng.normal(size=(len(ids), 6)).astype(np.float16)
            file["tile_ids"] = ids
            file.attrs.update(reference=scan, paired=False, encoder="toy")
        known = {"specimen": scan, "scanner": "S", "n_tiles": len(ids), "key": scan}
        rows.append({"scan": scan, "status": "ok", "path": folder / f"{scan}.h5", **known})
    status.write(folder / "features.tsv", rows)
    paths = toy_models.write(folder, {"type": "binary"}, {})
    models = pd.DataFrame({"fold": "0", "seed": ["1", "2"], "status": "ok", "path": paths})
    models.to_csv(folder / "models.tsv", sep="\t", index=False)
    splits = pd.DataFrame({"fold": "0", "scan": list("abc"), "role": ["test", "test", "train"]})
    splits = splits.assign(specimen=list("abc"), patient=list("abc"), scanner="S", label="1", time="", event="")
    splits.to_csv(folder / "splits.tsv", sep="\t", index=False)
    return folder


def run(folder, *scans, results="maps"):
    tables = [f"--{name}={folder}/{name}.tsv" for name in ("checks", "tiles", "features", "splits", "models")]
    draw_heatmaps.main(
        [
            "--scans",
            *scans,
            *tables,
            "--results",
            str(folder / results),
            "--output",
            str(folder / results / "status.tsv"),
        ]
    )
    return status.read(folder / results / "status.tsv").set_index("scan")


def test_the_number_in_the_title_is_that_of_the_predictions(cohort, monkeypatch):
    titles, draw = [], draw_heatmaps.title_of
    monkeypatch.setattr(draw_heatmaps, "title_of", lambda *known: titles.append(draw(*known)) or titles[-1])
    table = run(cohort, "a")
    inputs = [f"--{name}={cohort}/{name}.tsv" for name in ("models", "splits", "features")]
    predict_scans.main([*inputs, "--output", str(cohort / "predictions.tsv")])
    predictions = pd.read_csv(cohort / "predictions.tsv", sep="\t")
    own = predictions[(predictions["scan"] == "a") & (predictions["role"] == "test")]
    assert len(own) == 2
    assert float(table.loc["a", "p"]) == pytest.approx(own["p"].mean(), abs=2e-6)
    assert float(table.loc["a", "total"]) == pytest.approx(own["logit"].mean(), abs=2e-5)
    assert titles == [f"a (scanner S): probability {own['p'].mean():.3f}, mean of 2 models"]


def test_scans_that_cannot_be_drawn_are_rows_and_the_bytes_are_the_same_again(cohort):
    table = run(cohort, "a", "b", "c", results="one")
    assert table["status"].to_dict() == {"a": "ok", "b": "no_tissue", "c": "not_tested"}
    assert "no model of a fold that tests this scan" in table.loc["c", "reason"]
    run(cohort, "a", "b", "c", results="two")
    one, two = files(cohort / "one"), files(cohort / "two")
    assert set(one) == {"status.tsv", "a.png", "gallery/a.png", "tiles/a.tsv", "geojson/a.geojson"}
    assert {name for name in one if one[name] != two[name]} == {"status.tsv"}  # it names the folder


def test_features_of_other_tiles_are_refused(cohort, tmp_path):
    table = status.read(cohort / "features.tsv")
    with h5py.File(cohort / "a.h5") as file, h5py.File(tmp_path / "a.h5", "w") as other:
        other["features"], other["tile_ids"] = file["features"][()], file["tile_ids"][()] + 1
    table.loc[table["scan"] == "a", "path"] = str(tmp_path / "a.h5")
    for name in ("checks", "tiles", "splits", "models"):
        (tmp_path / f"{name}.tsv").write_bytes((cohort / f"{name}.tsv").read_bytes())
    table.to_csv(tmp_path / "features.tsv", sep="\t", index=False)
    assert run(tmp_path, "a").loc["a", "status"] == "other_tiles"


def test_tiles_are_a_table_and_objects_that_sum_to_the_score(cohort):
    table = run(cohort, "a")
    rows = tile_objects.read_table(cohort / "maps/tiles/a.tsv")
    assert len(rows) == int(table.loc["a", "n_tiles"])
    assert rows["contribution"].sum() == pytest.approx(float(table.loc["a", "total"]), abs=1e-4)
    assert rows["attention"].mean() == pytest.approx(1, abs=1e-5)
    features = json.loads((cohort / "maps/geojson/a.geojson").read_text())["features"]
    rings = np.array([feature["geometry"]["coordinates"][0] for feature in features])
    assert rings.max(axis=(0, 1)).tolist() == [9469, 1114]
    assert (rings[:, 0] == rows[["x", "y"]]).all(axis=None)
    measured = [feature["properties"]["measurements"]["contribution"] for feature in features]
    assert measured == pytest.approx(rows["contribution"].tolist())


def test_tiles_lie_within_a_pixel_at_the_right_and_lower_edge(cohort):
    """Tiles of 557 px on a slide 10,007 px wide: the 17th column ends at 9,469 px, the second row at 1,114."""
    tiles = grid.read_tiles_file(cohort / "tiles/a.h5")
    corners = heatmaps.outlines(tiles)
    assert np.abs(corners.max(axis=(0, 1)) / 0.5 - (9469, 1114)).max() < 1e-6
    um_per_px = 10_007 * 0.5 / heatmaps.LONG_SIDE_PX
    overview = np.full((round(1121 * 0.5 / um_per_px), heatmaps.LONG_SIDE_PX, 3), 255, np.uint8)
    painted = heatmaps.paint(overview, corners / um_per_px, np.zeros(len(corners)), "gray")[..., 0] < 200
    rows, columns = np.nonzero(painted)
    assert abs(columns.max() + 1 - 9469 / 10_007 * heatmaps.LONG_SIDE_PX) <= 1
    assert abs(rows.max() + 1 - 1114 * 0.5 / um_per_px) <= 1


def test_an_unknown_scan_is_one_line(cohort):
    with pytest.raises(SystemExit, match="no scan 'x' in the sheet"):
        run(cohort, "x")


def test_the_gallery_stands_beside_the_picture(cohort):
    run(cohort, "a")
    with Image.open(cohort / "maps/gallery/a.png") as picture:
        assert picture.size[0] > 6 * 557
