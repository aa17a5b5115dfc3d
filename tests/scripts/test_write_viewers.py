import json
import re

import numpy as np
import pandas as pd
import pytest
import synth
from stages import Stages, files

import write_viewers
from isoslide import atomic, grid, status

IDS = np.array([1_000_001, 1_000_002, 2_000_001])


@pytest.fixture
def cohort(tmp_path):
    """Scan a has heatmaps of one arm of two, b of none, c cannot be opened."""
    synth.slide(tmp_path / "a.tif", size_um=(800, 700), blobs=((350, 300, 180),))
    synth.slide(tmp_path / "b.tif", size_um=(400, 300), blobs=())
    names = {"a": "a.tif", "b": "b.tif", "c": "none"}
    Stages(tmp_path, [{"scan": s, "path": str(tmp_path / name), "scanner": "S"} for s, name in names.items()]).checks()
    corners = grid.corners(IDS, 112.0)
    attrs = {"tile_px": 224, "mpp": 0.5, "mpp_x": 0.5, "mpp_y": 0.5, "reference": "a", "paired": True}
    tiles = grid.Tiles((corners * 2).astype(np.int64), IDS, np.zeros(3, bool), corners, grid.IDENTITY, attrs)
    grid.write(tmp_path / "a.h5", tiles, (1600, 1400))
    status.write(tmp_path / "224px_0.5um.tsv", [{"scan": "a", "status": "ok", "path": tmp_path / "a.h5"}])
    table = pd.DataFrame({"tile_id": IDS, "x": 0, "y": 0, "attention": 1.0, "contribution": [0.5, 0, -0.25]})
    folder = tmp_path / "t/e/robust"
    atomic.write_table(folder / "tiles/a.tsv", table.assign(score=[0.9, 0.5, 0.4]))
    known = {"p": 0.6, "meaning": "probability", "total": 0.25, "total_meaning": "logit", "bounded": True, "models": 2}
    lost = [{"scan": s, "status": "no_tissue", "reason": "nothing found"} for s in "bc"]
    row = {"scan": "a", "status": "ok", "path": folder / "a.png", "no_contribution": ""} | known
    status.write(folder / "status.tsv", [row, *lost])
    failed = {"scan": "a", "status": "not_tested", "reason": "no model of a fold that tests this scan"}
    status.write(tmp_path / "t/e/plain/status.tsv", [failed, *lost])
    return tmp_path


def run(folder, *scans, results="viewer"):
    output = folder / results / "status.tsv"
    maps = [str(folder / f"t/e/{arm}/status.tsv") for arm in ("plain", "robust")]
    tables = ["--checks", str(folder / "checks.tsv"), "--maps", *maps]
    tables += ["--tiles", json.dumps({"e": str(folder / "224px_0.5um.tsv")})]
    write_viewers.main(["--scans", *scans, *tables, "--results", str(folder / results), "--output", str(output)])
    return status.read(output).set_index("scan")


def test_each_scan_is_a_page_or_a_row_that_says_why_not(cohort):
    table = run(cohort, "a", "b", "c")
    assert table["status"].to_dict() == {"a": "ok", "b": "no_heatmap", "c": "missing"}
    assert table.loc["b", "reason"] == "nothing found"
    page = (cohort / "viewer/a.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["folder"] == f"slides/a/{table.loc['a', 'key']}"
    assert data["um"] == 0.5
    assert data["levels"] == [[400, 350], [800, 700], [1600, 1400]]
    assert data["models"][0]["layers"][1]["values"] == [0.5, 0, -0.25]
    assert "t, e, plain (no model of a fold that tests this scan)" in page
    shown = cohort / "viewer" / data["folder"]
    assert len(list(shown.rglob("*.jpg"))) == 1 + 4 + 12
    assert (cohort / "viewer/thumbnails/a.jpg").read_bytes() == (shown / "0/0_0.jpg").read_bytes()


def test_pictures_are_kept_and_old_ones_go(cohort):
    table = run(cohort, "a")
    folder = cohort / "viewer/slides/a" / table.loc["a", "key"]
    before = (folder / "0/0_0.jpg").stat().st_mtime_ns
    (folder.parent / "0123456789abcdef").mkdir()
    (folder.parent / ".killed.12345678.tmp").mkdir()
    first = files(cohort / "viewer")
    run(cohort, "a")
    assert (folder / "0/0_0.jpg").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert files(cohort / "viewer") == first
    run(cohort, "a", results="again")
    again = files(cohort / "again")
    assert {name for name in again if again[name] != first[name]} == {"status.tsv"}  # it names the folder


def test_a_slide_that_breaks_leaves_no_pictures(cohort, monkeypatch):
    from isoslide import pyramid
    from isoslide.slide import SlideError

    def broken(slide, folder, um_per_px):
        (folder / "0").mkdir()
        raise SlideError("partly_unreadable", "broken at level 0")

    monkeypatch.setattr(pyramid, "write", broken)
    monkeypatch.setattr(write_viewers, "code_of_pictures", lambda: "c")
    assert run(cohort, "a").loc["a", "status"] == "partly_unreadable"
    assert list((cohort / "viewer/slides/a").iterdir()) == []
    assert not (cohort / "viewer/a.html").exists()


def test_an_unknown_scan_is_one_line(cohort):
    with pytest.raises(SystemExit, match="no scan 'x' in the sheet"):
        run(cohort, "x")
