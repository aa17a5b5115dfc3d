import fake_results
import pandas as pd
import pytest

from isoslide import cohort, metrics, outcomes

SHEET = fake_results.make_sheet()
STAGES = {name: table.astype(str) for name, table in fake_results.make_status(SHEET).items()}


def test_scans_are_conserved_from_the_sheet_to_what_is_left():
    lost, listed = cohort.losses(SHEET, STAGES)
    lost = lost.set_index("stage")
    assert lost.loc["in the sheet", "all"] == len(SHEET)
    steps = [name for name in lost.index if name.startswith(("excluded", "lost"))]
    for column in (*"ABCD", "all"):
        assert lost.loc["in the sheet", column] - lost.loc[steps, column].sum() == lost.loc["left", column]
    assert lost.loc[steps, "all"].tolist() == [1, 1, 1, 0, 0, 1]
    # Carried through later stages, a scan is counted once, at the stage that lost it.
    assert listed["scan"].tolist()[:3] == ["P07-1_A", "P03-1_B", "P11-1_C"]
    assert (listed["reason"] != "").all()


def test_scans_that_were_not_registered_are_listed_but_not_lost():
    lost, listed = cohort.losses(SHEET, {"registrations": STAGES["registrations"]})
    assert sorted(listed.loc[listed["status"] == "not_registered", "scan"]) == ["P05-1_C", "P31-1_D"]
    assert lost.set_index("stage").loc["lost at registrations", "all"] == 2  # the unreadable and the empty one


def test_association_is_that_of_the_scans_in_training():
    splits = fake_results.make_splits(SHEET, "binary").astype(str)
    found = {row["with"]: row for row in cohort.association(splits, SHEET)}
    used = SHEET[(SHEET["split"] != "test") & (SHEET["exclude"] == "")]
    assert found["scanner"]["value"] == pytest.approx(metrics.cramers_v(used["response"], used["scanner"]))
    assert set(found) == {"scanner"}
    assert cohort.association(splits, SHEET.assign(site="north"))[1]["reason"] == "only one category"
    counts = cohort.training_counts(splits, "binary")
    assert counts["scans"].sum() == len(used)
    assert "D" not in set(counts["scanner"])


def test_training_counts_name_scans_without_a_class():
    splits = fake_results.make_splits(SHEET, "survival").astype(str)
    assert set(cohort.training_counts(splits, "survival")["class"]) == {"good", "poor", "no class"}


def test_counts_by_scanner():
    counts = cohort.by_scanner(SHEET).set_index("scanner")
    assert counts.loc["all"].tolist() == [60, 70, 280, 1]
    assert counts.loc["D", "scans"] == 70


def test_scans_without_a_pair_are_counted_by_scanner():
    counts = cohort.unpaired(STAGES["registrations"])
    refused = STAGES["registrations"].query("status == 'not_registered'")["scanner"].value_counts()
    assert counts["refused"].sum() == refused.sum() > 0
    for row in counts.itertuples():
        own = STAGES["registrations"].query("scanner == @row.scanner")["status"]
        assert (row.registered, row.refused) == ((own == "ok").sum(), (own == "not_registered").sum())


def test_registration_errors_leave_out_the_reference():
    errors = cohort.registration_errors(STAGES["registrations"])
    assert "B" not in set(errors["scanner"])
    assert errors["error_um"].max() == 7.9
    chosen = cohort.examples(errors)
    assert len(chosen) == 6
    assert {name for name, _ in chosen[:2]} == {"P05-1", "P31-1"}
    assert cohort.examples(errors.iloc[:1]) == [(errors["specimen"].iloc[0], errors["error_um"].iloc[0])]
    assert cohort.examples(pd.DataFrame({"specimen": [], "error_um": []})) == []


def test_scans_without_outcome_are_counted():
    splits = fake_results.make_splits(SHEET, "binary").astype(str)
    assert outcomes.without_outcome(splits, SHEET) == ""
    lost = splits[(splits["patient"] != "P01") & (splits["scan"] != "P02-1_A")]
    used = (SHEET["exclude"] == "").sum()
    expected = f"5 of {used} scans have no outcome (A 2, B 1, C 1, D 1), 1 patients none at all"
    assert outcomes.without_outcome(lost, SHEET) == expected
