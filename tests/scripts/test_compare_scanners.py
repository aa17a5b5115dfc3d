import numpy as np
import pandas as pd
import pytest
import synth
from PIL import Image
from stages import Stages, files

import compare_scanners
from isoslide import atomic, grid, scanner_pairs, status
from isoslide.slide import Slide

SHIFT = np.array([[1.0, 0, 40], [0, 1, -30]])  # µm of scan b to the µm of the specimen
TO_B = np.array([[1.0, 0, -40], [0, 1, 30]])
BLOBS = ((350, 300, 180), (550, 420, 120))
IDS = np.array([1_000_001, 1_000_002, 2_000_001, 2_000_002, 2_000_003])


def write_tiles(path, affine, outside=(), reference="a"):
    corners = grid.corners(IDS, 112.0)
    tiles = grid.Tiles(
        coords=np.round(grid.carry(affine, corners[:, None])[:, 0] / 0.5).astype(np.int64),
        tile_ids=IDS,
        out_of_bounds=np.isin(IDS, outside),
        corners_um=corners,
        affine=affine,
        attrs={"tile_px": 224, "mpp": 0.5, "mpp_x": 0.5, "mpp_y": 0.5, "reference": reference, "paired": True},
    )
    grid.write(path, tiles, (1600, 1400))
    return tiles


def write_maps(folder, arm, scores, meaning="probability"):
    """Tables of draw_heatmaps.py for two scans; the second lacks the third tile."""
    rows = []
    for scan, numbers in scores.items():
        ids = IDS if len(numbers) == len(IDS) else np.delete(IDS, 2)
        table = pd.DataFrame({"tile_id": ids, "x": 0, "y": 0, "attention": 1.0, "contribution": 0.0, "score": numbers})
        table = table.assign(p_0=1 - table["score"], p_1=table["score"])
        atomic.write_table(folder / arm / "tiles" / f"{scan}.tsv", table)
        bag = float(np.mean(numbers))
        known = {"scan": scan, "status": "ok", "path": folder / arm / f"{scan}.png", "p": bag, "meaning": meaning}
        rows.append(known | {"p_0": 1 - bag, "p_1": bag})
    rows.append({"scan": "c", "status": "unreadable", "reason": "no slide"})
    status.write(folder / arm / "status.tsv", rows)


@pytest.fixture
def cohort(tmp_path):
    synth.slide(tmp_path / "a.tif", size_um=(800, 700), blobs=BLOBS)
    synth.slide(tmp_path / "b.tif", size_um=(800, 700), blobs=BLOBS, transform=SHIFT, seed=1)
    rows = [{"scan": s, "path": str(tmp_path / f"{s}.tif"), "scanner": s.upper(), "specimen": "s"} for s in "ab"]
    Stages(tmp_path, [*rows, {"scan": "c", "path": "none", "scanner": "C", "specimen": "s"}]).checks()
    write_tiles(tmp_path / "a.h5", grid.IDENTITY)
    write_tiles(tmp_path / "b.h5", TO_B, outside=[IDS[2]])
    tiles = [{"scan": s, "status": "ok", "path": tmp_path / f"{s}.h5"} for s in "ab"]
    status.write(tmp_path / "tiles.tsv", [*tiles, {"scan": "c", "status": "unreadable", "reason": "no slide"}])
    write_maps(tmp_path, "plain", {"a": [0.9, 0.8, 0.5, 0.7, 0.6], "b": [0.5, 0.4, 0.3, 0.2]})
    write_maps(tmp_path, "robust", {"a": [0.6, 0.5, 0.5, 0.4, 0.3], "b": [0.6, 0.5, 0.4, 0.1]})
    return tmp_path


def run(folder, *scans, results="pairs"):
    maps = [f"{folder}/{arm}/status.tsv" for arm in ("plain", "robust")]
    tables = ["--checks", str(folder / "checks.tsv"), "--tiles", str(folder / "tiles.tsv"), "--maps", *maps]
    output = folder / results / "status.tsv"
    compare_scanners.main(["--scans", *scans, *tables, "--results", str(folder / results), "--output", str(output)])
    table = status.read(output)
    return table.set_index("other") if len(table) else table


