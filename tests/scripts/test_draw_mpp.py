import draw_mpp
from isoslide import status


def test_writes_equal_bytes(tmp_path):
    row = {"status": "ok", "specimen": "g", "mpp_source": "file"}
    rows = [row | {"scan": str(i), "scanner": "AB"[i % 2], "mpp_x": 0.25 + i / 100} for i in range(6)]
    status.write(tmp_path / "checks.tsv", rows)
    output = tmp_path / "new/mpp.svg"
    found = []
    for _ in range(2):
        draw_mpp.main(["--checks", str(tmp_path / "checks.tsv"), "--output", str(output)])
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert b"B: 3 scans" in found[0]
