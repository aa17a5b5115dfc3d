import pandas as pd
import pytest

from isoslide import split_files, splits

TASK = {"type": "binary", "label": "response", "positive": "positive"}
SETTINGS = {"tune": 0.25, "seed": 1}


def cohort(n=12):
    return pd.DataFrame(
        [
            {
                "scan": f"P{i}{scanner}",
                "scanner": scanner,
                "specimen": f"P{i}",
                "patient": f"P{i}",
                "split": "",
                "exclude": "",
                "response": ("positive", "negative")[i % 2],
            }
            for i in range(n)
            for scanner in "AB"
        ]
    )


def role(i):
    return ("train", "train", "train", "train", "tune", "tune", "test", "test")[i % 8]


def write(path, rows, unit="patient"):
    path.write_text(f"fold\trole\t{unit}\n" + "".join(f"{fold}\t{role}\t{name}\n" for fold, role, name in rows))
    return path


def test_patients_stand_for_their_scans(tmp_path):
    file = write(tmp_path / "own.tsv", [(0, role(i), f"P{i}") for i in range(10)])
    result = split_files.make(cohort(), "t", TASK, SETTINGS, file)
    assert list(result.columns) == list(splits.COLUMNS)
    assert {(row.patient, row.role) for row in result.itertuples()} == {
        *((f"P{i}", role(i)) for i in range(10)),
        ("P10", "unused"),
        ("P11", "unused"),
    }


def test_scans_are_taken_one_by_one(tmp_path):
    rows = [(fold, role(i + 4 * fold), f"P{i}A") for fold in (0, 1) for i in range(8)]
    result = split_files.make(cohort(), "t", TASK, SETTINGS, write(tmp_path / "own.tsv", rows, "scan"))
    assert {(row.fold, row.role, row.scan) for row in result[result["role"] != "unused"].itertuples()} == set(rows)
    assert (result.loc[result["scanner"] == "B", "role"] == "unused").all()


def test_tuning_patients_are_drawn_where_none_are_named(tmp_path):
    rows = [(0, "test" if i < 4 else "train", f"P{i}") for i in range(12)]
    result = split_files.make(cohort(), "t", TASK, SETTINGS, write(tmp_path / "own.tsv", rows))
    people = result.drop_duplicates("patient")
    assert people["role"].value_counts().to_dict() == {"train": 6, "test": 4, "tune": 2}
    assert people.loc[people["role"] == "tune", "class"].nunique() == 2


GOOD = [(0, role(i), f"P{i}") for i in range(8)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*GOOD, (0, "test", "P0"), (0, "test", "P1")], "fold 0: 2 patients stand in test and in train: 'P0', 'P1': a"),
        ([*GOOD, (0, "train", "P0")], "line 10: patient 'P0' stands twice in fold 0"),
        ([*GOOD, (0, "val", "P9")], "line 10: role 'val': write one of .'train', 'tune', 'test', 'unused'"),
        ([*GOOD, ("a", "train", "P9")], "line 10: fold 'a': write a number from 0"),
        ([*GOOD, (0, "train", "P77")], "line 10: patient 'P77': write a patient of the sheet"),
        (GOOD[:6], "fold 0: 0 patients to test .* are too few to score"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, rows, message):
    with pytest.raises(splits.SplitError, match=message) as error:
        split_files.make(cohort(), "t", TASK, SETTINGS, write(tmp_path / "own.tsv", rows))
    assert "\n" not in str(error.value)


def test_the_sheet_and_the_file_must_not_disagree(tmp_path):
    table = cohort()
    table.loc[table["patient"] == "P0", "split"] = "test"
    file = write(tmp_path / "own.tsv", GOOD)
    with pytest.raises(splits.SplitError, match="scan 'P0A' is to train, the sheet's column split says test"):
        split_files.make(table, "t", TASK, SETTINGS, file)


def test_absent_columns_and_files_are_named(tmp_path):
    (tmp_path / "own.tsv").write_text("fold,role,scan\n")
    with pytest.raises(splits.SplitError, match="column 'fold' is missing; it has .'fold,role,scan'"):
        split_files.read(tmp_path / "own.tsv", cohort())
    with pytest.raises(splits.SplitError, match="no file"):
        split_files.read(tmp_path / "gone.tsv", cohort())
