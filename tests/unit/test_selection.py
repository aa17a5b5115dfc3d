import math

import numpy as np
import pandas as pd
import pytest

from isoslide import selection

ROWS = pd.DataFrame(
    {
        "scan": ["a1", "a2", "b1", "b2", "c1", "lost"],
        "specimen": ["a", "a", "b", "b", "c", "c"],
        "label": ["1", "1", "0", "0", "0", "0"],
        "time": ["5", "5", "40", "40", "30", "30"],
        "event": ["1", "1", "0", "0", "1", "1"],
    }
)
INDEX = {"a1": 3, "a2": 1, "b1": 0, "b2": 2, "c1": 4}


def test_score_by_hand():
    tune = selection.tuning(ROWS, INDEX, "binary", {})
    assert tune.scans.tolist() == [3, 1, 0, 2, 4]
    p = np.array([0.9, 0.5, 0.2, 0.4, 0.6])
    value = selection.score(tune, p)
    assert value.metric == pytest.approx(5 / 6)  # of six pairs only 0.5 against 0.6 is wrong
    assert value.inconsistency == pytest.approx((0.2 + 0.1) / 2 / p.std())
    assert value.rmse == pytest.approx(math.sqrt((0.16 + 0.04) / 2))
    assert value.spread == pytest.approx(p.std())


def test_survival_is_scored_by_time():
    value = selection.score(selection.tuning(ROWS, INDEX, "survival", {}), np.array([0.9, 0.8, 0.1, 0.2, 0.6]))
    assert value.metric == 1


def test_what_does_not_exist_is_nan():
    tune = selection.tuning(ROWS, {"b1": 0, "c1": 1}, "binary", {})
    value = selection.score(tune, np.array([0.1, 0.2]))
    assert math.isnan(value.metric)
    assert math.isnan(value.inconsistency)
    assert math.isnan(value.rmse)
    assert selection.merit(value, "normalised", 5) == -math.inf
    assert math.isnan(selection.score(tune, np.array([0.1, np.nan])).spread)
    assert math.isnan(selection.score(selection.tuning(ROWS, {}, "binary", {}), np.zeros(0)).metric)


def test_rules():
    dead = selection.Score(metric=0.58, inconsistency=0.6, rmse=0.02, spread=0.03)
    live = selection.Score(metric=0.80, inconsistency=0.3, rmse=0.25, spread=0.3)
    assert selection.merit(dead, "reference", 1) > selection.merit(live, "reference", 2)  # why it is not our default
    assert selection.merit(dead, "normalised", 1) < selection.merit(live, "normalised", 2)
    assert selection.merit(live, "metric", 1) == 0.8
    assert selection.merit(dead, "last", 9) > selection.merit(live, "last", 8)
    alone = selection.Score(metric=0.8, inconsistency=math.nan, rmse=math.nan, spread=0.3)
    assert selection.merit(alone, "normalised", 1) == 0.8


@pytest.mark.parametrize(
    ("loss", "spread", "status"),
    [(0.3, 0.2, "ok"), (0.3, 0.01, "collapsed"), (0.68, 0.2, "not_trained"), (math.nan, 0.2, "not_trained")],
)
def test_trained(loss, spread, status):
    assert selection.trained(selection.Score(0.7, 0.3, 0.1, spread), loss, math.log(2)) == status
