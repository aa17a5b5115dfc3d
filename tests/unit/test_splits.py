import numpy as np
import pandas as pd
import pytest

from isoslide import outcomes, sheet, splits

BINARY = {"type": "binary", "label": "response", "positive": "positive"}
SURVIVAL = {"type": "survival", "time": "months", "event": "event", "poor_before": 24, "good_after": 24}
SETTINGS = {"folds": 5, "tune": 0.2, "seed": 1}


def cohort(n=40, positives=16, scanners="AB", specimens=1, **columns):
    """A sheet of n patients, the first of them positive, one row per specimen and scanner."""
    rows = [
        {
            "scan": f"P{i:02d}-{j}_{scanner}",
            "scanner": scanner,
            "specimen": f"P{i:02d}-{j}",
            "patient": f"P{i:02d}",
            "split": "",
            "exclude": "",
            "response": "positive" if i < positives else "negative",
            "months": str(10 + i),
            "event": "1" if i < positives else "0",
        }
        for i in range(n)
        for j in range(specimens)
        for scanner in scanners
    ]
    return pd.DataFrame(rows).assign(**columns)


def make(table, settings=BINARY, **changes):
    return splits.make(table, "t", settings, SETTINGS | changes)


def test_each_patient_is_tested_once_and_never_crosses():
    result = make(cohort(specimens=2))
    assert list(result.columns) == list(splits.COLUMNS)
    assert len(result) == 5 * 160
    tested = result[result["role"] == "test"].drop_duplicates(["fold", "patient"])
    assert tested["patient"].value_counts().tolist() == [1] * 40
    for _, rows in result.groupby(["fold", "patient"]):
        assert rows["role"].nunique() == 1
    assert (result["role"] != "unused").all()


def test_strata_and_sizes_are_even():
    result = make(cohort(n=41, positives=17)).drop_duplicates(["fold", "patient"])
    for _, rows in result.groupby("fold"):
        test, tune = (rows[rows["role"] == role] for role in ("test", "tune"))
        assert len(test) in (8, 9)
        assert (test["class"] == "positive").sum() in (3, 4)
        assert len(tune) in (6, 7)
        assert (tune["class"] == "positive").sum() in (2, 3)


def test_positive_is_class_one_even_when_it_sorts_first():
    table = cohort()
    table["response"] = table["response"].map({"positive": "a", "negative": "b"})
    result = make(table, BINARY | {"positive": "a"})
    assert set(zip(result["class"], result["label"], strict=True)) == {("a", "1"), ("b", "0")}
    with pytest.raises(sheet.SheetError, match="'yes'"):
        make(table, BINARY | {"positive": "yes"})


def test_the_seed_decides():
    table = cohort()
    pd.testing.assert_frame_equal(make(table), make(table.sample(frac=1, random_state=0)))
    assert not make(table).equals(make(table, seed=2))


def test_test_only_scans_are_tested_with_their_patient_and_unused_otherwise():
    table = cohort(scanners="ABD")
    table.loc[table["scanner"] == "D", "split"] = "test"
    result = make(table)
    d = result[result["scanner"] == "D"]
    assert set(d["role"]) == {"test", "unused"}
    for _, rows in result.groupby(["fold", "patient"]):
        seen = dict(zip(rows["scanner"], rows["role"], strict=True))
        assert seen["D"] == ("test" if seen["A"] == "test" else "unused")


def test_patients_given_a_part_keep_it():
    table = cohort()
    part = {"P00": "test", "P39": "test", "P01": "train", "P38": "train"}
    table["split"] = table["patient"].map(part).fillna("")
    result = make(table)
    assert set(result.loc[result["patient"].isin(("P00", "P39")), "role"]) == {"test"}
    assert "test" not in set(result.loc[result["patient"].isin(("P01", "P38")), "role"])
    table["split"] = ["tune" if i % 3 == 0 else split for i, split in zip(range(80), table["split"], strict=True)]
    with pytest.raises(splits.SplitError, match="marked train and scans marked tune"):
        make(table)


def test_named_tuning_patients_are_the_only_ones():
    table = cohort()
    named = {f"P{i:02d}" for i in (0, 1, 20, 21)}
    table["split"] = ["tune" if patient in named else "" for patient in table["patient"]]
    result = make(table)
    for _, rows in result.groupby("fold"):
        assert set(rows.loc[rows["role"] == "tune", "patient"]) == named


def test_a_fixed_division_gives_one_fold():
    table = cohort()
    table["split"] = [("train", "tune", "test")[int(patient[1:]) % 3] for patient in table["patient"]]
    result = make(table)
    assert set(result["fold"]) == {0}
    assert (result["role"].to_numpy() == table.sort_values("scan")["split"].to_numpy()).all()


def test_excluded_and_unlabelled_scans_are_absent():
    table = cohort()
    table.loc[table["patient"] == "P03", "response"] = "NA"
    table.loc[table["patient"] == "P04", "exclude"] = "wrong stain"
    assert not {"P03", "P04"} & set(make(table)["patient"])


def test_survival_classes_by_hand():
    table = cohort(n=6, scanners="A")
    table["months"] = ["23.9", "24", "30", "24.1", "10", ""]
    table["event"] = ["1", "1", "1", "0", "0", "1"]
    rows = outcomes.outcomes(table, "t", SURVIVAL)
    assert rows["class"].tolist() == ["poor", "", "good", "good", ""]
    assert rows["label"].tolist() == ["1", "", "0", "0", ""]


def test_survival_without_class_is_tested_but_not_trained():
    table = cohort(n=50, positives=25)
    table["months"] = [str(5 + 1.0 * (int(p[1:]) % 25) * 2) for p in table["patient"]]
    result = make(table, SURVIVAL)
    unknown = result[result["class"] == ""]
    assert set(unknown["role"]) == {"test", "tune", "unused"}
    tested = result[result["role"] == "test"].drop_duplicates(["fold", "patient"])
    assert tested["patient"].nunique() == 50
    assert result["event"].isin((0, 1)).all()


@pytest.mark.parametrize(
    ("n", "positives", "message"),
    [(40, 1, "fold 0"), (6, 3, "fold"), (40, 40, "two classes")],
)
def test_too_few_are_refused_with_the_counts(n, positives, message):
    with pytest.raises((splits.SplitError, sheet.SheetError), match=message) as error:
        make(cohort(n=n, positives=positives))
    assert "\n" not in str(error.value)


def test_no_events_are_refused():
    table = cohort(event="0", months="30")
    with pytest.raises(splits.SplitError, match="0 with an event"):
        make(table, SURVIVAL)
    with pytest.raises(splits.SplitError, match="no scan of the sheet has an outcome"):
        make(cohort(months=""), SURVIVAL)


def test_overlap_is_caught():
    result = make(cohort())
    result.loc[np.flatnonzero(result["role"] == "test")[0], "role"] = "train"
    with pytest.raises(AssertionError, match="patients in train and test"):
        splits.check(result, "t", "binary")


def test_three_classes():
    table = cohort(n=45)
    table["response"] = ["abc"[int(patient[1:]) % 3] for patient in table["patient"]]
    result = make(table, {"type": "multiclass", "label": "response"})
    assert set(result["label"]) == {"0", "1", "2"}
