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


def run(sheet, output, task=TASK, file=None):
    settings = json.dumps({"task": task, "splits": SPLITS})
    own = ["--file", str(file)] if file else []
    files = ["--output", str(output), "--proof", str(output.with_suffix(".proof"))]
    make_splits.main(["--sheet", str(sheet), "--task", "t", "--settings", settings, *own, *files])


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


def test_scans_without_an_outcome_are_counted_with_their_cells(tmp_path, capsys):
    """A class called none would be lost in silence."""
    sheet = write_sheet(tmp_path / "slides.tsv", n=21)
    text = sheet.read_text().replace("S3A\tx.tif\tA\tS3\tyes", "S3A\tx.tif\tA\tS3\tNone")
    sheet.write_text(text.replace("\tS4\tno", "\tS4\t"))
    run(sheet, tmp_path / "one.tsv")
    said = capsys.readouterr().err
    assert "3 of 42 scans have no outcome (A 2, B 1), 1 patients none at all" in said
    assert "cells of response: 2 ''; 1 'None'" in said


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


def test_proof_is_written_beside_the_folds(tmp_path):
    run(write_sheet(tmp_path / "slides.tsv"), tmp_path / "one.tsv")
    proof = pd.read_csv(tmp_path / "one.proof", sep="\t")
    assert proof[["fold", "role"]].to_numpy().tolist() == [[f, r] for f in range(3) for r in ("train", "tune", "test")]
    assert (proof["shared_patients"] == 0).all()
    assert proof.loc[proof["role"] == "test", "patients"].tolist() == [6, 6, 6]


def test_folds_of_ones_own(tmp_path):
    rows = [f"{fold}\t{'test' if i % 3 == fold else 'train'}\tS{i}A" for fold in range(3) for i in range(18)]
    (tmp_path / "own.tsv").write_text("fold\trole\tscan\n" + "\n".join(rows) + "\n")
    run(write_sheet(tmp_path / "slides.tsv"), tmp_path / "one.tsv", file=tmp_path / "own.tsv")
    table = pd.read_csv(tmp_path / "one.tsv", sep="\t", dtype=str, keep_default_na=False)
    tested = table[table["role"] == "test"]
    assert {(int(row.fold), int(row.patient[1:]) % 3) for row in tested.itertuples()} == {(0, 0), (1, 1), (2, 2)}
    assert set(table.loc[table["scanner"] == "B", "role"]) == {"unused"}
    assert set(table.loc[table["scanner"] == "A", "role"]) == {"train", "tune", "test"}
    (tmp_path / "own.tsv").write_text("fold\trole\tscan\n0\ttrain\tS99A\n")
    with pytest.raises(SystemExit, match="error: .*own.tsv line 2: scan 'S99A': write a scan of the sheet"):
        run(tmp_path / "slides.tsv", tmp_path / "one.tsv", file=tmp_path / "own.tsv")
