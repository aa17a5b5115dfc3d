import numpy as np
import pandas as pd
import pytest

from isoslide import outcomes, sheet

HEADER = "scan,path,scanner,specimen,patient,split,exclude,label,months,event\n"
BINARY = {"type": "binary", "label": "label", "positive": "yes"}
MULTI = {"type": "multiclass", "label": "label"}
VALUE = {"type": "regression", "label": "label"}
SURVIVAL = {"type": "survival", "time": "months", "event": "event", "poor_before": 24, "good_after": 24}


def table(tmp_path, rows, header=HEADER):
    path = tmp_path / "slides.csv"
    path.write_text(header + "\n".join(rows) + "\n")
    return sheet.read(path)


def check(tmp_path, rows, task, **changes):
    outcomes.check_tasks(table(tmp_path, rows), {"t": task | changes}, "slides.csv")


def labelled(values):
    return [f"s{i},a,A,,,,,{value}" for i, value in enumerate(values)]


def test_label_columns(tmp_path):
    check(tmp_path, labelled(["yes", "no", "nan", ""]), BINARY)
    for values, changes, message in (
        ([""], {"label": "grade"}, r"tasks.t.label: no column 'grade' in slides.csv"),
        (["yes", "Yes"], {}, r"line 3: label is spelled 'Yes' and 'yes'"),
        (["yes", "no", "perhaps"], {}, r"binary task needs two classes, column 'label' of slides.csv has 3"),
        (["yes", "no"], {"positive": "ja"}, r"positive: no label 'ja'"),
    ):
        with pytest.raises(sheet.SheetError, match=message):
            check(tmp_path, labelled(values), BINARY, **changes)
    with pytest.raises(sheet.SheetError, match=r"specimen 'G1' differ in label: 'yes' and 'no'"):
        check(tmp_path, ["s1,a,A,G1,,,,yes", "s2,a,B,G1,,,,no"], BINARY)


def test_multiclass_labels(tmp_path):
    """Complaints G-G4, G-G5, G-H4."""
    check(tmp_path, labelled("001122201"), MULTI)
    check(tmp_path, labelled("001122201"), MULTI, classes=["2", "0", "1"])
    for values, changes, message in (
        ("abab", {}, r"multiclass task needs three classes or more, column 'label' of slides.csv has 2: .*'a', 'b'"),
        ("aaaa", {}, r"needs three classes or more, .* has 1"),
        ("aaabbbc", {}, r"class 'c' has 1 patients \(a 3, b 3, c 1\)"),
        ("aaabbbccc", {"classes": ["a", "b", "d"]}, r"tasks.t.classes: .*'d'.* has \['a', 'b', 'c'\]: name each"),
        ("aaabbbccc", {"classes": ["a", "b"]}, r"tasks.t.classes"),
    ):
        with pytest.raises(sheet.SheetError, match=message):
            check(tmp_path, labelled(values), MULTI, **changes)


def test_regression_labels(tmp_path):
    check(tmp_path, labelled(["1.5", "-2", "1e3", "", "unknown"]), VALUE)
    for values, message in (
        (["1", "high"], r"slides.csv line 3: label 'high': regression task 't' needs numbers, with a point"),
        (["1", "inf"], r"line 3: label 'inf'"),
        (["2", "2.0"], r"column 'label' of slides.csv has one value only, '2'"),
    ):
        with pytest.raises(sheet.SheetError, match=message):
            check(tmp_path, labelled(values), VALUE)
    with pytest.raises(sheet.SheetError, match=r"line 2: label '0 5': regression task"):
        check(tmp_path, labelled(["0 5", "1"]), VALUE)
    with pytest.raises(sheet.SheetError, match=r"specimen 'G1' differ in label: '1' and '2'"):
        check(tmp_path, ["s0,a,A,,,,,1", "s1,a,A,G1,,,,1", "s2,a,B,G1,,,,2"], VALUE)


