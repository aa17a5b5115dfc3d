import itertools

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test

from isoslide import metrics, survival, weighted
from isoslide.metrics import Undefined


def cohort(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 15, n).astype(float), rng.integers(0, 2, n), np.round(rng.uniform(size=n), 1)


@pytest.mark.parametrize("seed", range(3))
def test_kaplan_meier_equals_lifelines(seed):
    time, event, _ = cohort(seed)
    steps, share = survival.kaplan_meier(time, event)
    fitted = KaplanMeierFitter().fit(time, event)
    assert share == pytest.approx(fitted.predict(steps).to_numpy(), abs=1e-12)
    assert (steps[0], share[0], steps[-1]) == (0, 1, time.max())


def test_censoring_by_hand():
    # Of four patients at t = 2 one has the event, so one of three is censored; at t = 4 the last one is.
    time, event = [1, 2, 2, 3, 4], [1, 1, 0, 1, 0]
    assert survival.uncensored(time, event) == pytest.approx([1, 1, 1, 2 / 3, 2 / 3])
    assert survival.uncensored(time, event, [5]) == pytest.approx([0])
    assert survival.uncensored([1, 2], [1, 1]) == pytest.approx([1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_censoring_equals_lifelines_where_times_are_distinct(seed):
    rng = np.random.default_rng(seed)
    time, event = rng.uniform(1, 9, 30), rng.integers(0, 2, 30)
    fitted = KaplanMeierFitter().fit(time, 1 - event)
    assert survival.uncensored(time, event) == pytest.approx(fitted.predict(time - 1e-9).to_numpy(), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_uno_equals_brute_force(seed):
    time, event, risk = cohort(seed)
    free = survival.uncensored(time, event)
    wins = pairs = 0.0
    for i, j in itertools.permutations(range(time.size), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += free[i] ** -2
            wins += free[i] ** -2 * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    assert survival.uno_c(time, event, risk) == pytest.approx(wins / pairs, abs=1e-12)
    value, _ = weighted.uno_c(time, event, risk, free, np.ones((2, time.size)))
    assert value == pytest.approx([wins / pairs] * 2, abs=1e-12)


def test_uno_by_hand_and_without_censoring():
    # Pairs: (1, 2) and (1, 3) at G = 1, (3, 4) after one of three was censored at t = 2: G = 2/3, weight 9/4.
    time, event, risk = [1, 2, 3, 4], [1, 0, 1, 0], [4, 1, 2, 3]
    assert survival.uno_c(time, event, risk) == pytest.approx((1 + 1 + 1 + 0) / (1 + 1 + 1 + 9 / 4))
    rng = np.random.default_rng(0)
    time, risk = rng.permutation(20) + 1.0, rng.normal(size=20)
    assert survival.uno_c(time, np.ones(20), risk) == pytest.approx(metrics.c_index(time, np.ones(20), risk))


@pytest.mark.parametrize("seed", range(4))
def test_log_rank_equals_lifelines(seed):
    time, event, p = cohort(seed)
    excess, variance = survival.log_rank(time, event, p >= 0.5)
    high = p >= 0.5
    expected = logrank_test(time[high], time[~high], event[high], event[~high]).test_statistic
    assert excess**2 / variance == pytest.approx(expected, rel=1e-9)
    assert survival.log_hazard_ratio(time, event, p) == pytest.approx(excess / variance)
    value, weight = weighted.log_hazard_ratio(time, event, p, np.ones((1, time.size)))
    assert (value[0], weight[0]) == pytest.approx((excess / variance, variance))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: survival.uno_c([1, 2], [0, 0], [1, 2]), "no events"),
        (lambda: survival.log_hazard_ratio([1, 2], [1, 1], [0.6, 0.7]), "only one risk group"),
        (lambda: survival.log_hazard_ratio([1, 2], [0, 0], [0.2, 0.7]), "no events"),
        (lambda: survival.log_hazard_ratio([2, 1], [1, 0], [0.2, 0.7]), "no event while both risk groups"),
        (lambda: survival.log_hazard_ratio([], [], []), "no scans"),
        (lambda: survival.log_hazard_ratio([1], [1], [np.nan]), "non-finite scores"),
        (lambda: survival.kaplan_meier([], []), "no scans"),
    ],
)
def test_undefined_says_why(call, reason):
    with pytest.raises(Undefined, match=reason):
        call()


@pytest.mark.parametrize("seed", range(4))
def test_log_rank_p_equals_lifelines(seed):
    time, event, p = cohort(seed)
    high = p >= 0.5
    expected = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
    assert survival.log_rank_p(time, event, high) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(Undefined, match="only one risk group"):
        survival.log_rank_p(time, event, p >= 0)
    with pytest.raises(Undefined, match="no events"):
        survival.log_rank_p(time, 0 * event, high)


@pytest.mark.parametrize("seed", range(3))
def test_rank_log_hazard_ratio_is_the_first_step_of_coxs_model(seed):
    rng = np.random.default_rng(seed)
    time, event, risk = rng.permutation(40) + 1.0, rng.integers(0, 2, 40), rng.normal(size=40)
    x = (np.argsort(np.argsort(risk)) + 0.5) / 40

    def loss(beta):
        at_risk = time[None, :] >= time[:, None]
        return -np.sum(event * (beta * x - np.log(np.sum(at_risk * np.exp(beta * x)[None, :], axis=1))))

    h = 1e-4
    gradient = (loss(h) - loss(-h)) / (2 * h)
    curvature = (loss(h) - 2 * loss(0) + loss(-h)) / h**2
    value = survival.rank_log_hazard_ratio(time, event, risk)
    assert value == pytest.approx(-gradient / curvature, rel=1e-5)
    assert survival.rank_log_hazard_ratio(time, event, np.exp(5 * risk)) == pytest.approx(value)  # ranks only
    assert survival.rank_log_hazard_ratio(time, event, -risk) == pytest.approx(-value)
    twin, weight = weighted.rank_log_hazard_ratio(time, event, risk, np.ones((2, 40)))
    assert twin == pytest.approx([value] * 2, abs=1e-9)
    assert weight == pytest.approx([curvature] * 2, rel=1e-4)


def test_rank_log_hazard_ratio_with_two_scores_is_that_of_the_groups_between_their_ranks():
    time, event, _ = cohort(1)
    high = np.arange(time.size) % 4 == 0
    distance = 0.5  # mean ranks of the two groups, (1 - share) / 2 and 1 - share / 2, are half a rank apart
    by_group = survival.log_hazard_ratio(time, event, high.astype(float))
    assert survival.rank_log_hazard_ratio(time, event, high * 3.0) == pytest.approx(by_group / distance)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([1, 2], [1, 1], [0.5, 0.5]), "all scores are equal"),
        (([1, 2], [0, 0], [0.2, 0.5]), "no events"),
        (([2, 1], [1, 0], [0.2, 0.5]), "no event while scores differed"),
        (([], [], []), "no scans"),
        (([1], [1], [np.nan]), "non-finite scores"),
    ],
)
def test_no_rank_log_hazard_ratio_is_said(arguments, reason):
    with pytest.raises(Undefined, match=reason):
        survival.rank_log_hazard_ratio(*arguments)
