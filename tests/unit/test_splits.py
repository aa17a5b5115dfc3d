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


def test_overlap_is_caught_and_named():
    result = make(cohort())
    row = np.flatnonzero(result["role"] == "test")[0]
    result.loc[row, "role"] = "train"
    with pytest.raises(splits.SplitError, match=f"1 patients stand in train and in test: '{result['patient'][row]}'"):
        splits.check(result, "t", "binary")


def test_repeats_keep_the_first_draw_and_test_every_patient_once_each():
    table = cohort()
    one, three = make(table), make(table, repeats=3)
    pd.testing.assert_frame_equal(three[three["fold"] < 5].reset_index(drop=True), one)
    assert sorted(three["fold"].unique()) == list(range(15))
    tested = three[three["role"] == "test"].drop_duplicates(["fold", "patient"])
    counts = tested.groupby([tested["fold"] // 5, "patient"]).size()
    assert (counts == 1).all()
    assert len(counts) == 3 * 40
    assert tested[tested["fold"] == 0]["patient"].tolist() != tested[tested["fold"] == 5]["patient"].tolist()


def sites(table, n):
    return table.assign(site=[f"H{int(patient[1:]) * 11 % n}" for patient in table["patient"]])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "folds"), [(3, 3), (12, 5), (7, 4)])
def test_sites_stay_whole(seed, n, folds):
    """Whatever the draw: a site is tested in one fold, in no other part of it, and every fold tests one."""
    rng = np.random.default_rng(seed)
    table = cohort(n=60, positives=30)
    table["response"] = table["patient"].map(
        dict(zip(table["patient"].unique(), rng.permutation(["positive", "negative"] * 30), strict=True))
    )
    table = sites(table, n)
    result = make(table, by="site", folds=folds, seed=seed)
    site = result["scan"].map(table.set_index("scan")["site"])
    for _, rows in result.assign(site=site).groupby("fold"):
        tested = rows["role"] == "test"
        assert tested.any()
        assert not set(rows.loc[tested, "site"]) & set(rows.loc[~tested, "site"])
    assert result[result["role"] == "test"].drop_duplicates(["fold", "patient"])["patient"].value_counts().eq(1).all()
    proof = splits.proof(result, table.set_index("scan")["site"])
    assert (proof.loc[proof["role"] == "test", "shared_sites"] == 0).all()
    assert (proof["shared_patients"] == 0).all()


def test_sites_are_dealt_evenly():
    """Twelve sites of five patients, four folds: three sites each is the even deal."""
    result = make(sites(cohort(n=60, positives=20), 12), by="site", folds=4)
    tested = result[result["role"] == "test"].drop_duplicates(["fold", "patient"])
    assert tested["fold"].value_counts().tolist() == [15] * 4
    assert tested[tested["class"] == "positive"].groupby("fold").size().between(3, 6).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: sites(t, 3), "3 sites cannot fill 5 folds"),
        (
            lambda t: sites(t, 8).assign(site=lambda s: s["site"].where(s["scan"] != "P03-0_A", "")),
            "none for scan 'P03-0_A'",
        ),
        (
            lambda t: sites(t, 8).assign(site=lambda s: s["site"].where(s["scan"] != "P03-0_A", "H9")),
            "patient 'P03' has",
        ),
    ],
)
def test_sites_that_cannot_be_dealt_are_refused(change, message):
    with pytest.raises(splits.SplitError, match=message):
        make(change(cohort()), by="site")


