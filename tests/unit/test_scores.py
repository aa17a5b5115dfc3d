import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from lifelines.statistics import logrank_test
from sklearn.metrics import roc_auc_score

from isoslide import figures, score_figures, scores

RNG = np.random.default_rng(0)


def frame(n: int = 40, scanners: str = "AB", seeds: int = 2) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
        for i in range(n):
            for scanner in scanners:
                p = float(np.clip(0.3 + 0.4 * (i % 2) + RNG.normal(0, 0.25), 0, 1))
                rows.append((seed, i % 4 // 2, f"s{i}", f"p{i}", scanner, float(i % 2), 1.0 + i, float(i % 3 > 0), p))
    columns = ["seed", "fold", "specimen", "patient", "scanner", "label", "time", "event", "p"]
    return pd.DataFrame(rows, columns=columns)


def test_pairs_are_each_two_scans_of_a_specimen_once():
    table = pd.DataFrame(
        {"seed": 0, "fold": 0, "specimen": ["s", "s", "s", "t"], "scanner": list("CABA"), "p": [0.3, 0.1, 0.2, 0.9]}
    )
    pairs = scores.pairs(table)
    assert pairs["pair"].tolist() == ["A-B", "A-C", "B-C"]
    assert pairs[["first", "second"]].to_numpy().tolist() == [[0.1, 0.2], [0.1, 0.3], [0.2, 0.3]]


def test_limits_of_agreement_by_hand():
    both = pd.DataFrame(
        {"seed": 0, "specimen": ["s", "t", "u"], "pair": "A-B", "first": 0.5, "second": [0.5, 0.6, 0.7]}
    )
    rows = scores.limits_of_agreement(both).set_index("pair")
    assert rows.loc["A-B"].tolist() == pytest.approx([3, 0.1, 0.1 - 0.196, 0.1 + 0.196])
    assert rows.loc["all"].tolist() == pytest.approx(rows.loc["A-B"].tolist())
    again = pd.concat([both, both.assign(seed=1, second=both["second"] + 0.2)])
    assert scores.limits_of_agreement(again).set_index("pair").loc["A-B"].tolist() == pytest.approx(
        [3, 0.2, 0.2 - 0.196, 0.2 + 0.196]
    )


def test_the_area_under_the_mean_roc_is_the_mean_auc():
    table = frame(400)
    curve = scores.roc(table)
    aucs = [roc_auc_score(rows["label"], rows["p"]) for _, rows in table.groupby(["seed", "fold"])]
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(np.mean(aucs), abs=0.01)
    assert curve.iloc[0].tolist() == [0, 0]
    assert curve.iloc[-1].tolist() == [1, 1]
    assert scores.roc(table.assign(label=1.0)).empty


def test_calibration_bins_hold_all_scans_of_a_scanner():
    table = frame()
    rows = scores.calibration(table)
    assert rows.groupby("scanner")["n"].sum().tolist() == [80, 80]
    ours = rows[rows["scanner"] == "A"]
    assert np.average(ours["observed"], weights=ours["n"]) == pytest.approx(0.5)
    assert (ours["predicted"].diff().dropna() > 0).all()


def grouped(table: pd.DataFrame) -> pd.DataFrame:
    return scores.risk_groups(table.assign(threshold=0.5))


def test_survival_curves_count_each_patient_once_and_split_at_the_threshold():
    table = frame()
    rows = scores.survival_curves(grouped(table))
    sizes = rows.drop_duplicates(["scanner", "group"]).groupby("scanner")["n"].sum()
    assert sizes.tolist() == [40, 40]
    low = scores.survival_curves(grouped(table.assign(p=0.1)))
    assert set(low["group"]) == {scores.LOW}
    assert scores.survival_curves(grouped(table.assign(p=np.nan))).empty


def test_risk_groups_follow_each_models_own_threshold():
    table = pd.DataFrame({"scanner": "A", "patient": list("aabbc"), "seed": [0, 1, 0, 1, 0], "time": 1.0, "event": 1.0})
    table = table.assign(p=[0.3, 0.9, 0.3, 0.3, 0.2], threshold=[0.2, 0.8, 0.2, 0.8, np.nan])
    groups = scores.risk_groups(table).set_index("patient")["high"]
    assert groups.to_dict() == {"a": True, "b": False}  # b: 0.1 above one, 0.5 below the other; c's model has none


def test_log_rank_tests_by_scanner_equal_lifelines():
    patients = grouped(frame())
    rows = scores.survival_tests(patients).set_index("scanner")
    assert list(rows.index) == ["A", "B", scores.AGREED]
    for scanner in "AB":
        own = patients[patients["scanner"] == scanner]
        low, high = own[~own["high"]], own[own["high"]]
        expected = logrank_test(low["time"], high["time"], low["event"], high["event"]).p_value
        assert rows.loc[scanner, "p"] == pytest.approx(expected, rel=1e-9)
        assert rows.loc[scanner, "n_low"] + rows.loc[scanner, "n_high"] == 40
        assert rows.loc[scanner, "events_high"] == high["event"].sum()
    moved = patients.groupby("patient")["high"].nunique().eq(2).sum()
    assert moved > 0
    assert rows.loc[scores.AGREED, "reason"] == f"{moved} change groups between scanners"
    assert rows.loc[scores.AGREED, "n_low"] + rows.loc[scores.AGREED, "n_high"] == 40 - moved
    alone = scores.survival_tests(patients.assign(high=False)).set_index("scanner")
    assert alone["reason"].tolist() == ["only one risk group"] * 3
    assert alone["p"].isna().all()


@pytest.mark.parametrize("empty", [False, True])
def test_figures_are_sound_and_the_same_each_time(empty):
    table = frame().assign(p=np.nan) if empty else frame()
    both = scores.pairs(table.iloc[:0] if empty else table)
    limits = scores.limits_of_agreement(both)
    curve = scores.roc(table.assign(label=1.0) if empty else table).assign(arm="paired")
    curves = scores.survival_curves(grouped(table))
    drawn = {
        "scatter": lambda: score_figures.scatter(both, "t"),
        "difference": lambda: score_figures.bland_altman(both, limits, "t"),
        "roc": lambda: score_figures.roc(curve, ["paired"], "paired", "t"),
        "calibration": lambda: score_figures.calibration(scores.calibration(table), "t"),
        "survival": lambda: score_figures.survival(curves.assign(p=0.01), "t", "months"),
    }
    for name, make in drawn.items():
        svg = figures.to_svg(make(), name)
        assert ET.fromstring(svg).tag.endswith("svg")
        assert svg == figures.to_svg(make(), name)
        assert figures.to_pdf(make()) == figures.to_pdf(make())
        assert make().get_figwidth() <= 5


def test_many_marks_are_thinned():
    both = pd.concat([scores.pairs(frame(400))] * 3)
    svg = figures.to_svg(score_figures.scatter(both, "t"), "t")
    assert svg.count("<use") < score_figures.MAX_MARKS + 100
