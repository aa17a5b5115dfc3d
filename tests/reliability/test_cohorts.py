"""Complaints about other tools: who is in the study, and who trains, tunes and tests."""

import pandas as pd
import pytest

from isoslide import cohort, outcomes, sheet, split_files, splits

BINARY = {"type": "binary", "label": "label", "positive": "b"}
DIVISION = {"folds": 5, "tune": 0.2, "seed": 1}


def read_sheet(folder, labels, specimens=1, **columns):
    """Patients with these labels, each with so many specimens of one scan."""
    rows = [
        {"scan": f"P{i}-{j}", "path": "a.tif", "scanner": "A", "patient": f"P{i}", "label": label} | columns
        for i, label in enumerate(labels)
        for j in range(specimens)
    ]
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    return sheet.read(folder / "slides.csv")


def test_patients_with_several_slides_never_cross(tmp_path):
    """Complaint G-H1: our own folds keep them together, a given file that does not is refused with names."""
    table = read_sheet(tmp_path, "ab" * 10, specimens=2)
    proof = splits.proof(splits.make(table, "t", BINARY, DIVISION), {})
    assert (proof["shared_patients"] == 0).all()
    lines = [f"0\t{('train', 'tune', 'test')[i % 3]}\t{scan}" for i, scan in enumerate(table["scan"])]
    (tmp_path / "own.tsv").write_text("\n".join(["fold\trole\tscan", *lines]))
    with pytest.raises(
        splits.SplitError, match=r"fold 0: \d+ patients stand in train and in tune: 'P0', .* and \d+ more: a patient"
    ):
        split_files.make(table, "t", BINARY, DIVISION, tmp_path / "own.tsv")


def test_tuning_and_test_sets_that_are_copies_are_refused(tmp_path):
    """Complaint G-H2."""
    table = read_sheet(tmp_path, "ab" * 10)
    lines = [f"0\ttrain\tP{i}" for i in range(12)]
    lines += [f"0\t{role}\tP{i}" for role in ("tune", "test") for i in range(12, 20)]
    (tmp_path / "own.tsv").write_text("\n".join(["fold\trole\tpatient", *lines]))
    with pytest.raises(splits.SplitError, match="8 patients stand in test and in tune: 'P12', 'P13'"):
        split_files.make(table, "t", BINARY, DIVISION, tmp_path / "own.tsv")


def test_a_test_set_of_one_class_is_refused_before_training(tmp_path):
    """Complaint G-H3: five patients, one positive, five folds."""
    with pytest.raises(splits.SplitError, match=r"task 't' fold 0: 1 patients to tune .1 a. are too few"):
        splits.make(read_sheet(tmp_path, "baaaa"), "t", BINARY, DIVISION)


def test_a_class_with_too_few_patients_is_named_with_all_counts(tmp_path):
    """Complaint G-H4."""
    table = read_sheet(tmp_path, "aaaabbbbc")
    with pytest.raises(sheet.SheetError, match=r"class 'c' has 1 patients \(a 4, b 4, c 1\)"):
        outcomes.check_tasks(table, {"t": {"type": "multiclass", "label": "label"}}, "slides.csv")


def test_every_slide_of_a_test_set_is_tested_or_listed_with_its_reason(tmp_path):
    """Complaint G-H8: two test slides are excluded, and said to be."""
    table = read_sheet(tmp_path, "ab" * 10)
    table["split"] = ["train"] * 8 + ["tune"] * 4 + ["test"] * 8
    reasons = {"P13-0": "out of focus", "P18-0": "wrong block"}
    table["exclude"] = table["scan"].map(reasons).fillna("")
    result = splits.make(table, "t", BINARY, DIVISION)
    tested = set(result.loc[result["role"] == "test", "scan"])
    counts, listed = cohort.losses(table, {})
    assert dict(zip(listed["scan"], listed["reason"], strict=True)) == reasons
    assert tested | set(reasons) == set(table.loc[table["split"] == "test", "scan"])
    assert counts["all"].tolist() == [20, 2, 18]
