from isoslide import status


def test_round_trip_sorts_and_keeps_text(tmp_path):
    row = {"scan": "02", "status": "ok", "n_tiles": 3, "specimen": "G", "scanner": "A", "mpp_x": 0.2270972430}
    lost = status.failed({"scan": "01", "specimen": "G", "scanner": "B"}, "unreadable", "line\n\tbreak")
    status.write(tmp_path / "t.tsv", [row, lost])
    table = status.read(tmp_path / "t.tsv")
    assert table["scan"].tolist() == ["01", "02"]
    assert table["reason"].tolist() == ["line break", ""]
    assert table["n_tiles"].tolist() == ["", "3"]
    assert table["mpp_x"].tolist() == ["", "0.227097"]
    assert status.bad(table)["scan"].tolist() == ["01"]
    assert status.carried(table.iloc[0]) == lost | {"reason": "line break"}


def test_blanks_of_ids_and_paths_stay_as_they_are(tmp_path):
    text = "/my  slides/a\u00a0b\u3000c\u2028.svs"
    status.write(tmp_path / "t.tsv", [{"scan": "a  b", "status": "ok", "reason": " a \n  b\n", "path": text}])
    row = status.read(tmp_path / "t.tsv").iloc[0]
    assert (row["scan"], row["path"], row["reason"]) == ("a  b", text, "a b")


def test_equal_rows_give_equal_bytes(tmp_path):
    rows = [{"scan": str(i), "status": "ok", "x": i / 7} for i in range(5)]
    status.write(tmp_path / "a.tsv", rows)
    status.write(tmp_path / "b.tsv", rows[::-1])
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
