import pytest

import collect_status
from isoslide import status

GOOD = {"scan": "b", "status": "ok", "specimen": "G", "scanner": "A"}
BAD = {"scan": "a", "status": "unreadable", "reason": "a format nobody knows", "specimen": "G", "scanner": "B"}


def run(tmp_path, rows, expect=2, policy="fail", stage="checks"):
    for index, row in enumerate(rows):
        status.write(tmp_path / f"b{index}.tsv", [row])
    tables = [str(tmp_path / f"b{index}.tsv") for index in range(len(rows))]
    output = tmp_path / "all.tsv"
    arguments = ["--stage", stage, "--expect", str(expect), "--on-bad-slide", policy, "--output", str(output)]
    collect_status.main(["--tables", *tables, *arguments])
    return status.read(output)


def test_bad_slides_are_listed_and_stop_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1 of 2 scans cannot be used"):
        run(tmp_path, [GOOD, BAD])
    assert "a (scanner B): unreadable: a format nobody knows" in capsys.readouterr().out
    assert not (tmp_path / "all.tsv").exists()


def test_skip_goes_on_with_every_row(tmp_path):
    assert run(tmp_path, [GOOD, BAD], policy="skip")["scan"].tolist() == ["a", "b"]


def test_scans_are_conserved(tmp_path):
    with pytest.raises(SystemExit, match="1 rows for 2 scans"):
        run(tmp_path, [GOOD])
    with pytest.raises(SystemExit, match="1 of them twice"):
        run(tmp_path, [GOOD, GOOD])


def test_a_scan_that_was_not_registered_is_used_alone(tmp_path):
    row = BAD | {"status": "not_registered"}
    assert len(run(tmp_path, [GOOD, row], stage="registrations")) == 2
    with pytest.raises(SystemExit):
        run(tmp_path, [GOOD, row], stage="tissue")
