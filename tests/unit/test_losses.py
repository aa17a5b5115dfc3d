import itertools
import json
import math

import numpy as np
import pytest
import torch

from isoslide import losses

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def oracle(shared):
    return json.loads((shared / "oracles/losses.json").read_text())


def case(oracle, name):
    return next(c for c in oracle["contrastive"] if c["id"] == name)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draw(valid, k, mode="other_specimens", seeds=(0,), max_positions=128, patients=None, scanners=None):
    valid = np.asarray(valid)
    m, b, _ = valid.shape
    patients = np.tile(np.arange(b), (m, 1)) if patients is None else np.asarray(patients)
    scanners = np.tile([0, 1], (m, b, 1)) if scanners is None else np.asarray(scanners)
    allowed = losses.allowed_specimens(mode, patients, scanners)
    return losses.draw_negatives([np.random.default_rng(s) for s in seeds], allowed, valid, k, max_positions)


def random_pair(b=3, t=4, e=5, m=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(m, b, t, e, generator=g, dtype=torch.float64) for _ in range(2))


def slow_info_nce(h1, h2, valid, mode, temperature, patients=None):
    """All negatives, one anchor at a time, plain Python: h1, h2 (B, T, E)."""
    b, t, _ = h1.shape
    patients = range(b) if patients is None else patients
    total = 0.0
    for one, two in ((h1, h2), (h2, h1)):
        terms = []
        for i, j in itertools.product(range(b), range(t)):
            if not valid[i][j]:
                continue

            def cosine(x, y):
                return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))

            negatives = [
                one[p, q]
                for p, q in itertools.product(range(b), range(t))
                if valid[p][q] and (p == i and q != j if mode == "same_specimen" else patients[p] != patients[i])
            ]
            if not negatives:
                continue
            top = math.exp(cosine(one[i, j], two[i, j]) / temperature)
            rest = sum(math.exp(cosine(one[i, j], x) / temperature) for x in negatives)
            terms.append(-math.log(top / (top + rest)))
        total += sum(terms) / len(terms) / 2 if terms else 0.0
    return total


@pytest.mark.parametrize("name", ["contrastive_other_full", "contrastive_other_pad333", "contrastive_same_pad333"])
def test_info_nce_equals_the_oracle_with_gradients(oracle, name):
    c = case(oracle, name)
    h1, h2 = (tensor(c[h])[None].requires_grad_() for h in ("h1", "h2"))
    valid = ((h1 != 0).any(-1) & (h2 != 0).any(-1)).numpy()
    loss = losses.info_nce(h1, h2, draw(valid, 99, c["negatives"]), c["temperature"])
    assert loss.item() == pytest.approx(c["loss"], abs=1e-10)
    loss.sum().backward()
    torch.testing.assert_close(h1.grad[0], tensor(c["grad_h1"]), atol=1e-10, rtol=0)
    torch.testing.assert_close(h2.grad[0], tensor(c["grad_h2"]), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("name", "key", "mode", "k", "positions"),
    [
        ("contrastive_sampled", "other_K5", "other_specimens", 5, 128),
        ("contrastive_sampled", "other_K1", "other_specimens", 1, 128),
        ("contrastive_sampled", "same_K3", "same_specimen", 3, 128),
        ("contrastive_sampled", "other_K5_max_tiles4", "other_specimens", 5, 4),
        ("contrastive_other_pad42_B2", "random_values", "other_specimens", 99, 128),
    ],
)
def test_sampled_info_nce_has_the_oracle_mean(oracle, name, key, mode, k, positions):
    c = case(oracle, name)
    n = 3000
    h1, h2 = (tensor(c[h])[None].expand(n, -1, -1, -1) for h in ("h1", "h2"))
    valid = ((h1 != 0).any(-1) & (h2 != 0).any(-1)).numpy()
    values = losses.info_nce(h1, h2, draw(valid, k, mode, range(n), positions), c["temperature"])
    expected = c[key]
    se = math.hypot(values.std().item() / math.sqrt(n), expected["sd"] / math.sqrt(expected["n_seeds"]))
    assert abs(values.mean().item() - expected["mean"]) < 4 * se
    assert values.std().item() == pytest.approx(expected["sd"], rel=0.1)