@pytest.mark.parametrize("seed", range(5))
def test_one_scanner_is_left_out_of_each_fold(seed):
    """By scanner: it neither trains nor tunes, the tested patients are seen on all scanners, each patient once."""
    table = cohort(n=48, scanners="ABCX", site="")
    table.loc[table["scanner"] == "X", "split"] = "test"
    result = make(table, by="scanner", seed=seed, repeats=3)
    assert sorted(result["fold"].unique()) == list(range(9))
    proof = splits.proof(result, {})
    left_out = proof[proof["role"] == "test"].sort_values("fold")["held_out"].tolist()
    assert left_out == [f"{name}, X" for name in "ABCBCACAB"]
    for fold, rows in result.groupby("fold"):
        fitted = rows[rows["role"].isin(("train", "tune"))]
        assert set(fitted["scanner"]) == set("ABC") - {left_out[fold][0]}
        assert rows[rows["role"] == "test"].groupby("patient")["scanner"].nunique().eq(4).all()
    tested = result[result["role"] == "test"].drop_duplicates(["fold", "patient"])
    assert tested["patient"].value_counts().eq(3).all()


def test_one_scanner_cannot_be_left_out():
    with pytest.raises(splits.SplitError, match="only 'A' may train"):
        make(cohort(scanners="A"), by="scanner")


def test_proof_by_hand():
    table = cohort(n=6, positives=3, site="H")
    table["split"] = [
        ["train", "train", "tune", "tune", "test", "test"][[0, 3, 1, 4, 2, 5].index(int(p[1:]))]
        for p in table["patient"]
    ]
    rows = splits.proof(make(table), table.set_index("scan")["site"]).set_index("role")
    assert rows.loc["train"].to_dict() == {
        "fold": 0,
        "patients": 2,
        "specimens": 2,
        "scans": 4,
        "events": 0,
        "classes": "negative 1, positive 1",
        "scanners": "A 2, B 2",
        "held_out": "",
        "shared_patients": 0,
        "shared_specimens": 0,
        "shared_sites": 1,
    }
    moved = make(table).assign(patient="P0")
    assert splits.proof(moved, {})["shared_patients"].tolist() == [1, 1, 1]


def test_a_patient_with_both_classes_counts_in_both():
    """Tumour and normal tissue of the same patients: no class is missing, whichever specimen comes first."""
    table = cohort(n=20, specimens=2)
    table["response"] = np.where(table["specimen"].str.endswith("-1"), "positive", "negative")
    result = make(table)
    proof = splits.proof(result, {})
    assert proof["classes"].eq([f"negative {n}, positive {n}" for n in proof["patients"]]).all()


def test_the_highest_of_several_values_is_the_largest_number():
    table = cohort(n=1, specimens=2).assign(site="")
    table["response"] = ["9", "9", "100", "100"]
    rows = splits.with_outcome(table, "t", {"type": "regression", "label": "response"})
    assert splits.patient_table(rows, "t")["stratum"].tolist() == rows.loc[rows["label"] == "100", "class"].unique()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("by", ["patient", "site", "scanner"])
def test_no_patient_is_ever_in_two_parts_of_a_fold(seed, by):
    """Cohorts of any shape, with marks in the column split: overlap is never there, and nobody is lost."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(60, 90))
    table = cohort(n=n, positives=n // 2, scanners="ABC", specimens=int(rng.integers(1, 3)))
    marks = dict(zip(table["patient"].unique(), rng.choice(["", "", "", "train", "test"], n), strict=True))
    table["split"] = table["patient"].map(marks)
    table.loc[rng.random(len(table)) < 0.1, "split"] = "test"
    table = sites(table, 9)
    result = make(table, by=by, folds=3, repeats=2, seed=seed)
    proof = splits.proof(result, {})
    assert (proof[["shared_patients", "shared_specimens"]] == 0).all(axis=None)
    assert result.groupby("fold")["scan"].apply(set).map(lambda scans: scans == set(table["scan"])).all()
    never = result[result["scan"].isin(table.loc[table["split"] == "test", "scan"])]
    assert set(never["role"]) <= {"test", "unused"}


def test_three_classes():
    table = cohort(n=45)
    table["response"] = ["abc"[int(patient[1:]) % 3] for patient in table["patient"]]
    result = make(table, {"type": "multiclass", "label": "response"})
    assert set(result["label"]) == {"0", "1", "2"}
