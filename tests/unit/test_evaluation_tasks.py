"""The evaluation of multiclass, regression and Cox predictions: every number by pandas and the plain metrics."""

import itertools

import fake_results
import numpy as np
import pandas as pd
import pytest

from isoslide import evaluation, metrics, task_metrics
from isoslide.metrics import Undefined

SETTINGS = {"resamples": 30, "seed": 1, "level": 0.95}
NAMES = ("low", "middle", "high")
CLASSES = ["p_0", "p_1", "p_2"]


def predictions(arm, kind, patients=60):
    table = fake_results.make_predictions(fake_results.make_splits(fake_results.make_sheet(patients), kind), arm, kind)
    numbers = ("label", "time", "event")
    table = table[(table["role"] == "test") & (table["seed"] < 3)].assign(is_unseen=lambda rows: rows["scanner"] == "D")
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in numbers})


def evaluated(kind):
    frames = {arm: predictions(arm, kind) for arm in ("paired", "robust")}
    settings_type = "survival" if kind == "cox" else kind
    classes = NAMES if kind == "multiclass" else ()
    return frames["robust"], *evaluation.evaluate(frames, "paired", settings_type, SETTINGS, classes=classes)[:2]


@pytest.fixture(scope="module")
def multiclass():
    return evaluated("multiclass")


@pytest.fixture(scope="module")
def regression():
    return evaluated("regression")


def value(table, metric, scope="pooled"):
    rows = table[(table["arm"] == "robust") & (table["metric"] == metric) & (table["scope"] == scope)]
    return rows.set_index("seed").loc["mean"]


def averaged(frame, function):
    """Mean over seeds of the mean over folds of (value, weight) of each model; models without a value left out."""
    seeds = []
    for _, seed in frame.groupby("seed"):
        folds = []
        for _, rows in seed.groupby("fold"):
            try:
                folds.append(function(rows))
            except Undefined:
                continue
        seeds.append(np.average([v for v, _ in folds], weights=[w for _, w in folds]))
    return pytest.approx(np.mean(seeds), abs=1e-12)


def whole(frame):
    """Rows of the specimens that have all four scanners."""
    return frame[frame.groupby(["seed", "specimen"])["scanner"].transform("nunique") == 4]


def wide(rows, first, second, columns):
    """Scores of the specimens on both scanners: two arrays."""
    both = rows[rows["scanner"] == first].merge(rows[rows["scanner"] == second], on="specimen", suffixes=("", "_b"))
    return both[columns].to_numpy(), both[[f"{name}_b" for name in columns]].to_numpy()


def test_accuracy_of_several_classes(multiclass):
    frame, table, _ = multiclass

    def macro(rows):
        y = rows["label"]
        pairs = np.mean([(y == c).sum() * (y != c).sum() for c in range(3)])
        return task_metrics.macro_auc(y, rows[CLASSES]), pairs

    assert value(table, "macro_auc")["value"] == averaged(frame, macro)
    assert value(table, "macro_auc", "scanner:A")["value"] == averaged(frame[frame["scanner"] == "A"], macro)
    assert value(table, "macro_auc", "unseen")["value"] == averaged(frame[frame["scanner"] == "D"], macro)
    for name in ("class_balanced_accuracy", "multiclass_brier"):
        plain = getattr(task_metrics, name)
        expected = averaged(frame, lambda rows, plain=plain: (plain(rows["label"], rows[CLASSES]), len(rows)))
        assert value(table, name)["value"] == expected
    row = value(table, "macro_auc")
    assert row["low"] < row["value"] < row["high"]


def test_each_class_against_the_others(multiclass):
    frame, table, _ = multiclass
    for index, name in enumerate(NAMES):

        def one(rows, index=index):
            y = rows["label"] == index
            return metrics.auc(y, rows[f"p_{index}"]), y.sum() * (~y).sum()

        assert value(table, "auc", f"class:{name}")["value"] == averaged(frame, one)
    assert set(table.loc[table["scope"] == "class:low", "metric"]) == {"auc", "average_precision", "inconsistency"}


