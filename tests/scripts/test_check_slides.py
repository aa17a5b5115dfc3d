import pytest
import synth

import check_slides
from isoslide import status


def test_one_bad_slide_is_a_row(tmp_path):
    good = synth.slide(tmp_path / "good slide.tif")
    (tmp_path / "text.svs").write_text("no slide")
    sheet = tmp_path / "slides.tsv"
    rows = [f"001\t{good}\tA", f"002\t{tmp_path}/text.svs\tA", f"003\t{tmp_path}/gone.svs\tB"]
    sheet.write_text("scan\tpath\tscanner\n" + "\n".join(rows) + "\n")
    output = tmp_path / "checks.tsv"
    check_slides.main(["--sheet", str(sheet), "--output", str(output), "--threads", "2"])
    table = status.read(output).set_index("scan")
    assert table["status"].to_dict() == {"001": "ok", "002": "unreadable", "003": "missing"}
    assert table.loc["003", "scanner"] == "B"
    before = output.read_bytes()
    check_slides.main(["--sheet", str(sheet), "--output", str(output)])
    assert output.read_bytes() == before
    with pytest.raises(SystemExit, match="no scan '004'"):
        check_slides.main(["--sheet", str(sheet), "--output", str(output), "--scans", "004"])
