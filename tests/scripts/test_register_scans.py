import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import synth

import register_scans
from isoslide import geojson, keys, status
from isoslide.slide import Slide

SLIDE = Path(__file__).parents[2] / "resources" / "CMU-1-Small-Region.svs"
SETTINGS = {
    "limit_um": 5,
    "um_per_px": 1.0,
    "overview_px": 1500,
    "patch_px": 256,
    "max_patches": 60,
    "scale_tolerance": 0.1,
    "min_agreement": 0.5,
    "min_ncc": 0.7,
    "max_correction_um": 20,
    "min_overlap": 0.6,
}
RING = np.array([[0.0, 0.0], [600, 0], [600, 600], [0, 600]])  # µm of the specimens' tissue
MAPS = {  # µm of the specimen -> µm of the scan
    "S1_A": [[1, 0, 50], [0, 1, 50]],
    "S1_B": [[0, -1, 660], [1, 0, 40]],
    "S1_C": [[0.9994, 0.0349, 30], [-0.0349, 0.9994, 70]],
    "S2_A": [[1, 0, 50], [0, 1, 50]],
    "S2_B": [[1, 0, 50], [0, 1, 50]],
}
MPP = {"A": 0.5, "B": 0.46, "C": 0.55}


def make_scan(folder, scan, mpp, place):
    """600 µm of the real slide on white glass, under the scan's map; returns the rows of both tables."""
    affine = np.array(MAPS[scan], float)
    linear = np.linalg.inv(affine[:, :2])
    back = np.column_stack([linear, -linear @ affine[:, 2]])  # scan -> specimen
    size = (round(760 / mpp), round(760 / mpp))
    with Slide(SLIDE) as slide:
        to_slide = np.column_stack([back[:, :2] * mpp, back[:, 2] + place])
        image = slide.read(to_slide, size)
    ring = RING @ affine[:, :2].T + affine[:, 2]
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(ring / mpp).astype(np.int32)], 1)
    image[mask == 0] = 244
    path = folder / "slides" / f"{scan}.tif"
    synth.write(path, image, mpp)
    geojson.write(folder / "tissue" / f"{scan}.geojson", [[np.round(ring / mpp, 1)]], {})
    row = {"scan": scan, "status": "ok", "reason": "", "specimen": scan[:2], "scanner": scan[-1]}
    check = {**row, "path": str(path), "mpp_x": mpp, "mpp_y": mpp, "width": size[0], "height": size[1], "key": scan}
    area = 0.36 + (scan == "S1_B") * 0.03
    return check, {
        **row,
        "path": str(folder / "tissue" / f"{scan}.geojson"),
        "tissue_mm2": area,
        "sharpness": 1.0,
        "key": scan,
    }


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """S1: three scans of one glass; S2: two of different glasses; S3: one scan and one without tissue."""
    folder = tmp_path_factory.mktemp("batch")
    places = {"S1_A": (150, 250), "S1_B": (150, 250), "S1_C": (150, 250), "S2_A": (150, 250), "S2_B": (300, 860)}
    rows = [make_scan(folder, scan, MPP[scan[-1]], place) for scan, place in places.items()]
    alone = [{**row, "scan": "S3_A", "specimen": "S3"} for row in rows[0]]
    empty = [
        {"scan": "S3_B", "status": state, "reason": reason, "specimen": "S3", "scanner": "B"}
        for state, reason in (("ok", ""), ("no_tissue", "white"))
    ]
    for index, stage in enumerate(("checks", "tissue")):
        status.write(folder / f"{stage}.tsv", [row[index] for row in rows] + [alone[index], empty[index]])
    return folder


def run(batch, out, *more, settings=SETTINGS):
    register_scans.main(
        ["--checks", str(batch / "checks.tsv"), "--tissue", str(batch / "tissue.tsv")]
        + ["--settings", json.dumps(settings), "--results", str(out / "reg"), "--output", str(out / "table.tsv"), *more]
    )
    return status.read(out / "table.tsv").set_index("scan")


