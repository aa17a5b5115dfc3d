import itertools

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from scipy.stats.contingency import association
from sklearn import metrics as sk

from isoslide import metrics
from isoslide.metrics import Undefined


def labelled(seed: int, n: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    return y, np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.3), 0, 1), decimals)


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize(("seed", "n"), [(0, 2), (1, 17), (2, 200)])
def test_accuracy_equals_scikit_learn(seed, n, decimals):
    y, p = labelled(seed, n, decimals)
    assert metrics.auc(y, p) == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert metrics.average_precision(y, p) == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert metrics.brier(y, p) == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert metrics.balanced_accuracy(y, p) == pytest.approx(sk.balanced_accuracy_score(y, p >= 0.5), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_c_index_equals_lifelines_and_brute_force(seed):
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, 12, 40).astype(float), rng.integers(0, 2, 40)
    risk = np.round(rng.normal(size=40), 1)
    wins = pairs = 0.0
    for i, j in itertools.permutations(range(40), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += 1
            wins += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert metrics.c_index(time, event, risk) == pytest.approx(wins / pairs, abs=1e-12)
    assert metrics.c_index(time, event, risk) == pytest.approx(concordance_index(time, -risk, event), abs=1e-12)


@pytest.mark.parametrize(
    ("time", "event", "risk", "expected"),
    [
        ([1, 2], [1, 1], [2, 1], 1.0),
        ([1, 2], [1, 1], [1, 2], 0.0),
        ([1, 2], [1, 0], [1, 1], 0.5),
        ([1, 1], [1, 0], [2, 1], 1.0),  # an event and a censoring at one time: comparable
        ([1, 1, 2], [1, 1, 0], [1, 2, 3], 0.0),  # two events at one time: not comparable with each other
        ([1, 2], [1, 0], [1.0, 1.0 + 1e-9], 0.5),  # within the tolerance: a tie
    ],
)
def test_c_index_by_hand(time, event, risk, expected):
    assert metrics.c_index(time, event, risk) == expected


def test_calibration_error_by_hand_and_by_pandas():
    # Two bins: (0.1, 0.2 | outcomes 0, 1) is 0.7 short, (0.6, 0.9 | 1, 1) is 0.5 short, of four scans.
    assert metrics.calibration_error([0, 1, 1, 1], [0.1, 0.2, 0.6, 0.9], bins=2) == pytest.approx((0.7 + 0.5) / 4)
    y, p = labelled(3, 100, 9)
    groups = pd.DataFrame({"y": y, "p": p, "bin": pd.qcut(p, 5, labels=False)}).groupby("bin")
    expected = sum(len(g) / 100 * abs(g["y"].mean() - g["p"].mean()) for _, g in groups)
    assert metrics.calibration_error(y, p) == pytest.approx(expected, abs=1e-12)


def test_bins_have_equal_mass_and_never_part_equal_probabilities():
    assert np.bincount(metrics.equal_mass_bins(np.arange(23) / 23)).tolist() == [5, 5, 4, 5, 4]
    assert metrics.equal_mass_bins([0.5] * 6 + [0.7]).tolist() == [0] * 6 + [4]
    assert metrics.equal_mass_bins([0.2, 0.1]).tolist() == [1, 0]


def test_c_index_gives_the_published_values(shared):
    folder = shared / "data" / "survival-predictions"
    rows = pd.read_csv(folder / "mcat_val_predictions.csv")
    published = pd.read_csv(folder / "val_cindex_by_fold_published.csv")
    published = published.set_index(["model", "cohort", "fold"])["val_cindex_published"]
    groups = rows.groupby(["model", "cohort", "fold"])
    assert len(published) >= 10
    for key, value in published.items():
        group = groups.get_group(key)
        ours = metrics.c_index(group["survival_months"], 1 - group["censorship"], group["risk"])
        assert ours == pytest.approx(value, abs=1e-12), key


def test_inconsistency_by_hand():
    scores = np.array([0.0, 2.0, 10.0, 10.0, 4.0])
    specimens = ["a", "a", "b", "b", "c"]  # c has one scan: it counts in the denominator only
    assert metrics.inconsistency(scores, specimens) == pytest.approx((1 + 0) / 2 / np.std(scores))


@pytest.mark.parametrize("seed", range(3))
def test_inconsistency_equals_a_table_of_groups(seed):
    rng = np.random.default_rng(seed)
    specimens = rng.integers(0, 9, 50).astype(str)
    scores = rng.normal(size=50)
    table = pd.DataFrame({"specimen": specimens, "score": scores}).groupby("specimen")["score"]
    expected = table.std(ddof=0)[table.size() > 1].mean() / scores.std()
    assert metrics.inconsistency(scores, specimens) == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(50)
    assert metrics.inconsistency(3 * scores[order] - 7, specimens[order]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_pair_metrics_equal_independent_ones(seed):
    rng = np.random.default_rng(seed)
    a = rng.uniform(size=30)
    b = np.clip(a + rng.normal(0, 0.2, 30), 0, 1)
    assert metrics.rmse(a, b) == pytest.approx(sk.mean_squared_error(a, b) ** 0.5, abs=1e-12)
    assert metrics.agreement(a, b) == pytest.approx(sk.accuracy_score(a >= 0.5, b >= 0.5), abs=1e-12)
    assert metrics.kappa(a, b) == pytest.approx(sk.cohen_kappa_score(a >= 0.5, b >= 0.5), abs=1e-12)
    # Lin's coefficient through Pearson's: r times the bias correction.
    bias = 2 * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert metrics.lin_ccc(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1] * bias, abs=1e-12)
    assert metrics.scaled_difference(a, b) == pytest.approx(np.abs(a - b).mean() / np.std([a, b]), abs=1e-12)


def test_icc_gives_the_value_of_shrout_and_fleiss():
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert metrics.icc21(ratings) == pytest.approx(0.29, abs=0.005)  # their table 4
    assert metrics.icc21(np.repeat([[1.0], [2.0], [4.0]], 3, axis=1)) == pytest.approx(1)


def test_cramers_v_equals_scipy():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 80)
    scanner = np.where(rng.uniform(size=80) < 0.7, label, rng.integers(0, 4, 80))
    expected = association(pd.crosstab(label, scanner).to_numpy(), method="cramer")
    assert metrics.cramers_v(label, scanner) == pytest.approx(expected, abs=1e-12)
    assert metrics.cramers_v(["x", "y", "x"], ["a", "b", "a"]) == pytest.approx(1)


