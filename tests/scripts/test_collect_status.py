import pytest

import collect_status
from isoslide import status

FACTS = {"mpp_x": 0.25, "mpp_source": "file", "vendor": "aperio", "icc": "yes", "fingerprint": "f1"}
GOOD = {"scan": "b", "status": "ok", "specimen": "G", "scanner": "A"} | FACTS
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


def test_tables_of_several_encoders_give_their_own_rows(tmp_path):
    rows = [GOOD | {"encoder": "uni", "key": "u"}, GOOD | {"encoder": "gpfm", "key": "g"}]
    table = run(tmp_path, rows, expect=1, stage="features/gpfm")
    assert table["key"].tolist() == ["g"]
    assert "encoder" not in table


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


def test_copies_of_one_slide_stop_the_run_under_any_policy(tmp_path, capsys):
    rows = [GOOD, GOOD | {"scan": "c"}, GOOD | {"scan": "d", "fingerprint": "f2"}]
    for policy in ("fail", "skip"):
        with pytest.raises(SystemExit, match="one and the same file"):
            run(tmp_path, rows, expect=3, policy=policy)
        printed = capsys.readouterr().out
        assert "b (scanner A): duplicate_file: the same file as scan c: correct a path" in printed
        assert "c (scanner A): duplicate_file: the same file as scan b" in printed
        assert "d (scanner" not in printed


def test_warns_of_what_is_odd_in_the_cohort(tmp_path, capsys):
    """Complaints G-A8, G-A14 (colour profiles), G-B8 (assumed µm/px), and formats mixed within a scanner."""
    other = {"scanner": "B", "icc": "no", "vendor": "dicom"}
    rows = [GOOD | {"scan": f"a{i}", "fingerprint": f"a{i}"} for i in range(4)]
    rows += [GOOD | other | {"scan": f"b{i}", "fingerprint": f"b{i}"} for i in range(2)]
    run(tmp_path, rows[:4], expect=4)
    assert "warning" not in capsys.readouterr().out
    rows[0] |= {"vendor": "generic-tiff", "mpp_x": 0.5, "mpp_source": "assumed"}
    run(tmp_path, rows, expect=6)
    printed = capsys.readouterr().out
    assert "µm/px of 1 scans is assumed from the nominal power: a0" in printed
    assert "scanner A hold a colour (ICC) profile and slides of scanner B hold none" in printed
    assert "scanner A are of several formats (3 aperio, 1 generic-tiff)" in printed
    assert "µm/px of scanner A is 0.25 in the median, and more than 5% off in 1 of 4 scans: a0" in printed


def test_all_scans_bad(tmp_path):
    assert len(run(tmp_path, [BAD], expect=1, policy="skip")) == 1
