"""Training ranges by hand."""

import numpy as np
import pandas as pd
import pytest

from isoslide import ranges
from isoslide.summaries import Summaries


def scans(**more):
    table = pd.DataFrame({"scan": list("abcd"), "patient": ["p", "p", "q", "r"], "scanner": ["A", "B", "A", "A"]})
    return table.assign(**more)


def short(means, variances=0.0):
    means = np.array(means, dtype=float)
    spread = np.full_like(means, variances)
    return Summaries(list("abcd")[: len(means)], np.full(len(means), 5), means, spread, {})


MEANS = [[0.0, 0.0], [1.0, 0.0], [4.0, 0.0], [7.0, 0.0]]
SD = np.sqrt(7.5)  # of 0, 1, 4, 7


def test_distances_leave_the_own_patient_out():
    """Nearest of another patient: a-c 4, b-c 3, c-b 3, d-c 3; divided by the SD of the means; of two features."""
    found = ranges.build(scans(), short(MEANS))
    assert found.scale == pytest.approx([SD, 1])
    assert found.distances == pytest.approx(np.array([3, 3, 3, 4]) / SD / np.sqrt(2))
    assert found.limit == pytest.approx(np.quantile(found.distances, 0.99))
    assert ranges.distances(np.array([[9.0, 0.0], [1.0, 3.0]]), found) == pytest.approx(
        [2 / SD / np.sqrt(2), 3 / np.sqrt(2)]
    )


def test_mean_and_spread_of_the_features_hold_within_and_between():
    found = ranges.build(scans(), short(MEANS, variances=2.0))
    assert found.mean == pytest.approx([3, 0])
    assert found.sd == pytest.approx([np.sqrt(7.5 + 2), np.sqrt(2)])


def test_one_patient_sets_no_limit():
    found = ranges.build(scans(patient="p"), short(MEANS))
    assert len(found.distances) == 0
    assert found.limit == float("inf")
    assert ranges.reasons({"scanner": "A"}, 1e9, found) == []


def slides():
    colours = {name: [100.0, 110.0, 120.0, 130.0] for name in ranges.COLOURS}
    return ranges.build(scans(mpp_x=[0.25, 0.5, 0.5, 0.5], mpp_y="0.5", **colours), short(MEANS))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"scanner": "Z"}, ["scanner 'Z' did not train, only 'A', 'B'"]),
        ({"mpp_x": "0.246"}, []),  # 1.6 % below the smallest
        ({"mpp_x": "0.244"}, ["0.244 µm/px, training scans 0.25 to 0.5"]),
        ({"mpp_x": "0.52", "mpp_y": "0.52"}, ["0.52 µm/px, training scans 0.25 to 0.5"]),
        ({"green_mean": "99"}, ["green in the mean 99, training scans 100 to 130"]),
        ({"blue_sd": "131"}, ["SD of blue 131, training scans 100 to 130"]),
        ({"green_mean": "", "mpp_x": ""}, []),
    ],
)
def test_reasons_in_words(change, expected):
    scan = {"scanner": "A", "mpp_x": "0.5", "mpp_y": "0.5"} | dict.fromkeys(ranges.COLOURS, "110")
    assert ranges.reasons(scan | change, 0.1, slides()) == expected


def test_a_distance_beyond_the_limit_is_a_reason():
    found = ranges.build(scans(), short(MEANS))
    assert ranges.reasons({"scanner": "A"}, found.limit * 0.999, found) == []
    (words,) = ranges.reasons({"scanner": "A"}, found.limit * 1.01, found)
    assert words.startswith("features ")
    assert "99 % of training scans within 1.03" in words  # 4 / sqrt(7.5) / sqrt(2) = 1.033


def test_quantiles_of_many_scans():
    """Of 1,001 scans with colours 0 to 1,000 the range is 5 to 995."""
    n = 1001
    table = pd.DataFrame({"scan": [f"s{i}" for i in range(n)], "patient": "p", "scanner": "A"})
    table = table.assign(mpp_x=0.5, mpp_y=0.5, **{name: np.arange(n) for name in ranges.COLOURS})
    means = Summaries(table["scan"].tolist(), np.ones(n), np.zeros((n, 2)), np.zeros((n, 2)), {})
    found = ranges.build(table, means)
    assert found.colours == pytest.approx(np.array([[5.0] * 6, [995.0] * 6]))


def test_round_trip_and_a_bounded_number_of_references(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "MOST_SCANS", 3)
    found = ranges.build(scans(), short(MEANS))
    assert found.references.shape == (3, 2)
    ranges.write(tmp_path / "r.safetensors", found)
    again = ranges.read(tmp_path / "r.safetensors")
    assert again.scanners == {"A": 3, "B": 1}
    for name in ranges.TENSORS:
        assert np.array_equal(getattr(again, name), getattr(found, name), equal_nan=True), name
    backwards = ranges.build(scans().iloc[::-1], short(MEANS).of(list("dcba")))
    assert sorted(map(tuple, backwards.references)) == sorted(map(tuple, found.references))
