"""Complaints about other tools that have no better place: formats, readers in parallel, labels, many slides."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import synth
from PIL import Image
from stages import Stages, files

from isoslide import outcomes, sheet

WHITE, PINK = (242, 240, 243), (205, 130, 175)
DICOM = "data/slides/CMU-1-Small-Region.dicom"
JPEG, JPEG_2000 = b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90"  # transfer syntaxes, of equal length


def test_a_dicom_slide_is_its_folder_or_one_of_its_files(tmp_path, shared):
    """Complaint G-A6."""
    rows = [
        {"scan": "folder", "path": shared / DICOM, "scanner": "A"},
        {"scan": "file", "path": shared / DICOM / "level-0-frames-0-30.dcm", "scanner": "A"},
    ]
    table = Stages(tmp_path, rows).checks()
    assert set(table["status"]) == {"ok"}
    assert table["width"].nunique() == 1
    with pytest.raises(SystemExit, match="one and the same file"):  # of one slide under two ids, too
        Stages(tmp_path, rows).collect("checks", "skip", 2)


def test_a_codec_that_cannot_be_read_is_said_before_any_work(tmp_path, shared):
    """Complaint G-A5: a DICOM slide of lossless JPEG 2000, made by naming that codec in a JPEG slide."""
    folder = tmp_path / "slide"
    folder.mkdir()
    for path in (shared / DICOM).glob("*.dcm"):
        (folder / path.name).write_bytes(path.read_bytes().replace(JPEG, JPEG_2000))
    row = Stages(tmp_path, [{"scan": "a", "path": folder, "scanner": "A"}]).checks().loc["a"]
    assert row["status"] in ("unsupported_codec", "unreadable", "partly_unreadable")
    assert row["reason"]


def test_threads_change_nothing(tmp_path):
    """Complaint G-A10: handles shared between workers."""
    rows = [
        {"scan": f"s{i}", "path": synth.slide(tmp_path / f"{i}.tif", size_um=(900, 900), seed=i), "scanner": "A"}
        for i in range(4)
    ]
    made = []
    for threads in ("1", "4"):
        stages = Stages(tmp_path, rows)
        stages.checks()
        shutil.rmtree(tmp_path / "tissue", ignore_errors=True)
        stages.tissue(threads=threads)
        made.append(files(tmp_path))
    assert made[0] == made[1]


@pytest.mark.parametrize("values", [("0", "1"), ("01", "1"), ("yes", "no")])
def test_labels_are_text_whatever_they_look_like(tmp_path, values):
    """Complaint G-G4: 0/1 labels of a binary task are two classes."""
    rows = [{"scan": f"s{i}", "path": "a.tif", "scanner": "A", "label": values[i % 2]} for i in range(4)]
    Stages(tmp_path, rows)
    table = sheet.read(tmp_path / "slides.tsv")
    outcomes.check_tasks(table, {"t": {"type": "binary", "label": "label", "positive": values[1]}}, "slides.tsv")
    assert table["label"].tolist() == [*values, *values]


@pytest.mark.parametrize(("labels", "found"), [("aaaa", "1: .'a'."), ("abca", "3: .'a', 'b', 'c'.")])
def test_number_of_classes_is_checked_against_the_task(tmp_path, labels, found):
    """Complaint G-G5."""
    rows = [{"scan": f"s{i}", "path": "a.tif", "scanner": "A", "label": label} for i, label in enumerate(labels)]
    Stages(tmp_path, rows)
    table = sheet.read(tmp_path / "slides.tsv")
    with pytest.raises(sheet.SheetError, match=f"binary task needs two classes, column 'label' of .* has {found}"):
        outcomes.check_tasks(table, {"t": {"type": "binary", "label": "label", "positive": "a"}}, "slides.tsv")


def test_counts_are_conserved_by_scanner_from_sheet_to_tiles(tmp_path):
    """Complaints G-C3, G-C4: every stage has every scan, whatever files are there."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        path = tmp_path / f"{i}.tif"
        if i % 4 < 2:
            synth.slide(path, size_um=(700, 700), blobs=((350, 350, 250),) if i % 4 else (), seed=i)
        elif i % 4 == 2:
            path.write_bytes(rng.bytes(1000))
        rows.append({"scan": f"s{i}", "path": path, "scanner": "AB"[i // 4]})
    stages = Stages(tmp_path, rows)
    sheet_counts = pd.DataFrame(rows)["scanner"].value_counts().to_dict()
    stages.checks()
    stages.tissue()
    (tmp_path / "tissue/s1.jpg").unlink()  # later stages read the tables, not the folders
    for table in (stages.table("checks"), stages.table("tissue"), stages.tiles()):
        assert table["scanner"].value_counts().to_dict() == sheet_counts
        assert (table["status"] != "").all()
    assert stages.table("tiles")["status"].value_counts().to_dict() == {
        "ok": 2,
        "no_tissue": 2,
        "unreadable": 2,
        "missing": 2,
    }


def test_a_slide_scanned_in_part_has_tiles_where_its_pixels_are(tmp_path):
    """Complaint G-A2: real pixels begin at an offset, all before is transparent; coordinates count from level 0."""
    image = np.zeros((3072, 4096, 4), np.uint8)
    image[1024:, 2048:] = (*WHITE, 255)
    image[1500:2600, 2500:3700, :3] = np.random.default_rng(0).normal(PINK, 12, (1100, 1200, 3)).clip(0, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    stages = Stages(tmp_path, [{"scan": "a", "path": tmp_path / "a.png", "scanner": "A", "mpp": "0.5"}])
    for stage in ("checks", "tissue", "tiles"):
        assert getattr(stages, stage)().loc["a", "status"] == "ok"
    with h5py.File(stages.table("tiles").loc["a", "path"]) as file:
        coords = file["coords"][:]
    assert len(coords) > 10
    assert (coords >= (2500 - 256, 1500 - 256)).all()
    assert (coords <= (3700, 2600)).all()