def test_a_pair_is_a_picture_and_a_row_with_the_differences(cohort):
    row = run(cohort, "a", "b").loc["b"]
    assert row["status"] == "ok"
    assert (row["scan"], row["scanner"], row["other_scanner"], row["n_tiles"]) == ("a", "A", "B", "4")
    assert float(row["control_difference"]) == pytest.approx(0.4)
    assert float(row["robust_difference"]) == pytest.approx(0.05)
    assert (row["control_arm"], row["robust_arm"]) == ("plain", "robust")
    spread = np.sqrt((np.var([0.9, 0.8, 0.7, 0.6]) + np.var([0.5, 0.4, 0.3, 0.2])) / 2)
    assert float(row["control_spread"]) == pytest.approx(spread, rel=1e-4)
    assert float(row["robust_second"]) == pytest.approx(0.4)
    with Image.open(row["path"]) as picture:
        assert picture.size[0] > 1000
    run(cohort, "a", "b", results="again")
    first, second = files(cohort / "pairs"), files(cohort / "again")
    assert first["a/b.png"] == second["a/b.png"]


def test_what_cannot_be_compared_is_a_row(cohort):
    table = run(cohort, "a", "b", "c")
    assert table.loc["c", "status"] == "unreadable"
    assert table.loc["c", "reason"] == "c, arm plain: no slide"
    write_tiles(cohort / "b.h5", TO_B, reference="b")
    assert run(cohort, "a", "b").loc["b", "status"] == "not_paired"
    assert run(cohort, "b").empty


def test_of_several_classes_that_of_the_first_scan_is_compared(cohort):
    for arm in ("plain", "robust"):
        write_maps(cohort, arm, {"a": [0.9, 0.8, 0.5, 0.7, 0.6], "b": [0.5, 0.4, 0.3, 0.2]}, "probability of class 0")
    row = run(cohort, "a", "b").loc["b"]
    assert float(row["control_difference"]) == pytest.approx(0.4)
    assert float(row["control_first"]) == pytest.approx(0.3)


def test_both_scans_lie_in_one_frame(cohort):
    with Slide(cohort / "a.tif") as first, Slide(cohort / "b.tif") as second:
        origin = np.array([100.0, 100.0])
        own = scanner_pairs.view(first, grid.IDENTITY, origin, 1.0, (500, 400)).astype(float)
        laid = scanner_pairs.view(second, TO_B, origin, 1.0, (500, 400)).astype(float)
        unmoved = scanner_pairs.view(second, grid.IDENTITY, origin, 1.0, (500, 400)).astype(float)
    assert np.abs(own - laid).mean() < 4
    assert np.abs(own - unmoved).mean() > 15


def test_titles_and_colours_are_the_same_in_both_rows(cohort):
    tiles = (write_tiles(cohort / "a.h5", grid.IDENTITY), write_tiles(cohort / "b.h5", TO_B))
    arms = [
        scanner_pairs.Seen("plain", np.full(5, 0.9), np.full(5, 0.5), (0.91, 0.52)),
        scanner_pairs.Seen("robust", np.full(5, 0.6), np.full(5, 0.65), (0.61, 0.64)),
    ]
    with Slide(cohort / "a.tif") as first, Slide(cohort / "b.tif") as second:
        figure = scanner_pairs.draw((first, second), tiles, arms, ("A", "B"), "probability", "title")
    texts = [axes.get_title() for axes in figure.axes[:6]]
    assert texts[:3] == [
        "plain, scanner A: probability 0.910",
        "plain, scanner B: probability 0.520",
        "plain, B minus A: mean distance 0.400, spread 0.000",
    ]
    assert texts[5] == "robust, B minus A: mean distance 0.050, spread 0.000"
    scale = scanner_pairs.difference_scale(arms)
    assert (scale.vmin, scale.vcenter, scale.vmax) == pytest.approx((-0.4, 0, 0.4))


def test_pairs_are_the_first_named_scan_with_each_other_one():
    specimens = pd.Series({"a": "s", "b": "s", "c": "t", "d": "s", "e": "t"})
    assert scanner_pairs.pairs(["b", "c", "a", "d"], specimens) == [("b", "a"), ("b", "d")]
    values = scanner_pairs.score_scale(
        [scanner_pairs.Seen("x", np.array([10.0]), np.array([60.0]), (20.0, 40.0))], "predicted value"
    )
    assert (values.vmin, values.vcenter, values.vmax) == (0, 30, 60)
