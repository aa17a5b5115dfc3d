import numpy as np
import pytest

from isoslide import metrics, survival, uncertainty, weighted

N = 24


@pytest.fixture
def cohort():
    rng = np.random.default_rng(3)
    y = np.r_[0, 1, rng.integers(0, 2, N - 2)].astype(float)
    a = np.round(np.clip(0.3 + 0.3 * y + rng.normal(0, 0.2, N), 0, 1), 2)
    b = np.round(np.clip(a + rng.normal(0, 0.15, N), 0, 1), 2)
    c = np.round(np.clip(a + rng.normal(0.1, 0.15, N), 0, 1), 2)
    time, event = rng.integers(1, 30, N).astype(float), rng.integers(0, 2, N).astype(float)
    specimens = np.repeat(np.arange(N // 2), 2)
    return {"y": y, "a": a, "b": b, "m": np.c_[a, b, c], "time": time, "event": event, "specimens": specimens}


CASES = [
    (metrics.auc, weighted.auc, ("y", "a")),
    (metrics.c_index, weighted.c_index, ("time", "event", "a")),
    (metrics.brier, weighted.brier, ("y", "a")),
    (metrics.balanced_accuracy, weighted.balanced_accuracy, ("y", "a")),
    (metrics.average_precision, weighted.average_precision, ("y", "a")),
    (survival.log_hazard_ratio, weighted.log_hazard_ratio, ("time", "event", "a")),
    (metrics.spread, weighted.spread, ("a",)),
    (metrics.inconsistency, weighted.inconsistency, ("a", "specimens")),
    (metrics.rmse, weighted.rmse, ("a", "b")),
    (metrics.scaled_difference, weighted.scaled_difference, ("a", "b")),
    (metrics.agreement, weighted.agreement, ("a", "b")),
    (metrics.kappa, weighted.kappa, ("a", "b")),
    (metrics.lin_ccc, weighted.lin_ccc, ("a", "b")),
    (metrics.icc21, weighted.icc21, ("m",)),
]
IDS = [plain.__name__ for plain, _, _ in CASES]


@pytest.mark.parametrize(("plain", "with_weights", "names"), CASES, ids=IDS)
def test_weights_of_one_give_the_plain_metric(cohort, plain, with_weights, names):
    arguments = [cohort[name] for name in names]
    value, weight = with_weights(*arguments, np.ones((2, N)))
    assert value == pytest.approx(np.repeat(plain(*arguments), 2), abs=1e-12)
    assert (weight > 0).all()


@pytest.mark.parametrize(("plain", "with_weights", "names"), CASES, ids=IDS)
def test_weights_equal_listing_the_patient_that_often(cohort, plain, with_weights, names):
    # A patient here = two neighbouring rows (the two scans of a specimen); a copy gets a specimen id of its own.
    counts = np.repeat(np.random.default_rng(5).integers(0, 4, N // 2), 2)
    rows = np.repeat(np.arange(N), counts)
    listed = {name: value[rows] for name, value in cohort.items()}
    copy = np.concatenate([np.arange(k) for k in counts])
    listed["specimens"] = listed["specimens"] * 10 + copy
    value, _ = with_weights(*[cohort[name] for name in names], counts[None, :].astype(float))
    assert value[0] == pytest.approx(plain(*[listed[name] for name in names]), abs=1e-9)


def test_calibration_error_keeps_the_bins_of_the_cohort(cohort):
    y, p = cohort["y"], cohort["a"]
    weights = uncertainty.draw(y, 5, np.random.default_rng(0))
    bins = metrics.equal_mass_bins(p)
    expected = [sum(abs(np.sum((w * (p - y))[bins == b])) for b in range(5)) / w.sum() for w in weights]
    value, weight = weighted.calibration_error(y, p, weights)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value[0] == pytest.approx(metrics.calibration_error(y, p), abs=1e-12)
    assert weight == pytest.approx(weights.sum(1))


def test_c_index_in_chunks_is_the_same(cohort):
    weights = uncertainty.draw(cohort["event"], 20, np.random.default_rng(0))
    arguments = (cohort["time"], cohort["event"], cohort["a"], weights)
    whole, parts = weighted.c_index(*arguments), weighted.c_index(*arguments, chunk=30)
    assert parts[0] == pytest.approx(whole[0], abs=1e-12)
    assert parts[1] == pytest.approx(whole[1])


def test_a_resample_without_a_value_is_nan_and_weighs_nothing():
    y, p = np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.9, 0.8])
    weights = np.array([[1.0, 1, 1], [0, 2, 1], [3, 0, 0]])
    for metric in (weighted.auc, weighted.balanced_accuracy):
        value, weight = metric(y, p, weights)
        assert np.isnan(value[1:]).all()
        assert weight.tolist()[1:] == [0, 0]
    value, weight = weighted.inconsistency(p, np.array([0, 1, 1]), weights)
    assert np.isfinite(value[:2]).all()
    assert np.isnan(value[2])
    assert weight[2] == 0
    constant = np.array([0.2, 0.2, 0.7])
    for metric in (weighted.inconsistency, weighted.scaled_difference, weighted.lin_ccc):
        value, weight = metric(constant, constant, np.array([[1.0, 1, 0]]))
        assert np.isnan(value[0])
        assert weight[0] == 0
    assert np.isnan(weighted.icc21(np.c_[constant, constant], np.array([[1.0, 1, 0], [0, 0, 1]]))[0]).all()


def test_draw_keeps_the_class_counts_and_the_cohort_in_row_0():
    strata = np.array(["a"] * 5 + ["b"] * 12)
    weights = uncertainty.draw(strata, 500, np.random.default_rng(1))
    assert weights.shape == (501, 17)
    assert (weights[0] == 1).all()
    assert (weights[:, :5].sum(1) == 5).all()
    assert (weights[:, 5:].sum(1) == 12).all()
    assert weights[1:].mean(0) == pytest.approx(np.ones(17), abs=0.15)
    assert (weights == uncertainty.draw(strata, 500, np.random.default_rng(1))).all()


def test_averages_leave_out_what_has_no_value():
    values = np.array([[1.0, np.nan], [3.0, np.nan]])
    assert uncertainty.over_folds(values, np.array([[1.0, 0], [3.0, 0]])) == pytest.approx([2.5, np.nan], nan_ok=True)
    values = np.array([[1.0, np.nan], [2.0, 4.0]])
    assert uncertainty.over_seeds(values) == pytest.approx([1.5, 4.0])


def test_auc_over_folds_pools_the_pairs_within_folds():
    rng = np.random.default_rng(8)
    y, p, fold = rng.integers(0, 2, 60).astype(float), rng.uniform(size=60), np.repeat([0, 1, 2], [10, 20, 30])
    parts = [weighted.auc(y[fold == f], p[fold == f], np.ones((1, (fold == f).sum()))) for f in range(3)]
    pooled = uncertainty.over_folds(np.array([v for v, _ in parts]), np.array([w for _, w in parts]))
    same = fold[:, None] == fold[None, :]
    pairs = (y[:, None] > y[None, :]) & same
    assert pooled[0] == pytest.approx((p[:, None] > p[None, :])[pairs].mean(), abs=1e-12)


def test_interval_by_hand():
    # Percentiles 0.05 and 0.95 of 0 ... 1; the resamples lie 0.1 above the estimate on average, so both move down.
    assert uncertainty.interval(np.r_[0.4, np.linspace(0, 1, 101)], 0.9) == pytest.approx((-0.05, 0.85))
    assert uncertainty.interval(np.r_[0.4, np.linspace(0, 1, 101)], 0.9, (0, 0.8)) == pytest.approx((0, 0.8))


def test_interval_needs_half_of_the_resamples():
    assert np.isnan(uncertainty.interval(np.r_[0.5, 0.4, np.nan, np.nan])).all()
    assert np.isnan(uncertainty.interval(np.r_[np.nan, 0.4, 0.5])).all()
    assert np.isnan(uncertainty.interval(np.array([0.5]))).all()


def test_intervals_of_auc_cover_the_truth_about_as_often_as_they_say():
    """300 cohorts of 60 patients x 3 scans: the 95 % interval of AUC holds the true AUC in 90 to 99 %.

    The patient effect is shared by its scans, so resampling scans would give intervals that are far too narrow.
    """
    rng = np.random.default_rng(11)
    y, hits = np.repeat([0.0, 1.0], 30), 0
    patient = np.repeat(np.arange(60), 3)
    truth = 0.76025  # Phi(1 / sqrt(2)): means one SD apart
    for _ in range(300):
        score = (y + rng.normal(0, np.sqrt(0.8), 60))[patient] + rng.normal(0, np.sqrt(0.2), 180)
        weights = uncertainty.draw(y, 300, rng)[:, patient]
        low, high = uncertainty.interval(weighted.auc(y[patient], score, weights)[0])
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_intervals_of_inconsistency_and_its_change_cover_the_truth():
    """The same over five folds of 12 patients x 4 scans, for one arm and for the difference of two."""
    rng = np.random.default_rng(12)
    patient, fold = np.repeat(np.arange(60), 4), np.repeat(np.arange(60) // 12, 4)

    def cohort() -> tuple[np.ndarray, np.ndarray]:
        signal = np.tile([0.0, 1.0], 30) + rng.normal(0, 1, 60)
        return tuple(signal[patient] + rng.normal(0, sd, 240) for sd in (0.6, 0.36))

    def estimate(score: np.ndarray, weights: np.ndarray) -> np.ndarray:
        parts = [(score[fold == f], patient[fold == f], weights[:, patient[fold == f]]) for f in range(5)]
        values, drawn = zip(*(weighted.inconsistency(*part) for part in parts), strict=True)
        return uncertainty.over_folds(np.array(values), np.array(drawn))

    one = np.ones((1, 60))
    truth = np.mean([[estimate(score, one)[0] for score in cohort()] for _ in range(600)], axis=0)
    hits = np.zeros(2)
    for _ in range(150):
        weights = uncertainty.draw(np.tile([0, 1], 30), 200, rng)
        first, second = (estimate(score, weights) for score in cohort())
        for index, (values, true) in enumerate([(first, truth[0]), (second - first, truth[1] - truth[0])]):
            low, high = uncertainty.interval(values)
            hits[index] += low <= true <= high
    assert ((hits / 150 >= 0.87) & (hits / 150 <= 0.995)).all()