@pytest.mark.parametrize(
    ("cells", "message"),
    [("0,1", "months '0'"), ("x,1", "months 'x'"), ("12,2", "event '2'"), ("-3,0", "months '-3'"), ("inf,0", "'inf'")],
)
def test_survival_columns(tmp_path, cells, message):
    """Complaint G-H6."""
    check(tmp_path, ["s1,a,A,,,,,,12,1", "s2,a,A,,,,,,,"], SURVIVAL)
    with pytest.raises(sheet.SheetError, match=message):
        check(tmp_path, [f"s1,a,A,,,,,,{cells}"], SURVIVAL)


def test_a_patient_has_one_time_and_event(tmp_path):
    """Else curves, tests and the chance of censoring would count whichever scan comes first."""
    header = "scan,path,scanner,specimen,patient,months,event\n"
    settings = {"type": "survival", "loss": "cox", "time": "months", "event": "event"}

    def checked(*rows):
        read = table(tmp_path, [f"s{i},a,{row}" for i, row in enumerate(rows)], header)
        outcomes.check_tasks(read, {"t": settings}, "slides.csv")

    checked("A,G1,P1,30,1", "B,G1,P1,30.0,1", "A,G2,P1,30,1", "A,G3,P2,,", "B,G3,P2,12,0")
    for other in ("B,G1,P1,31,1", "B,G1,P1,30,0", "A,G2,P1,3,1"):
        with pytest.raises(sheet.SheetError, match=r"lines 2, 3: scans of patient 'P1' differ in months or event"):
            checked("A,G1,P1,30,1", other)


def test_classes_keep_the_order_that_is_asked_for(tmp_path):
    rows = table(tmp_path, labelled("cab"))
    assert outcomes.outcomes(rows, "t", MULTI)["label"].tolist() == ["2", "0", "1"]
    assert outcomes.outcomes(rows, "t", MULTI | {"classes": ["c", "b", "a"]})["label"].tolist() == ["0", "2", "1"]


def test_values_fall_into_quarters_of_the_specimens(tmp_path):
    rows = table(tmp_path, [f"s{i}{s},a,{s},s{i},,,,{i}" for i in range(8) for s in "AB"] + labelled([""]))
    found = outcomes.outcomes(rows, "t", VALUE)
    assert found["class"].tolist() == list(np.repeat(["Q1", "Q2", "Q3", "Q4"], 4))
    assert found["label"].tolist() == [str(i // 2) for i in range(16)]
    assert outcomes.outcomes(rows.iloc[-1:], "t", VALUE).empty


def test_events_are_the_classes_of_cox_and_hazard(tmp_path):
    rows = table(tmp_path, ["s1,a,A,,,,,,12,1", "s2,a,A,,,,,,30,0", "s3,a,A,,,,,,3,0"])
    for loss in ("cox", "hazard"):
        found = outcomes.outcomes(rows, "t", SURVIVAL | {"loss": loss})
        assert found["class"].tolist() == ["event", "censored", "censored"]
        assert found["label"].tolist() == ["1", "0", "0"]
    found = outcomes.outcomes(rows, "t", SURVIVAL)
    assert found["class"].tolist() == ["poor", "good", ""]
    assert found["label"].tolist() == ["1", "0", ""]


@pytest.mark.parametrize(
    ("kind", "trains", "rows", "enough"),
    [
        ("regression", True, [("Q1", "1", ""), ("Q1", "2", "")], True),
        ("regression", False, [("Q1", "1", ""), ("Q1", "1", "")], False),
        ("multiclass", False, [("a", "0", ""), ("b", "1", "")], False),
        ("multiclass", False, [("a", "0", ""), ("b", "1", ""), ("c", "2", "")], True),
        ("cox", True, [("event", "1", 1), ("event", "1", 1)], True),
        ("cox", True, [("event", "1", 1)], False),
        ("hazard", False, [("censored", "0", 0), ("censored", "0", 0)], False),
        ("classes", False, [("", "", 1), ("good", "0", 0)], True),
        ("classes", True, [("", "", 1), ("good", "0", 0)], False),
    ],
)
def test_what_a_part_of_a_fold_needs(kind, trains, rows, enough):
    part = pd.DataFrame(rows, columns=["class", "label", "event"])
    assert outcomes.enough(part, kind, trains, 3 if kind == "multiclass" else 2) is enough
