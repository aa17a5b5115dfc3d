import json

import pandas as pd
import pytest

import make_splits

TASK = {"type": "binary", "label": "response", "positive": "yes"}
SPLITS = {"folds": 3, "tune": 0.25, "seed": 1}


def write_sheet(path, n=18):
    rows = [f"S{i}{s}\tx.tif\t{s}\tS{i}\t{'yes' if i % 2 else 'no'}" for i in range(n) for s in "AB"]
    path.write_text("scan\tpath\tscanner\tpatient\tresponse\n" + "\n".join(rows) + "\n")
    return path


def run(sheet, output, task=TASK):
    settings = json.dumps({"task": task, "splits": SPLITS})
    make_splits.main(["--sheet", str(sheet), "--task", "t", "--settings", settings, "--output", str(output)])


def test_table_is_written_and_the_same_again(tmp_path):
    sheet = write_sheet(tmp_path / "slides.tsv")
    run(sheet, tmp_path / "one.tsv")
    run(sheet, tmp_path / "two.tsv")
    assert (tmp_path / "one.tsv").read_bytes() == (tmp_path / "two.tsv").read_bytes()
    table = pd.read_csv(tmp_path / "one.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert list(table.columns) == [
        "fold",
        "scan",
        "specimen",
        "patient",
        "scanner",
        "role",
        "label",
        "class",
        "time",
        "event",
    ]
    assert len(table) == 3 * 36
    assert set(table["label"]) == {"0", "1"}


def test_too_few_patients_end_in_one_line_and_no_file(tmp_path):
    sheet = write_sheet(tmp_path / "slides.tsv", n=4)
    with pytest.raises(SystemExit, match=r"error: task 't' fold 0: .* are too few") as error:
        run(sheet, tmp_path / "one.tsv")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "one.tsv").exists()


def test_survival(tmp_path):
    sheet = tmp_path / "slides.tsv"
    rows = [f"S{i}\tx.tif\tA\t{10 + 2 * i}\t{i % 2}" for i in range(30)]
    sheet.write_text("scan\tpath\tscanner\tmonths\tevent\n" + "\n".join(rows) + "\n")
    task = {"type": "survival", "time": "months", "event": "event", "poor_before": 40, "good_after": 40}
    run(sheet, tmp_path / "one.tsv", task)
    table = pd.read_csv(tmp_path / "one.tsv", sep="\t", dtype=str, keep_default_na=False)
    assert set(table["class"]) == {"poor", "good", ""}
    assert set(table.loc[table["class"] == "poor", "label"]) == {"1"}
