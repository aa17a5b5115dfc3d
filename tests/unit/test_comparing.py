import itertools

import fake_results
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isoslide import comparing, estimates, evaluation, metrics, uncertainty, weighted
from isoslide.metrics import Undefined


def predictions(arm: str, kind: str = "binary", patients: int = 24) -> pd.DataFrame:
    table = fake_results.make_predictions(fake_results.make_splits(fake_results.make_sheet(patients), kind), arm, kind)
    table = table[table["role"] == "test"]
    numbers = ("label", "time", "event")
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in numbers})


def swapped(ours: pd.DataFrame, theirs: pd.DataFrame, names: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables with the scores of some patients exchanged."""
    keys, scores = ["seed", "fold", "scan"], ["p", *estimates.class_columns(ours)]
    both = ours.merge(theirs[[*keys, *scores]], on=keys, suffixes=("", "_other"))
    change = both["patient"].isin(names)
    first = both.assign(**{name: both[name].where(~change, both[f"{name}_other"]) for name in scores})
    second = both.assign(**{name: both[f"{name}_other"].where(~change, both[name]) for name in scores})
    return first[ours.columns], second[ours.columns]


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ranks within each model in place of scores."""
    scores = ["p", *estimates.class_columns(table)]
    return table.assign(**{name: table.groupby(["seed", "fold"])[name].rank() for name in scores})


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("binary", "auc"),
        ("survival", "c_index"),
        ("binary", "inconsistency"),
        ("multiclass", "macro_auc"),
        ("multiclass", "inconsistency"),
        ("regression", "r2"),
        ("regression", "inconsistency"),
    ],
)
def test_permuted_differences_equal_evaluating_the_exchanged_tables(kind, metric):
    ours, theirs = (predictions(arm, kind).query("seed < 3") for arm in ("robust", "paired"))
    columns = {name: i for i, name in enumerate(sorted(ours["patient"].unique()))}
    swaps = comparing.draw_swaps(len(columns), 2, np.random.default_rng(0))
    found = comparing.permuted_difference(ours, theirs, metric, swaps, columns)
    if metric in ("auc", "macro_auc", "c_index"):
        ours, theirs = ranked(ours), ranked(theirs)
    for row, value in zip(swaps, found, strict=True):
        names = {name for name, column in columns.items() if row[column]}
        arm, control = swapped(ours, theirs, names)
        settings = {"resamples": 1, "seed": 1, "level": 0.95}
        _, table, _ = evaluation.evaluate({"paired": control, "robust": arm}, "paired", kind, settings)
        expected = table[(table["metric"] == metric) & (table["scope"] == "pooled")]["difference"].iloc[0]
        assert value == pytest.approx(expected, abs=1e-10)


def test_p_by_hand():
    assert comparing.p_value(np.array([0.3, 0.1, -0.3, 0.2, -0.4])) == pytest.approx(3 / 5)
    assert comparing.p_value(np.array([0.3, 0.1])) == pytest.approx(1 / 2)


def test_there_is_no_p_of_no_difference():
    assert np.isnan(comparing.p_value(np.array([np.nan, 0.1, 0.2])))


def test_permutation_finds_a_difference_and_only_where_there_is_one():
    ours, theirs = predictions("robust"), predictions("paired")
    columns = {name: i for i, name in enumerate(sorted(ours["patient"].unique()))}
    swaps = comparing.draw_swaps(len(columns), 400, np.random.default_rng(0))
    assert comparing.permutation_p(ours, theirs, "binary", columns, swaps)["inconsistency"] < 0.01
    assert comparing.permutation_p(ours, ours, "binary", columns, swaps)["auc"] == 1