def test_swapping_the_scanners_changes_nothing():
    rng = np.random.default_rng(4)
    a, b = rng.uniform(size=(2, 20))
    for function in (metrics.rmse, metrics.agreement, metrics.kappa, metrics.lin_ccc, metrics.scaled_difference):
        assert function(a, b) == pytest.approx(function(b, a), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: metrics.auc([1, 1], [0.1, 0.2]), "only one class"),
        (lambda: metrics.auc([], []), "no scans"),
        (lambda: metrics.auc([0, 1], [0.1, np.nan]), "non-finite scores"),
        (lambda: metrics.average_precision([1, 1], [0.1, 0.2]), "only one class"),
        (lambda: metrics.calibration_error([], []), "no scans"),
        (lambda: metrics.balanced_accuracy([0, 0], [0.1, 0.2]), "only one class"),
        (lambda: metrics.c_index([1, 2], [0, 0], [1, 2]), "no events"),
        (lambda: metrics.c_index([2, 1], [1, 0], [1, 2]), "no comparable pairs"),
        (lambda: metrics.inconsistency([1, 2], ["a", "b"]), "no specimen has two scans"),
        (lambda: metrics.inconsistency([0.1 + 0.2, 0.3], ["a", "a"]), "all scores are equal"),
        (lambda: metrics.rmse([], []), "no specimen has both scans"),
        (lambda: metrics.kappa([0.9, 0.8], [0.7, 0.6]), "all decisions are the same"),
        (lambda: metrics.lin_ccc([1, 1], [1, 1]), "all scores are equal"),
        (lambda: metrics.scaled_difference([1, 1], [1, 1]), "all scores are equal"),
        (lambda: metrics.icc21([[1.0], [2.0]]), "fewer than two scanners"),
        (lambda: metrics.icc21([[1.0, 2.0]]), "fewer than two specimens"),
        (lambda: metrics.icc21([[1.0, 1.0], [1.0, 1.0]]), "all scores are equal"),
        (lambda: metrics.cramers_v(["a", "a"], ["x", "y"]), "only one category"),
        (lambda: metrics.spread([]), "no scans"),
    ],
)
def test_undefined_metrics_say_why(call, reason):
    with pytest.raises(Undefined) as error:
        call()
    assert error.value.reason == reason


def test_labels_other_than_0_and_1_are_an_error():
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.brier([0, 2], [0.1, 0.2])


def test_pairs_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match="equal shape"):
        metrics.rmse([0, 2], [0.1])
