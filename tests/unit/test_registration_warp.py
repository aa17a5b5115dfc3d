"""Smooth corrections: what is followed, what is left alone, and the tiles' own affines."""

import json

import numpy as np
import pytest

from isoslide import registration_warp
from isoslide.registration_warp import corrected, from_record, straight

AFFINE = np.array([[0.0, -1.01, 2000.0], [0.99, 0.002, 30.0]])


def shift(places, size=4.0):
    return size * np.column_stack([np.sin(places[:, 1] / 400), np.cos(places[:, 0] / 500)])


@pytest.fixture(scope="module")
def places():
    return np.random.default_rng(0).uniform(0, 2000, (60, 2))


@pytest.fixture(scope="module")
def warp(places):
    plain = straight(AFFINE)
    noise = np.random.default_rng(1).normal(0, 0.1, places.shape)
    return corrected(AFFINE, plain, places, plain.apply(places) + shift(places) + noise, 5, 20)


def truth(points):
    return straight(AFFINE).apply(points) + shift(points)


def test_a_bend_is_followed_between_the_patches(warp):
    points = np.random.default_rng(2).uniform(100, 1900, (200, 2))
    error = np.hypot(*(warp.apply(points) - truth(points)).T)
    assert warp.bends
    assert np.median(error) < 0.25
    assert error.max() < 2


def test_false_matches_do_not_bend_it(places, warp):
    found = truth(places)
    found[::7] += 15
    other = corrected(AFFINE, straight(AFFINE), places, found, 5, 20)
    assert other.bends
    assert len(other.places) < len(places) - 6
    points = np.random.default_rng(2).uniform(200, 1800, (200, 2))
    assert np.median(np.hypot(*(other.apply(points) - truth(points)).T)) < 0.4


@pytest.mark.parametrize("case", ["noise", "affine", "few", "switched off", "beyond the limit"])
def test_no_correction_where_it_does_not_help(places, case):
    plain = straight(AFFINE)
    noise = np.random.default_rng(3).normal(0, 1.0 if case == "noise" else 0.05, places.shape)
    bend = shift(places, 0 if case in ("noise", "affine") else 4.0)
    n = 12 if case == "few" else len(places)
    most = {"switched off": 0, "beyond the limit": 2}.get(case, 20)
    found = plain.apply(places) + bend + noise
    assert not corrected(AFFINE, plain, places[:n], found[:n], 5, most).bends


def test_the_record_gives_the_same_map(warp):
    entry = {"affine": warp.affine.tolist(), "correction": json.loads(json.dumps(warp.record()))}
    points = np.random.default_rng(4).uniform(0, 2000, (50, 2))
    assert np.abs(from_record(entry).apply(points) - warp.apply(points)).max() < 0.01
    plain = from_record({"affine": AFFINE.tolist(), "correction": None})
    assert not plain.bends
    assert plain.record() is None
    assert from_record({"affine": AFFINE.tolist()}).apply(points) == pytest.approx(plain.apply(points))


def test_local_affines_follow_the_map_inside_a_tile(warp):
    centres = np.random.default_rng(5).uniform(200, 1800, (20, 2))
    local = warp.local(centres, 112.0)
    for offset in ((0, 0), (50, -50), (-40, 30)):
        points = centres + np.array(offset)
        found = np.einsum("nij,nj->ni", local[:, :, :2], points) + local[:, :, 2]
        assert np.abs(found - warp.apply(points)).max() < (1e-6 if offset == (0, 0) else 0.3)
    assert np.array_equal(straight(AFFINE).local(centres, 112.0)[3], AFFINE)
    assert warp.local(np.empty((0, 2)), 112.0).shape == (0, 2, 3)


def test_far_from_the_patches_the_correction_stays_what_it_is(warp):
    far = np.array([[9000.0, 1000.0], [90000.0, 1000.0]])  # the patches' box ends at 2000
    first, second = warp.correction(far)
    assert first == pytest.approx(second)
    assert np.hypot(*first) < 20
    assert registration_warp.REACH < 1