def test_permutation_p_is_uniform_without_a_difference():
    """200 pairs of arms that differ by noise only: p below 0.1 in about a tenth of them."""
    rng = np.random.default_rng(1)
    patients, low = 24, 0
    base = pd.DataFrame(
        {"patient": [f"p{i:02d}" for i in range(patients)], "label": np.tile([0.0, 1.0], patients // 2)}
    )
    base = base.assign(scan=base["patient"], specimen=base["patient"], scanner="A", seed=0, fold=0)
    base = base.assign(time=np.nan, event=np.nan)
    columns = {name: i for i, name in enumerate(base["patient"])}
    for _ in range(200):
        signal = base["label"] + rng.normal(size=patients)
        arms = [base.assign(p=signal + rng.normal(size=patients)) for _ in range(2)]
        swaps = comparing.draw_swaps(patients, 99, rng)
        low += comparing.p_value(comparing.permuted_difference(*arms, "auc", swaps, columns)) <= 0.1
    assert 0.04 <= low / 200 <= 0.17


@pytest.mark.parametrize(("kind", "metric"), [("binary", "auc"), ("survival", "c_index")])
def test_p_of_accuracy_does_not_hang_on_the_scale_of_scores(kind, metric):
    """A control whose scores are squeezed and shifted ranks as before, so the arm is as much better as before."""
    ours, theirs = predictions("robust", kind), predictions("paired", kind)
    columns = {name: i for i, name in enumerate(sorted(ours["patient"].unique()))}
    swaps = comparing.draw_swaps(len(columns), 200, np.random.default_rng(0))
    squeezed = theirs.assign(p=0.9 + theirs["p"] / 16)
    first, second = (comparing.permuted_difference(ours, other, metric, swaps, columns) for other in (theirs, squeezed))
    assert second == pytest.approx(first, abs=1e-12)


def test_holm_by_hand():
    assert comparing.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparing.holm([0.5, np.nan, 0.9]) == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert comparing.holm([0.02]) == pytest.approx([0.02])


def plain_delong(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """AUC difference and variance by the formulas of the paper, with loops, one scan per patient."""
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    v10, v01 = np.zeros((2, positives.size)), np.zeros((2, negatives.size))
    for k, score in enumerate((a, b)):
        for (i, x), (j, z) in itertools.product(enumerate(positives), enumerate(negatives)):
            psi = 1.0 if score[x] > score[z] else 0.5 if score[x] == score[z] else 0.0
            v10[k, i] += psi / negatives.size
            v01[k, j] += psi / positives.size
    covariance = np.cov(v10) / positives.size + np.cov(v01) / negatives.size
    contrast = np.array([1, -1])
    return float(contrast @ v10.mean(1)), float(contrast @ covariance @ contrast)


def one_model(y, a, b, patient):
    base = pd.DataFrame({"scan": [f"s{i:03d}" for i in range(y.size)], "patient": patient, "label": y})
    base = base.assign(seed=0, fold=0)
    return base.assign(p=a), base.assign(p=b)


def test_delong_equals_the_formulas_of_the_paper():
    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 1.0], [25, 15])
    a, b = np.round(y + rng.normal(size=40), 1), np.round(0.5 * y + rng.normal(size=40), 1)
    difference, low, high, p = comparing.delong(*one_model(y, a, b, np.arange(40).astype(str)))
    expected, variance = plain_delong(y, a, b)
    assert difference == pytest.approx(expected, abs=1e-12)
    assert difference == pytest.approx(metrics.auc(y, a) - metrics.auc(y, b), abs=1e-12)
    assert (high - low) / 2 / 1.959964 == pytest.approx(np.sqrt(variance), rel=1e-6)
    assert p == pytest.approx(2 * stats.norm.sf(abs(expected) / np.sqrt(variance)))


def test_delong_and_bootstrap_agree_with_several_scans_a_patient():
    rng = np.random.default_rng(2)
    patient, y = np.repeat(np.arange(60), 3), np.repeat(np.tile([0.0, 1.0], 30), 3)
    signal = y + rng.normal(0, 0.8, 60)[patient]
    a, b = signal + rng.normal(0, 0.3, 180), signal + rng.normal(0, 0.9, 60)[patient] + rng.normal(0, 0.3, 180)
    _, low, high, _ = comparing.delong(*one_model(y, a, b, patient.astype(str)))
    weights = uncertainty.draw(np.tile([0, 1], 30), 2000, rng)[:, patient]
    change = weighted.auc(y, a, weights)[0] - weighted.auc(y, b, weights)[0]
    assert (high - low) / 2 / 1.96 == pytest.approx(change[1:].std(), rel=0.1)
    copies, _, _, _ = comparing.delong(*one_model(y[::3], a[::3], b[::3], patient[::3].astype(str)))
    assert np.isfinite(copies)


def test_delong_knows_patients_with_both_classes():
    """Its mean variance is that of the difference over 300 cohorts (without the covariance of the classes 4 times)."""
    rng, n = np.random.default_rng(3), 40
    differences, variances = [], []
    y, patient = np.repeat([0.0, 1.0], n), np.tile([f"p{i:02d}" for i in range(n)], 2)
    for _ in range(300):
        of_patient = rng.normal(0, 1.5, (2, n))
        a, b = (np.tile(own, 2) + y + rng.normal(0, 0.5, 2 * n) for own in of_patient)
        difference, low, high, _ = comparing.delong(*one_model(y, a, b, patient))
        differences.append(difference)
        variances.append(((high - low) / 2 / stats.norm.ppf(0.975)) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(differences), rel=0.25)


def test_delong_says_why_it_cannot():
    y, score = np.array([1.0, 1.0, 0.0]), np.array([0.2, 0.3, 0.1])
    with pytest.raises(Undefined, match="one patient"):
        comparing.delong(*one_model(y, score, score, np.array(["a", "b", "c"])))
    with pytest.raises(Undefined, match="one class"):
        comparing.delong(*one_model(np.ones(3), score, score, np.array(["a", "b", "c"])))
    ours, theirs = one_model(y, score, score, np.array(["a", "b", "c"]))
    with pytest.raises(Undefined, match="no model"):
        comparing.delong(ours.iloc[:0], theirs)