@pytest.mark.parametrize("mode", ["other_specimens", "same_specimen"])
@pytest.mark.parametrize("seed", [1, 2])
def test_info_nce_equals_the_slow_sum(mode, seed):
    h1, h2 = random_pair(b=4, t=5, e=6, seed=seed)
    rng = np.random.default_rng(seed)
    valid = np.ones((1, 4, 5), dtype=bool)
    valid[0, :, -1] = False  # equal numbers, so that "all" is the same for every anchor
    patients = rng.permutation(4)[None]
    value = losses.info_nce(h1, h2, draw(valid, 99, mode, patients=patients), 0.2)
    assert value.item() == pytest.approx(slow_info_nce(h1[0], h2[0], valid[0], mode, 0.2, patients[0]), abs=1e-12)


def test_specimens_of_one_patient_are_not_negatives():
    h1, h2 = random_pair(b=4)
    valid = np.ones((1, 4, 4), dtype=bool)
    patients = np.array([[0, 0, 1, 1]])
    drawn = draw(valid, 99, patients=patients)
    value = losses.info_nce(h1, h2, drawn, 0.1)
    assert value.item() == pytest.approx(slow_info_nce(h1[0], h2[0], valid[0], "", 0.1, [0, 0, 1, 1]), abs=1e-12)
    one_patient = draw(valid, 5, patients=np.zeros((1, 4), dtype=int))
    assert losses.info_nce(h1, h2, one_patient).item() == 0


