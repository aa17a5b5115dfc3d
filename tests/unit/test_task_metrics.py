"""Multiclass and regression metrics against scikit-learn, scipy and by hand; and their twins under weights."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from isoslide import task_metrics, task_weighted
from isoslide.metrics import Undefined


def classes(n=60, c=3, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    p = rng.dirichlet(np.ones(c), n) + 0.5 * np.eye(c)[y]
    p = np.round(p, 1) + 0.01 if ties else p
    return y, p / p.sum(1, keepdims=True)


def values(n=40, seed=0):
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(20, 5, n))
    return y, np.round(y + rng.normal(1, 3, n), 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("c", [3, 5])
def test_multiclass_is_scikit_learn(c, seed):
    y, p = classes(c=c, seed=seed)
    one_hot = np.eye(c)[y]
    assert task_metrics.macro_auc(y, p) == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert task_metrics.macro_average_precision(y, p) == pytest.approx(sk.average_precision_score(one_hot, p))
    assert task_metrics.class_balanced_accuracy(y, p) == pytest.approx(sk.balanced_accuracy_score(y, p.argmax(1)))
    assert task_metrics.multiclass_brier(y, p) == pytest.approx(
        sum(sk.brier_score_loss(one_hot[:, k], p[:, k]) for k in range(c))
    )
    other = np.roll(p, 1, axis=0).argmax(1)
    assert task_metrics.class_kappa(p.argmax(1), other) == pytest.approx(sk.cohen_kappa_score(p.argmax(1), other))
    assert task_metrics.class_agreement(p.argmax(1), other) == np.mean(p.argmax(1) == other)


@pytest.mark.parametrize("seed", range(3))
def test_regression_is_scikit_learn_and_scipy(seed):
    y, p = values(seed=seed)
    assert task_metrics.r2(y, p) == pytest.approx(sk.r2_score(y, p))
    assert task_metrics.mae(y, p) == pytest.approx(sk.mean_absolute_error(y, p))
    assert task_metrics.prediction_rmse(y, p) == pytest.approx(sk.root_mean_squared_error(y, p))
    assert task_metrics.pearson(y, p) == pytest.approx(stats.pearsonr(y, p).statistic)
    assert task_metrics.spearman(y, p) == pytest.approx(stats.spearmanr(y, p).statistic)


def test_by_hand():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.5, 0.3, 0.2]])
    y = [0, 1, 2, 2]
    # Class 0: 0.6 above all; class 1: 0.5 above all; class 2: of 0.4 and 0.2 against 0.1 and 0.3 one of four is wrong.
    assert task_metrics.macro_auc(y, p) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert task_metrics.class_balanced_accuracy(y, p) == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert task_metrics.multiclass_brier(y[:1], p[:1]) == pytest.approx(0.4**2 + 0.3**2 + 0.1**2)
    assert task_metrics.class_kappa([0, 1, 2, 2], [0, 1, 2, 0]) == pytest.approx((3 / 4 - 5 / 16) / (11 / 16))
    assert task_metrics.r2([1, 2, 3], [2, 3, 4]) == pytest.approx(1 - 3 / 2)  # a shift counts, as in no correlation
    assert task_metrics.pearson([1, 2, 3], [2, 3, 4]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("metric", "arguments", "reason"),
    [
        ("macro_auc", ([0, 0, 1], np.full((3, 3), 1 / 3)), "no scan of class 2"),
        ("class_balanced_accuracy", ([2, 2], np.full((2, 3), 1 / 3)), "no scan of class 0"),
        ("macro_auc", ([], np.zeros((0, 3))), "no scans"),
        ("multiclass_brier", ([0], [[np.nan, 0, 0]]), "non-finite scores"),
        ("class_kappa", ([1, 1], [1, 1]), "all decisions are the same"),
        ("class_agreement", ([], []), "no specimen has both scans"),
        ("r2", ([3, 3], [1, 2]), "all values are equal"),
        ("spearman", ([1, 2], [5, 5]), "all scores are equal"),
        ("mae", ([], []), "no scans"),
        ("r2", ([1, 2], [np.inf, 2]), "non-finite scores"),
    ],
)
def test_what_does_not_exist_says_why(metric, arguments, reason):
    with pytest.raises(Undefined, match=reason):
        getattr(task_metrics, metric)(*arguments)


def repeated(weights, *arrays):
    index = np.repeat(np.arange(len(weights)), weights.astype(int))
    return [array[index] for array in arrays]


CASES = {
    **dict.fromkeys(("macro_auc", "macro_average_precision", "class_balanced_accuracy", "multiclass_brier"), "classes"),
    **dict.fromkeys(("class_agreement", "class_kappa"), "decisions"),
    **dict.fromkeys(("r2", "mae", "prediction_rmse", "pearson", "spearman"), "values"),
}


def arguments(kind):
    if kind == "values":
        return values()
    y, p = classes()
    return (y, p) if kind == "classes" else (y, p.argmax(1))


@pytest.mark.parametrize("name", CASES)
def test_weights_are_repetitions(name):
    data = arguments(CASES[name])
    rng = np.random.default_rng(1)
    weights = np.vstack([np.ones(len(data[0])), rng.integers(0, 4, (6, len(data[0])))]).astype(float)
    found, drawn = getattr(task_weighted, name)(*data, weights)
    plain = getattr(task_metrics, name)
    assert found == pytest.approx([plain(*repeated(row, *data)) for row in weights], abs=1e-9)
    assert (drawn > 0).all()


@pytest.mark.parametrize("name", ["macro_auc", "macro_average_precision", "class_balanced_accuracy"])
def test_a_resample_without_a_class_has_no_value(name):
    y, p = classes()
    weights = np.vstack([np.ones(y.size), y != 1, np.zeros(y.size)]).astype(float)
    found, drawn = getattr(task_weighted, name)(y, p, weights)
    assert np.isfinite(found).tolist() == [True, False, False]
    assert drawn[1:].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["r2", "pearson", "spearman"])
def test_a_resample_of_one_value_has_no_value(name):
    y, p = values()
    weights = np.vstack([np.ones(y.size), y == y[0]]).astype(float)
    found, drawn = getattr(task_weighted, name)(y, p, weights)
    assert np.isfinite(found).tolist() == [True, False]
    assert drawn[1] == 0


def test_over_columns_is_the_mean():
    scores = np.arange(12.0).reshape(4, 3) ** 2
    assert task_metrics.over_columns(np.std, scores) == pytest.approx(scores.std(0).mean())
