import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_curve

from isoslide import metrics, thresholds
from isoslide.metrics import Undefined


def test_youden_by_hand():
    # Between 0.3 and 0.7 both classes are apart.
    assert thresholds.youden([0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9]) == (0.5, 1.0)
    # Cuts 0.15, 0.25, 0.35: J = 0.5, 0, 0.5; 0.35 is nearer to 0.5.
    assert thresholds.youden([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]) == pytest.approx((0.35, 0.5))
    # Equally far from 0.5: the lower.
    assert thresholds.youden([0, 1, 0, 1], [0.3, 0.4, 0.6, 0.7]) == pytest.approx((0.35, 0.5))


@pytest.mark.parametrize("seed", range(5))
def test_youden_is_the_best_of_the_roc_curve(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 60)
    p = np.round(np.clip(0.3 * y + rng.uniform(0, 0.8, 60), 0, 1), 2)  # rounded: ties
    cut, j = thresholds.youden(y, p)
    fpr, tpr, _ = roc_curve(y, p)
    assert j == pytest.approx((tpr - fpr)[1:-1].max())
    assert metrics.balanced_accuracy(y, p, cut) == pytest.approx((1 + j) / 2)
    assert balanced_accuracy_score(y, p >= cut) == pytest.approx((1 + j) / 2)
    order = rng.permutation(60)
    assert thresholds.youden(y[order], p[order]) == (cut, j)


def test_a_model_worse_than_chance_still_has_a_threshold_between_its_scores():
    cut, j = thresholds.youden([1, 1, 0, 0], [0.1, 0.2, 0.6, 0.8])
    assert 0.1 < cut < 0.8
    assert j == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("y", "p", "reason"),
    [
        ([1, 1], [0.2, 0.3], "tuning scans of one class"),
        ([0, 1], [0.3, 0.3], "all tuning scores are equal"),
        ([0, 1], [0.3, np.nan], "non-finite tuning scores"),
    ],
)
def test_no_threshold_is_said(y, p, reason):
    with pytest.raises(Undefined, match=reason):
        thresholds.youden(y, p)


def test_the_median_is_over_patients_not_scans():
    assert thresholds.median_risk(["a", "a", "a", "b", "c"], [0.1, 0.1, 0.4, 0.5, 0.9]) == 0.5
    assert thresholds.median_risk(["a", "a", "b"], [0.1, 0.3, 0.6]) == pytest.approx(0.4)


def test_each_model_has_its_own():
    tuning = pd.DataFrame(
        {"fold": [0, 0, 1, 1], "seed": 3, "patient": list("abab"), "label": [0.0, 1, 1, 1], "p": [0.1, 0.3, 0.2, 0.4]}
    )
    table = thresholds.choose({"robust": tuning}, "binary")
    assert list(table) == thresholds.COLUMNS
    assert table["threshold"].tolist()[0] == pytest.approx(0.2)
    assert table["reason"].tolist() == ["", "tuning scans of one class"]
    assert thresholds.by_model(table, "robust")[3, 1][1] == "tuning scans of one class"
    assert thresholds.by_model(table, "absent") == {}
    frame = thresholds.attach(tuning, table, "robust")
    assert frame["threshold"].isna().tolist() == [False, False, True, True]
    risks = thresholds.choose({"robust": tuning}, "survival")
    assert risks["rule"].unique().tolist() == ["median_risk"]
    assert risks["threshold"].tolist() == pytest.approx([0.2, 0.3])
    assert thresholds.choose({"robust": tuning}, "regression").empty


def test_no_thresholds_at_all_are_attached_as_missing_numbers():
    """As read from a table without rows: no tuning scan was scored."""
    empty = pd.DataFrame(columns=thresholds.COLUMNS, dtype=object)
    frame = thresholds.attach(pd.DataFrame({"fold": [0], "seed": [1]}), empty, "robust")
    assert frame["threshold"].dtype == float
    assert frame["threshold"].isna().all()