def read(out, specimen):
    return json.loads((out / "reg" / f"{specimen}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def first_run(batch, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run(batch, out)


def test_maps_are_right(first_run):
    out, table = first_run
    content = read(out, "S1")
    assert content["reference"] == "S1_B"  # most tissue
    for scan in ("S1_A", "S1_C"):
        found = np.array(content["scans"][scan]["affine"])
        specimen = RING / 2 + 150
        reference = specimen @ np.array(MAPS["S1_B"])[:, :2].T + np.array(MAPS["S1_B"])[:, 2]
        expected = specimen @ np.array(MAPS[scan])[:, :2].T + np.array(MAPS[scan])[:, 2]
        assert np.abs(reference @ found[:, :2].T + found[:, 2] - expected).max() < 0.5
        assert float(table.loc[scan, "error_um"]) < 0.5
        assert float(table.loc[scan, "overlap"]) > 0.9
    assert content["scans"]["S1_B"]["affine"] == [[1, 0, 0], [0, 1, 0]]


def test_every_scan_has_its_row(first_run):
    out, table = first_run
    assert table["status"].to_dict() == {
        "S1_A": "ok",
        "S1_B": "ok",
        "S1_C": "ok",
        "S2_A": "ok",
        "S2_B": "not_registered",
        "S3_A": "ok",
        "S3_B": "no_tissue",
    }
    assert list(table.columns[5:]) == ["specimen", "scanner", "reference", "error_um", "overlap"]
    assert table.loc["S2_B", "reason"]
    assert table.loc["S2_B", "reference"] == "S2_A"  # equal areas: the first by name
    assert table.loc["S3_A", ["reference", "error_um"]].tolist() == ["S3_A", "0"]
    assert table.loc["S3_B", "reason"] == "white"
    assert table.loc["S1_A", "path"] == str(out / "reg" / "S1.json")
    assert table.loc["S1_A", "key"] == read(out, "S1")["key"]


def test_a_refused_map_is_not_written(first_run):
    out, _ = first_run
    entry = read(out, "S2")["scans"]["S2_B"]
    assert entry["affine"] is None
    assert entry["status"] == "not_registered"


def test_pictures_show_what_was_compared(first_run):
    out, _ = first_run
    picture = cv2.imread(str(out / "reg" / "S1.jpg"))
    assert picture.shape[1] == 640
    assert picture.shape[0] > 640
    assert (out / "reg" / "S1.jpg").stat().st_size < 200_000
    assert not (out / "reg" / "S3.jpg").exists()


def test_equal_input_gives_equal_bytes_on_any_number_of_threads(batch, first_run, tmp_path):
    out, _ = first_run
    run(batch, tmp_path, "--threads", "2")
    for name in ("S1.json", "S1.jpg", "S2.json", "S2.jpg", "S3.json"):
        assert (tmp_path / "reg" / name).read_bytes() == (out / "reg" / name).read_bytes()


def test_a_rerun_keeps_what_stands_and_redoes_the_rest(batch, first_run, monkeypatch):
    out, table = first_run
    made = []
    register = register_scans.register

    def counted(usable, *rest):
        made.append(next(iter(usable)))
        return register(usable, *rest)

    monkeypatch.setattr(register_scans, "register", counted)
    before = (out / "table.tsv").read_bytes()
    run(batch, out)
    assert made == []
    assert (out / "table.tsv").read_bytes() == before
    (out / "reg" / "S2.jpg").unlink()
    run(batch, out)
    assert made == ["S2_A"]
    record = (out / "reg" / "S2.json").read_bytes()
    (out / "reg" / "S2.json").write_bytes(record[:100])  # damaged on disk
    run(batch, out)
    assert (out / "reg" / "S2.json").read_bytes() == record
    del made[1:]
    monkeypatch.setattr(keys, "code_hash", lambda *modules: "other")
    run(batch, out, "--scans", "S3_A")
    assert made == ["S2_A", "S3_A"]


def test_another_order_of_preference_is_not_hidden_by_maps_that_are_there(batch, first_run, tmp_path):
    """The outlines are the same, the areas measured anew say that another scan has most tissue."""
    shutil.copytree(first_run[0] / "reg", tmp_path / "reg")
    (tmp_path / "checks.tsv").write_bytes((batch / "checks.tsv").read_bytes())
    tissue = status.read(batch / "tissue.tsv")
    assert run(batch, tmp_path, "--scans", "S1_A")["reference"].tolist() == ["S1_B"] * 3
    tissue.loc[tissue["scan"] == "S1_A", "tissue_mm2"] = "0.5"
    status.write(tmp_path / "tissue.tsv", tissue.to_dict("records"))
    assert run(tmp_path, tmp_path, "--scans", "S1_A")["reference"].tolist() == ["S1_A"] * 3


def test_only_the_asked_specimens(batch, tmp_path):
    table = run(batch, tmp_path, "--scans", "S3_A")
    assert list(table.index) == ["S3_A", "S3_B"]


def test_the_sheet_names_the_reference(batch, first_run, tmp_path):
    checks = status.read(batch / "checks.tsv").assign(reference="")
    checks.loc[checks["scan"] == "S1_C", "reference"] = "yes"
    status.write(tmp_path / "checks.tsv", checks.to_dict("records"))
    (tmp_path / "tissue.tsv").write_bytes((batch / "tissue.tsv").read_bytes())
    table = run(tmp_path, tmp_path, "--scans", "S1_A")
    assert table["reference"].tolist() == ["S1_C"] * 3
    assert table["status"].tolist() == ["ok"] * 3
    assert table.loc["S1_A", "key"] != first_run[1].loc["S1_A", "key"]


def test_a_scan_that_cannot_be_read_does_not_cost_the_others(batch, tmp_path):
    for stage in ("checks", "tissue"):
        rows = status.read(batch / f"{stage}.tsv")
        rows[rows["specimen"] == "S1"].to_csv(tmp_path / f"{stage}.tsv", sep="\t", index=False)
    checks = status.read(tmp_path / "checks.tsv")
    checks.loc[checks["scan"] == "S1_B", "width"] = "17"
    tissue = status.read(tmp_path / "tissue.tsv")
    broken = tmp_path / "broken.geojson"
    broken.write_text("{", encoding="utf-8")
    tissue.loc[tissue["scan"] == "S1_C", "path"] = str(broken)
    status.write(tmp_path / "checks.tsv", checks.to_dict("records"))
    status.write(tmp_path / "tissue.tsv", tissue.to_dict("records"))
    for _ in range(2):  # a bad file is tried again
        table = run(tmp_path, tmp_path)
        assert table["status"].to_dict() == {"S1_A": "ok", "S1_B": "changed", "S1_C": "bad_geojson"}
        assert table.loc["S1_A", "reference"] == "S1_A"
    assert not (tmp_path / "reg" / "S1.jpg").exists()


def test_a_scan_that_breaks_while_it_is_read_is_left_out(batch, tmp_path, monkeypatch):
    read = Slide.read

    def breaks(self, *args):
        if self.path.name == "S1_C.tif":
            raise register_scans.slide.SlideError("partly_unreadable", "tile 3")
        return read(self, *args)

    monkeypatch.setattr(Slide, "read", breaks)
    table = run(batch, tmp_path, "--scans", "S1_A")
    assert table["status"].to_dict() == {"S1_A": "ok", "S1_B": "ok", "S1_C": "partly_unreadable"}


def test_tables_that_do_not_belong_together(batch, tmp_path):
    checks = status.read(batch / "checks.tsv")
    status.write(tmp_path / "checks.tsv", checks[checks["scan"] != "S1_A"].to_dict("records"))
    (tmp_path / "tissue.tsv").write_bytes((batch / "tissue.tsv").read_bytes())
    with pytest.raises(SystemExit, match="S1_A"):
        run(tmp_path, tmp_path)
    assert not (tmp_path / "table.tsv").exists()


def test_help():
    script = Path(register_scans.__file__)
    text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "python scripts/register_scans.py" in text