def test_consistency_of_several_classes_is_the_mean_over_them(multiclass):
    frame, table, _ = multiclass

    def inconsistency(rows):
        each = [metrics.inconsistency(rows[name], rows["specimen"]) for name in CLASSES]
        return np.mean(each), rows["specimen"].nunique()

    assert value(table, "inconsistency")["value"] == averaged(whole(frame), inconsistency)

    def rmse(rows):
        a, b = wide(rows, "A", "D", CLASSES)
        return np.mean([metrics.rmse(a[:, c], b[:, c]) for c in range(3)]), len(a)

    assert value(table, "rmse", "pair:A-D")["value"] == averaged(frame, rmse)

    def icc(rows):
        wides = [rows.pivot(index="specimen", columns="scanner", values=name).dropna() for name in CLASSES]
        return np.mean([metrics.icc21(w) for w in wides]), len(wides[0])

    assert value(table, "icc")["value"] == averaged(frame, icc)


def test_predicted_classes_of_two_scans(multiclass):
    frame, table, _ = multiclass
    for name in ("class_agreement", "class_kappa"):
        plain = getattr(task_metrics, name)

        def decided(rows, plain=plain):
            a, b = wide(rows, "A", "B", CLASSES)
            return plain(a.argmax(1), b.argmax(1)), len(a)

        assert value(table, name, "pair:A-B")["value"] == averaged(frame, decided)
    assert not set(table["metric"]) & {"agreement", "kappa", "brier", "c_index", "r2"}


def test_regression_by_pandas(regression):
    frame, table, comparisons = regression
    for name in ("r2", "mae", "prediction_rmse", "pearson", "spearman"):
        plain = getattr(task_metrics, name)
        expected = averaged(frame, lambda rows, plain=plain: (plain(rows["label"], rows["p"]), len(rows)))
        assert value(table, name)["value"] == expected
    a, b = (averaged_pair(frame, metrics.lin_ccc, *pair) for pair in (("A", "B"), ("C", "D")))
    assert value(table, "ccc", "pair:A-B")["value"] == a
    assert value(table, "ccc", "pair:C-D")["value"] == b
    assert not set(table["metric"]) & {"auc", "agreement", "kappa", "calibration_error"}
    row = comparisons[(comparisons["metric"] == "r2") & (comparisons["scope"] == "pooled")].iloc[0]
    assert np.isfinite(row[["difference", "low", "high", "p"]].astype(float)).all()


def averaged_pair(frame, plain, first, second):
    def function(rows):
        a, b = wide(rows, first, second, ["p"])
        return plain(a[:, 0], b[:, 0]), len(a)

    return averaged(frame, function)


def test_a_resample_draws_patients_of_a_regression_without_strata(regression):
    frame, table, _ = regression
    strata = evaluation.patient_table({"robust": frame}, "regression")
    assert set(strata) == {0}
    row = value(table, "r2")
    assert row["low"] < row["value"] < row["high"]


def test_cox_is_evaluated_as_survival():
    _, table, comparisons = evaluated("cox")
    assert {"c_index", "uno_c", "inconsistency"} <= set(table["metric"])
    assert np.isfinite(value(table, "c_index")["value"])
    assert "label" not in set(comparisons["metric"])


def test_the_gap_between_scanners_is_of_scanners_only(multiclass):
    _, table, _ = multiclass
    values = [value(table, "macro_auc", f"scanner:{name}")["value"] for name in "ABCD"]
    gap = value(table, "macro_auc_gap")["value"]
    assert gap >= 0
    assert gap >= np.ptp(values) - 1e-12  # the mean over seeds of the gaps is at least the gap of the means


def test_class_names_come_in_the_order_of_their_index():
    splits = pd.DataFrame(list(itertools.product(["0", "2", "1", "10", ""], [0, 1])), columns=["label", "fold"])
    splits["class"] = splits["label"].map({"0": "z", "1": "y", "2": "x", "10": "a", "": ""})
    assert evaluation.class_names(splits, "multiclass") == ("z", "y", "x", "a")
    assert evaluation.class_names(splits, "binary") == ()


def test_an_arm_without_any_prediction_of_classes():
    """Its table has no columns of classes, as predict_scans.py writes it then."""
    frame = predictions("paired", "multiclass")
    dead = frame.iloc[:0].drop(columns=CLASSES)
    table, comparisons, _ = evaluation.evaluate(
        {"paired": frame, "dead": dead}, "paired", "multiclass", SETTINGS, classes=NAMES
    )
    assert (table.loc[(table["arm"] == "dead") & (table["scope"] == "class:low"), "reason"] != "").all()
    assert comparisons["difference"].isna().all()
