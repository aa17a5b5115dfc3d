"""One way to score: ensembles by hand, and models that harmonise features by scanner."""

import numpy as np
import pytest
import torch

from isoslide import aggregators, layers, scoring
from isoslide.bags import Bags

SHAPE = layers.Shape(inputs=3, outputs=2, width=4, layers=2, attention=2)
BINARY = {"type": "binary"}


def bags():
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    return Bags(["a", "b", "c"], values, np.array([0, 2, 3, 7]), np.arange(7), [""] * 3, [""] * 3)


def member(seed, scanners=(), shape=SHAPE):
    state = aggregators.init(shape, [torch.Generator().manual_seed(seed)])
    if scanners:
        rng = torch.Generator().manual_seed(seed)
        size = (1, len(scanners), shape.inputs)
        state |= {"combat.mean": torch.randn(size, generator=rng), "combat.var": torch.rand(size, generator=rng) + 0.5}
    return scoring.Member(state, shape, BINARY, {}, tuple(scanners))


def test_every_model_scores_every_scan_as_it_would_alone():
    features, members = bags(), [member(1), member(2)]
    found = scoring.logits(members, features.tensor(), features, np.array([2, 0]), np.array(["A", "B"]))
    assert found.shape == (2, 2, 2)
    for i, one in enumerate(members):
        for place, scan in enumerate((2, 0)):
            x = torch.from_numpy(features.features[features.rows(scan)])
            alone = aggregators.predict(one.state, SHAPE, x, [len(x)])[0, 0]
            assert found[i, place] == pytest.approx(alone, abs=1e-6)


def test_each_model_harmonises_by_its_own_list_of_scanners(caplog):
    """Folds that leave a scanner out know different scanners; (x - mean) / sqrt(var) by hand, unknown ones as is."""
    features, members = bags(), [member(1, "AB"), member(2, "BC"), member(3)]
    scanners = np.array(["A", "B", "B"])
    found = scoring.logits(members, features.tensor(), features, np.arange(3), scanners)
    for i, one in enumerate(members):
        plain = {name: value for name, value in one.state.items() if not name.startswith("combat")}
        for scan, scanner in enumerate(scanners):
            x = torch.from_numpy(features.features[features.rows(scan)])
            if scanner in one.scanners:
                code = one.scanners.index(scanner)
                x = (x - one.state["combat.mean"][0, code]) / one.state["combat.var"][0, code].sqrt()
            expected = aggregators.predict(plain, SHAPE, x, [len(x)])[0, 0]
            assert found[i, scan] == pytest.approx(expected, abs=1e-5)
    assert [record.args[0] for record in caplog.records] == ["A"]


def test_an_ensemble_by_hand():
    each = [{"p": np.array([0.2, 0.9])}, {"p": np.array([0.6, 0.9])}, {"p": np.array([0.7, 0.3])}]
    found = scoring.ensemble(each, BINARY)
    assert found["p"] == pytest.approx([0.5, 0.7])
    assert found["p_sd"] == pytest.approx([np.sqrt((0.09 + 0.01 + 0.04) / 2), np.sqrt((0.04 + 0.04 + 0.16) / 2)])
    assert found["p_low"].tolist() == [0.2, 0.3]
    assert found["p_high"].tolist() == [0.7, 0.9]
    assert scoring.ensemble(each[:1], BINARY)["p_sd"].tolist() == [0, 0]


def test_classes_are_decided_by_the_mean_and_the_spread_is_of_that_class():
    """The two models disagree on the first scan; the mean prefers class 2."""
    one = {"p": np.array([0.5]), "p_0": np.array([0.5]), "p_1": np.array([0.1]), "p_2": np.array([0.4])}
    two = {"p": np.array([0.7]), "p_0": np.array([0.1]), "p_1": np.array([0.2]), "p_2": np.array([0.7])}
    found = scoring.ensemble([one, two], {"type": "multiclass"})
    assert found["predicted"].tolist() == [2]
    assert found["p"] == pytest.approx([0.55])
    assert [found[f"p_{i}"][0] for i in range(3)] == pytest.approx([0.3, 0.15, 0.55])
    assert (found["p_low"][0], found["p_high"][0]) == (0.4, 0.7)
    assert found["p_sd"] == pytest.approx([np.sqrt(0.045)])
