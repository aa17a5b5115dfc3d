import json
import math

import cv2
import numpy as np
import pytest
import stages
import synth
import tifffile

import segment_tissue
from isoslide import checks, geojson, status
from isoslide.slide import SlideError

SETTINGS = json.loads(stages.settings("tissue"))
DISC_MM2 = math.pi * 0.3**2


def write_checks(folder, slides):
    """Check slides, a mapping of scan to path, and return the checks table's path."""
    rows = []
    for scan, path in slides.items():
        row = {"scan": scan, "path": str(path), "scanner": "A", "specimen": scan, "mpp": ""}
        try:
            rows.append(checks.check(row))
        except SlideError as error:
            rows.append(status.failed(row, error.status, error.reason))
    status.write(folder / "checks.tsv", rows)
    return folder / "checks.tsv"


def run(folder, **settings):
    segment_tissue.main(
        [
            *("--checks", str(folder / "checks.tsv")),
            *("--settings", json.dumps(SETTINGS | settings)),
            *("--results", str(folder / "tissue")),
            *("--threads", "2"),
            *("--output", str(folder / "tissue.tsv")),
        ]
    )
    return status.read(folder / "tissue.tsv").set_index("scan")


@pytest.fixture
def one(tmp_path):
    write_checks(tmp_path, {"s1": synth.slide(tmp_path / "s1.tif")})
    return tmp_path


def test_each_kind_of_slide_gets_its_row(tmp_path):
    """Complaints G-A11 (a flat TIFF), G-B3, G-C4, G-C7, G-D6."""
    slides = {
        "plain": synth.slide(tmp_path / "plain.tif"),
        "blank": synth.slide(tmp_path / "blank.tif", blobs=()),
        "pen": synth.slide(tmp_path / "pen.tif", pen="blue"),
        "only_pen": synth.slide(tmp_path / "only_pen.tif", blobs=(), pen="green"),
        "frame": synth.slide(tmp_path / "frame.tif", frame_um=60),
        "fine": synth.slide(tmp_path / "fine.tif", mpp=0.25),
        "flat": synth.slide(tmp_path / "flat.tif", flat=True),
        "no_mpp": synth.slide(tmp_path / "no_mpp.tif", with_mpp=False),
        "missing": tmp_path / "missing.tif",
    }
    write_checks(tmp_path, slides)
    table = run(tmp_path)
    assert sorted(table.index) == sorted(slides)
    assert table["status"].to_dict() == dict.fromkeys(slides, "ok") | {
        "blank": "no_tissue",
        "only_pen": "no_tissue",
        "no_mpp": "no_mpp",
        "missing": "missing",
    }
    for scan in ("plain", "pen", "frame", "fine", "flat"):
        assert float(table["tissue_mm2"][scan]) == pytest.approx(DISC_MM2, rel=0.05)
    assert float(table["ink_share"]["pen"]) > 0.3
    assert float(table["ink_share"]["plain"]) == 0
    assert float(table["black_share"]["frame"]) == pytest.approx(1 - 1080 * 880 / (1200 * 1000), abs=0.01)
    assert table["path"]["blank"].endswith("blank.geojson")
    picture = cv2.imread(str(tmp_path / "tissue/plain.jpg"))
    assert max(picture.shape) <= 600


def test_second_run_does_nothing_and_gives_equal_bytes(one, monkeypatch):
    run(one)
    before = {path.name: path.read_bytes() for path in (one / "tissue").iterdir()}
    first = (one / "tissue.tsv").read_bytes()
    monkeypatch.setattr(segment_tissue.slide, "open_checked", None)  # not called
    run(one)
    assert (one / "tissue.tsv").read_bytes() == first
    assert {path.name: path.read_bytes() for path in (one / "tissue").iterdir()} == before
    monkeypatch.undo()
    for path in (one / "tissue").iterdir():
        path.unlink()
    run(one)
    assert (one / "tissue.tsv").read_bytes() == first
    assert {path.name: path.read_bytes() for path in (one / "tissue").iterdir()} == before


def test_other_settings_make_it_again(one):
    before = run(one)["key"]["s1"]
    assert run(one, opening_um=200)["key"]["s1"] != before