def test_negatives_are_valid_distinct_and_from_the_right_scans():
    rng = np.random.default_rng(5)
    m, b, t = 6, 6, 7
    valid = rng.random((m, b, t)) < 0.8
    scanners = rng.integers(0, 2, (m, b, 2))
    for mode in losses.NEGATIVES:
        d = draw(valid, 3, mode, seeds=range(m), scanners=scanners)
        for i, side in itertools.product(range(m), (0, 1)):
            for row in np.flatnonzero(d.anchors[i, side]):
                chosen = d.negatives[i, side, row][d.used[i, side, row]].numpy()
                assert len(set(chosen)) == len(chosen) > 0
                assert row not in chosen
                assert valid[i].ravel()[chosen].all()
                specimens = chosen // t
                if mode == "same_specimen":
                    assert (specimens == row // t).all()
                else:
                    assert (specimens != row // t).all()
                if mode == "same_scanner":
                    assert (scanners[i, specimens, side] == scanners[i, row // t, side]).all()


def test_lonely_anchor_is_dropped_not_the_loss(oracle):
    c = case(oracle, "contrastive_same_one_lonely")
    h1, h2 = (tensor(c[h])[None] for h in ("h1", "h2"))
    valid = ((h1 != 0).any(-1) & (h2 != 0).any(-1)).numpy()
    value = losses.info_nce(h1, h2, draw(valid, 3, "same_specimen"), 0.1).item()
    assert value == pytest.approx(slow_info_nce(h1[0], h2[0], valid[0], "same_specimen", 0.1), abs=1e-12)
    assert value > 0


@pytest.mark.parametrize(
    ("b", "t", "mode"), [(1, 4, "other_specimens"), (1, 1, "same_specimen"), (3, 1, "same_specimen")]
)
def test_no_negatives_gives_zero_and_finite_gradient(b, t, mode):
    h1, h2 = (h.requires_grad_() for h in random_pair(b=b, t=t))
    loss = losses.info_nce(h1, h2, draw(np.ones((1, b, t), dtype=bool), 5, mode))
    assert loss.item() == 0
    loss.sum().backward()
    assert (h1.grad == 0).all()


def test_no_valid_tiles_gives_zero():
    h1, h2 = random_pair()
    assert losses.info_nce(h1 * 0, h2 * 0, draw(np.zeros((1, 3, 4), dtype=bool), 5)).item() == 0


def test_one_tile_each_and_fewer_negatives_than_asked():
    h1, h2 = random_pair(b=3, t=1)
    drawn = draw(np.ones((1, 3, 1), dtype=bool), 5)
    assert drawn.used[0, 0].sum(-1).tolist() == [2, 2, 2]
    expected = slow_info_nce(h1[0], h2[0], [[True]] * 3, "", 0.1)
    assert losses.info_nce(h1, h2, drawn).item() == pytest.approx(expected, abs=1e-12)


def test_info_nce_by_hand():
    # Two specimens, one tile each, unit vectors at right angles, scans equal: -log(e^(1/t) / (e^(1/t) + 1)).
    h = torch.eye(2, dtype=torch.float64).view(1, 2, 1, 2)
    value = losses.info_nce(h, h * 3, draw(np.ones((1, 2, 1), dtype=bool), 5), 0.5).item()
    assert value == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-12)


def test_swapping_scans_and_permuting_tiles_change_nothing_with_all_negatives():
    h1, h2 = random_pair(b=3, t=6, e=4)
    drawn = draw(np.ones((1, 3, 6), dtype=bool), 99)
    value = losses.info_nce(h1, h2, drawn)
    torch.testing.assert_close(losses.info_nce(h2, h1, drawn), value)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses.info_nce(h1[:, :, order], h2[:, :, order], drawn), value)


def test_gathered_and_dense_similarities_agree(monkeypatch):
    h1, h2 = random_pair(b=6, t=10, e=4, m=2)
    drawn = draw(np.ones((2, 6, 10), dtype=bool), 3, seeds=(1, 2))
    dense = losses.info_nce(h1, h2, drawn)
    monkeypatch.setattr(losses, "DENSE_ANCHORS", 0)
    torch.testing.assert_close(losses.info_nce(h1, h2, drawn), dense)


def test_a_models_draws_do_not_depend_on_its_neighbours():
    valid = np.ones((3, 4, 9), dtype=bool)
    together = draw(valid, 3, seeds=(4, 5, 6), max_positions=5)
    alone = draw(valid[:1], 3, seeds=(5,), max_positions=5)
    for name in ("positions", "anchors", "negatives", "used"):
        assert torch.equal(getattr(together, name)[1], getattr(alone, name)[0])


def test_every_subset_is_equally_likely():
    m = 3000
    rng = np.random.default_rng(0)
    picks = losses._subsets(rng.random((m, 1, 1, 2)), np.full((m, 1, 1), 4), np.full((m, 1), 2))
    counts = np.unique(np.sort(picks[:, 0, 0], axis=1), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - m / 6) ** 2 / (m / 6)).sum() < 20  # chi-square with 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("case_name", ["C2", "C3"])
def test_score_losses_equal_the_oracle(oracle, case_name):
    c = oracle["score"][case_name]
    s1, s2 = tensor(c["s1"])[None], tensor(c["s2"])[None]
    assert losses.score_loss(s1, s2).item() == pytest.approx(c["mse"], abs=1e-10)
    assert losses.score_loss(s1, s2, kind="softmax_mse").item() == pytest.approx(c["mse_softmax"], abs=1e-10)
    assert losses.score_loss(s1, s2, kind="kl").item() == pytest.approx(c["kl"], abs=1e-10)
    assert losses.score_loss(s2, s1, kind="kl").item() == pytest.approx(c["kl_swapped"], abs=1e-10)


def test_logit_difference_is_blind_to_a_common_shift():
    s1 = tensor([[[1.0, 3.0], [0.0, 0.5]]])
    s2 = s1 + tensor([[[7.0], [-2.0]]])
    assert losses.score_loss(s1, s2, kind="logit_difference").item() == pytest.approx(0)
    assert losses.score_loss(s1, s2 + tensor([0.0, 2.0]), kind="logit_difference").item() == pytest.approx(4)


def test_score_loss_counts_pairs_only():
    s1, s2 = tensor([[[0.0, 0.0], [9.0, math.nan]]]), tensor([[[1.0, 3.0], [0.0, 0.0]]])
    assert losses.score_loss(s1, s2, torch.tensor([[True, False]])).item() == pytest.approx(5)
    assert losses.score_loss(s1, s2, torch.tensor([[False, False]])).item() == 0


def test_embedding_alternatives_by_hand():
    h1 = tensor([[[[1.0, 0.0], [1.0, 1.0], [5.0, 5.0]]]])
    h2 = tensor([[[[0.0, 2.0], [2.0, 2.0], [0.0, 1.0]]]])
    valid = torch.tensor([[[True, True, False]]])
    assert losses.embedding_mse(h1, h2, valid).item() == pytest.approx((2.5 + 1) / 2)
    assert losses.embedding_cosine(h1, h2, valid).item() == pytest.approx(0.5)


def test_class_weights_and_cross_entropy_equal_the_oracle(oracle):
    c = oracle["label_weight"]
    for name in ("two", "three"):
        weights = losses.class_weights(tensor(c[name]["counts"]))
        torch.testing.assert_close(weights, tensor(c[name]["weight"]), atol=1e-7, rtol=0)  # float32 there
    ce = c["ce"]
    logits = torch.cat((tensor(ce["s1"]), tensor(ce["s2"])))[None]
    labels = torch.tensor([ce["y"] * 2])
    assert losses.cross_entropy(logits, labels, tensor([ce["weight"]])).item() == pytest.approx(ce["loss"], abs=1e-10)
    even = losses.cross_entropy(logits, labels, tensor([[3.0, 3.0]])).item()
    assert even == pytest.approx(ce["loss_unweighted"], abs=1e-10)


def test_gradients_are_right():
    h1, h2 = (h.requires_grad_() for h in random_pair(b=3, t=3, e=3, m=2))
    drawn = draw(np.ones((2, 3, 3), dtype=bool), 4, seeds=(0, 1))
    assert torch.autograd.gradcheck(lambda a, b: losses.info_nce(a, b, drawn, 0.3), (h1, h2))
    assert torch.autograd.gradcheck(losses.embedding_mse, (h1, h2))
    assert torch.autograd.gradcheck(losses.embedding_cosine, (h1, h2))
    s1, s2 = h1[:, :, 0], h2[:, :, 0]
    pairs = torch.tensor([[True, False, True]] * 2)
    for kind in losses.SCORE_LOSSES:
        assert torch.autograd.gradcheck(lambda a, b, kind=kind: losses.score_loss(a, b, pairs, kind), (s1, s2))
    labels, weights = torch.tensor([[0, 1, 2], [2, 2, 0]]), tensor([[0.2, 0.3, 0.5]] * 2)
    assert torch.autograd.gradcheck(lambda a: losses.cross_entropy(a, labels, weights), (s1,))


def test_gradients_of_many_anchors_are_right(monkeypatch):
    """Fewer positions than tiles, and negatives one by one instead of all products: the same numbers and gradients."""
    h1, h2 = (h.requires_grad_() for h in random_pair(b=3, t=8, e=3, m=2))
    rngs = [np.random.default_rng(seed) for seed in (0, 1)]
    allowed = losses.allowed_specimens("other_specimens", np.arange(6).reshape(2, 3), np.zeros((2, 3, 2)))
    drawn = losses.draw_negatives(rngs, allowed, np.ones((2, 3, 8), dtype=bool), 2, 6)
    dense = losses.info_nce(h1, h2, drawn, 0.3)
    monkeypatch.setattr(losses, "DENSE_ANCHORS", 0)
    torch.testing.assert_close(losses.info_nce(h1, h2, drawn, 0.3), dense)
    assert torch.autograd.gradcheck(lambda a, b: losses.info_nce(a, b, drawn, 0.3), (h1, h2))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="logit_difference"):
        losses.score_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), kind="mae")
    with pytest.raises(ValueError, match="same_scanner"):
        losses.allowed_specimens("all", np.zeros((1, 2)), np.zeros((1, 2, 2)))
