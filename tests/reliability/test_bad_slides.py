"""Slides that are damaged, cut short, blank or without µm/px: a row with a reason each, and the others go on."""

import shutil

import numpy as np
import pytest
import synth
from stages import Stages

BAD = {"unreadable", "partly_unreadable"}


def damage(path, start, stop, target):
    """Write a copy whose bytes between two shares of the length are zero."""
    content = bytearray(path.read_bytes())
    a, b = round(len(content) * start), round(len(content) * stop)
    content[a:b] = bytes(b - a)
    target.write_bytes(content)
    return target


@pytest.fixture
def cohort(tmp_path):
    good = synth.slide(tmp_path / "good.tif", blobs=((500, 500, 450),), noise=20)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(good.read_bytes()[:-4000])
    half = tmp_path / "half.tif"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty = tmp_path / "empty.svs"
    empty.touch()
    paths = {
        "good": good,
        "cut": cut,
        "half": half,
        "empty": empty,
        "zeros": damage(good, 0.3, 0.4, tmp_path / "zeros.tif"),
        "gone": tmp_path / "gone.tif",
        "blank": synth.slide(tmp_path / "blank.tif", blobs=()),
        # where four tiles meet, so none is half full
        "speck": synth.slide(tmp_path / "speck.tif", blobs=((448, 448, 70),)),
        "no_mpp": synth.slide(tmp_path / "no_mpp.tif", with_mpp=False),
    }
    return Stages(tmp_path, [{"scan": scan, "path": path, "scanner": "A"} for scan, path in paths.items()])


def test_each_bad_slide_is_one_row_from_first_to_last_stage(cohort):
    """Complaints G-A3, G-B3, G-C1, G-C4, G-D4, G-D6: nothing is lost, nothing stops the others."""
    tables = [cohort.checks(), cohort.tissue(), cohort.tiles()]
    scans = ["blank", "cut", "empty", "gone", "good", "half", "no_mpp", "speck", "zeros"]
    for table in tables:
        assert table.index.tolist() == scans
        lost = table[table["status"] != "ok"]
        assert (lost["reason"] != "").all()
        assert not table["reason"].str.contains("\n").any()
    final = tables[-1]
    expected = {"good": "ok", "gone": "missing", "blank": "no_tissue", "speck": "zero_tiles", "no_mpp": "no_mpp"}
    assert {scan: final["status"][scan] for scan in expected} == expected
    for scan in ("half", "empty"):
        assert final["status"][scan] in BAD
    for scan in ("cut", "zeros"):  # found on reading, if what is missing is read at all
        assert final["status"][scan] in BAD | {"ok", "suspicious_black", "levels_disagree"}
    assert not (cohort.folder / "tiles/speck.h5").exists()


def test_bad_slides_stop_the_run_or_are_listed(cohort, capsys):
    """Complaints G-D6, G-C3: policy `fail` ends with an error and the list, `skip` with every row."""
    cohort.checks()
    with pytest.raises(SystemExit, match="stage checks: [4-6] of 9 scans cannot be used"):
        cohort.collect("checks", "fail", 9)
    assert "gone (scanner A): missing: no file" in capsys.readouterr().out
    cohort.collect("checks", "skip", 9)
    assert len(cohort.table("all_checks")) == 9


def test_damage_in_mid_file_is_a_status_that_names_the_place(tmp_path, shared):
    """Complaint G-A3 on a real SVS: its JPEG tiles overwritten in the middle; the sound copy goes on."""
    real = shared / "data/slides/CMU-1-Small-Region.svs"
    rows = [
        {"scan": "bad", "path": damage(real, 0.4, 0.42, tmp_path / "bad.svs"), "scanner": "A"},
        {"scan": "good", "path": shutil.copy(real, tmp_path / "good.svs"), "scanner": "A"},
    ]
    stages = Stages(tmp_path, rows)
    stages.checks()
    stages.tissue()
    stages.tiles()
    table = stages.features()
    assert table["status"]["good"] == "ok"
    assert table["status"]["bad"] != "ok"
    assert table["reason"]["bad"]


def test_real_slide_without_mpp_works_once_the_sheet_gives_it(tmp_path, shared):
    """Complaints G-B3, G-B5: refused in one line, then cut in µm of the sheet's value."""
    path = shared / "data/slides/tcga-cr-7395-01a-01-ts1.svs"
    row = {"scan": "tcga", "path": path, "scanner": "A", "mpp": ""}
    refused = Stages(tmp_path, [row]).checks(assume_mpp_from_power=True).loc["tcga"]  # nor does it say its power
    assert refused["status"] == "no_mpp"
    assert refused["reason"].endswith("give it in the sheet's column 'mpp'")
    stages = Stages(tmp_path, [row | {"mpp": "0.9"}])
    checked = stages.checks().loc["tcga"]
    assert (checked["status"], checked["mpp_x"], checked["mpp_source"]) == ("ok", "0.9", "sheet")
    tissue = stages.tissue().loc["tcga"]
    assert tissue["status"] == "ok"
    assert 2 < float(tissue["tissue_mm2"]) < 4443 * 3567 * 0.81 / 1e6
    assert stages.tiles()["status"]["tcga"] == "too_coarse"
    tiles = stages.tiles({"tile_px": 224, "mpp": 1.0}).loc["tcga"]
    assert tiles["status"] == "ok"
    n = float(tissue["tissue_mm2"]) * 1e6 / 224**2
    assert int(tiles["n_tiles"]) == pytest.approx(n, rel=0.3)


def test_coordinates_say_their_unit(tmp_path):
    """Complaints G-B4, G-B7: 256 px at 0.5 µm/px of a 0.25 µm/px scan are 512 level-0 pixels."""
    import h5py

    stages = Stages(tmp_path, [{"scan": "a", "path": synth.slide(tmp_path / "a.tif", mpp=0.25), "scanner": "A"}])
    stages.checks()
    stages.tissue()
    stages.tiles({"tile_px": 256, "mpp": 0.5})
    with h5py.File(tmp_path / "tiles/a.h5") as file:
        steps = np.unique(np.diff(np.unique(file["coords"][:, 0])))
        assert steps.tolist() == [512]
        assert file["coords"].attrs["patch_size_level0"] == 512
        assert "level-0 px" in file["coords"].attrs["unit"]
