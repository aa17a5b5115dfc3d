from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from isoslide import demo, outcomes, sheet

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def patients() -> pd.DataFrame:
    return demo.patients()


@pytest.fixture(scope="module")
def scans(patients: pd.DataFrame) -> pd.DataFrame:
    return demo.sheet(patients)


def test_counts(patients: pd.DataFrame, scans: pd.DataFrame) -> None:
    assert len(patients) == 60
    assert patients["n_specimens"].value_counts().to_dict() == {1: 52, 2: 8}
    assert scans["specimen"].nunique() == 68
    assert len(scans) == 4 * 68
    assert scans["scan"].is_unique
    assert (scans.groupby("specimen")["scanner"].apply("".join) == "ABCD").all()
    assert list(dict.fromkeys(scans["specimen"])) == [specimen.name for specimen in demo.specimens(patients)]


def test_specimens_have_their_patients_share_and_few_have_ink(patients: pd.DataFrame) -> None:
    specimens = demo.specimens(patients)
    share = patients.set_index("patient")["share"]
    assert all(specimen.share == share[specimen.name[:3]] for specimen in specimens)
    assert sum(specimen.pen for specimen in specimens) == 3
    assert [specimen.index for specimen in specimens] == list(range(68))


def test_committed_sheet_is_what_the_code_writes_and_passes_the_checks(scans: pd.DataFrame) -> None:
    path = REPOSITORY / "config/slides.tsv"
    assert path.read_text() == scans.to_csv(sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    table = sheet.read(path)
    tasks = {
        "response": {"type": "binary", "label": "response", "positive": "positive"},
        "survival": {"type": "survival", "time": "months", "event": "event"},
    }
    outcomes.check_tasks(table, tasks, str(path))
    sheet.check_paths(table, str(path))


def test_split_column(scans: pd.DataFrame) -> None:
    split = scans.pivot(index="specimen", columns="scanner", values="split")
    assert set(scans["split"]) == {"", "test"}
    assert (split["D"] == "test").all()
    assert (split["B"] == "").all()
    assert ((split["A"] == "") != (split["C"] == "")).all()
    assert (scans.groupby(["patient", "scanner"])["split"].nunique() == 1).all()


@pytest.mark.parametrize(("response", "scanner"), [("positive", "A"), ("negative", "C")])
def test_confounding_of_response_and_scanner(patients: pd.DataFrame, response: str, scanner: str) -> None:
    group = patients[patients["response"] == response]
    assert len(group) == 30
    assert (group["train"] == scanner).sum() == round(0.85 * 30)


def test_survival_groups_are_large_enough(patients: pd.DataFrame) -> None:
    poor = (patients["event"] == 1) & (patients["months"] < 24)
    good = patients["months"] > 24
    assert poor.sum() >= 20
    assert good.sum() >= 20
    assert 0.2 < (patients["event"] == 0).mean() < 0.5
    assert patients["months"].between(0.1, demo.CENSORING_MONTHS[1]).all()


def test_share_drives_labels_as_strongly_as_stated() -> None:
    """The AUC and c-index of the true share that the module's comments give, over 40 cohorts."""
    cohorts = [demo.patients(seed=seed) for seed in range(100, 140)]
    auc = [roc_auc_score(table["response"] == "positive", table["share"]) for table in cohorts]
    c_index = [concordance_index(table["months"], -table["share"], table["event"]) for table in cohorts]
    assert np.mean(auc) == pytest.approx(0.91, abs=0.02)
    assert np.mean(c_index) == pytest.approx(0.82, abs=0.02)
    assert np.mean([(table["event"] == 0).mean() for table in cohorts]) == pytest.approx(0.34, abs=0.03)


def test_seed_decides() -> None:
    pd.testing.assert_frame_equal(demo.patients(10, seed=5), demo.patients(10, seed=5))
    assert not demo.patients(10, seed=5).equals(demo.patients(10, seed=6))


def test_second_specimens_are_proportional_in_small_cohorts() -> None:
    assert demo.patients(15)["n_specimens"].sum() == 17