def test_edited_file_is_kept_and_followed(one):
    before = run(one)
    path = one / "tissue/s1.geojson"
    value = json.loads(path.read_text())
    value["features"][0]["geometry"]["coordinates"] = [[[200, 200], [600, 200], [600, 600], [200, 600], [200, 200]]]
    path.write_text(json.dumps(value))
    edited = path.read_bytes()
    for settings in ({}, {"opening_um": 30}):
        table = run(one, **settings)
        assert (table["status"]["s1"], table["reason"]["s1"]) == ("ok", "edited by hand")
        assert path.read_bytes() == edited
        assert table["key"]["s1"] != before["key"]["s1"]
        assert float(table["tissue_mm2"]["s1"]) == pytest.approx(0.2 * 0.2, rel=0.05)
    path.unlink()
    assert run(one)["key"]["s1"] == before["key"]["s1"]


def test_users_own_mask_is_used(one):
    path = one / "tissue/s1.geojson"
    path.parent.mkdir()
    path.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [800, 0], [800, 400], [0, 400], [0, 0]]]}')
    table = run(one)
    assert table["reason"]["s1"] == "edited by hand"
    assert float(table["tissue_mm2"]["s1"]) == pytest.approx(0.4 * 0.2, rel=0.05)
    path.write_text('{"type": "FeatureCollection", "features": []}')
    assert run(one)["status"]["s1"] == "no_tissue"
    path.write_text("{")
    assert run(one)["status"]["s1"] == "bad_geojson"
    assert path.read_text() == "{"


def test_polygons_lie_on_the_tissue(one):
    run(one)
    (polygon,) = geojson.read(one / "tissue/s1.geojson").polygons
    radius = np.hypot(*(polygon[0] * 0.5 - 500).T)  # level-0 px at 0.5 µm/px; the blob is at (500, 500) µm
    assert np.abs(radius - 300).max() < 12


def test_slide_that_shrank_since_the_check_is_a_row(one):
    synth.slide(one / "s1.tif", size_um=(600, 600))
    assert run(one)["status"]["s1"] == "changed"


def write_damaged(path, damage):
    """Write a slide of two levels, level 0 changed by `damage`."""
    image = np.clip(synth.render((2400, 2000), 0.5, ((500, 500, 400),)), 0, 255).astype(np.uint8)
    half = cv2.resize(image, (1200, 1000), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path) as file:
        for index, level in enumerate((damage(image.copy()), half)):
            file.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subfiletype=1 if index else 0,
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def test_scans_that_lost_pixels_or_colours_are_given_up(tmp_path):
    """Complaints G-A12 and G-A7: pixels are wrong and nothing raises an error."""

    def black(image):
        image[512:768, 512:1536] = 0
        return image

    slides = {
        "sound": write_damaged(tmp_path / "sound.tif", lambda image: image),
        "black": write_damaged(tmp_path / "black.tif", black),
        "swapped": write_damaged(tmp_path / "swapped.tif", lambda image: image[..., ::-1]),
    }
    write_checks(tmp_path, slides)
    table = run(tmp_path)
    assert table["status"].to_dict() == {
        "sound": "ok",
        "black": "suspicious_black",
        "swapped": "levels_disagree",
    }
    assert "places in the tissue are black at level 0" in table["reason"]["black"]
    assert float(table["black_places"]["black"]) == pytest.approx(0.13, abs=0.07)  # 4 tiles of 128 µm in 0.5 mm²
    assert run(tmp_path).equals(table)  # the second time from the stored numbers
    assert run(tmp_path, max_black=1)["status"]["black"] == "ok"


def test_colour_numbers(one):
    row = run(one).loc["s1"]
    matrix, nucleus = synth.STAIN["he"]
    assert nucleus[1] < float(row["green_mean"]) < matrix[1]
    assert 0 < float(row["green_sd"]) < 40


def test_only_the_scans_asked_for(tmp_path):
    write_checks(tmp_path, {name: synth.slide(tmp_path / f"{name}.tif") for name in ("007", "7")})
    arguments = ["--checks", str(tmp_path / "checks.tsv"), "--settings", json.dumps(SETTINGS), "--scans", "007"]
    segment_tissue.main([*arguments, "--results", str(tmp_path / "t"), "--output", str(tmp_path / "t.tsv")])
    assert status.read(tmp_path / "t.tsv")["scan"].tolist() == ["007"]
