import numpy as np
import pytest
import torch

from isoslide import aggregators, combat, layers
from isoslide.bags import Bags


def samples(sizes=(40, 60, 25), dim=7, seed=0):
    """Features (n, dim) of three scanners with their own shift and scale of every feature."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n, dim)) * rng.uniform(0.5, 2, dim) + rng.normal(0, 1.5, dim) + np.arange(dim) for n in sizes
    ]


def moments(x):
    return combat.Moments(len(x), x.mean(0), np.square(x - x.mean(0)).sum(0))


def by_the_book(parts, rounds=300):
    """Johnson et al. 2007, sections 3.1 and 3.2, without covariates: a feature and a batch at a time."""
    everything, dim = np.concatenate(parts), parts[0].shape[1]
    alpha, sigma = np.empty(dim), np.empty(dim)
    for g in range(dim):
        alpha[g] = sum(len(part) * part[:, g].mean() for part in parts) / len(everything)
        sigma[g] = np.sqrt(sum(((part[:, g] - part[:, g].mean()) ** 2).sum() for part in parts) / len(everything))
    out = []
    for part in parts:
        z = (part - alpha) / sigma
        gamma_hat, delta_hat = [z[:, g].mean() for g in range(dim)], [np.var(z[:, g], ddof=1) for g in range(dim)]
        gamma_bar, tau2 = np.mean(gamma_hat), np.var(gamma_hat, ddof=1)
        v, s2 = np.mean(delta_hat), np.var(delta_hat, ddof=1)
        lam, theta = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
        adjusted = np.empty_like(part)
        for g in range(dim):
            gamma, delta = gamma_hat[g], delta_hat[g]
            for _ in range(rounds):
                gamma = (len(z) * tau2 * gamma_hat[g] + delta * gamma_bar) / (len(z) * tau2 + delta)
                delta = (theta + 0.5 * ((z[:, g] - gamma) ** 2).sum()) / (len(z) / 2 + lam - 1)
            adjusted[:, g] = sigma[g] / np.sqrt(delta) * (z[:, g] - gamma) + alpha[g]
        out.append(adjusted)
    return out


@pytest.mark.parametrize(("sizes", "dim", "seed"), [((40, 60, 25), 7, 0), ((5, 300), 20, 1), ((2, 3, 4, 5), 3, 2)])
def test_harmonised_features_are_those_of_the_paper(sizes, dim, seed):
    parts = samples(sizes, dim, seed)
    mean, var = combat.fit([moments(part) for part in parts])
    for part, m, v, expected in zip(parts, mean, var, by_the_book(parts), strict=True):
        assert (part - m) / np.sqrt(v) == pytest.approx(expected, abs=1e-6)


def test_scanners_become_alike():
    parts = samples((4000, 6000))
    mean, var = combat.fit([moments(part) for part in parts])
    one, other = ((part - m) / np.sqrt(v) for part, m, v in zip(parts, mean, var, strict=True))
    assert one.mean(0) == pytest.approx(other.mean(0), abs=0.02)
    assert one.std(0) == pytest.approx(other.std(0), rel=0.02)


def test_few_samples_are_moved_less_than_their_means_say():
    """Ten features whose shifts scatter little: the shift of a scanner with 3 samples is shrunk towards their mean."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(3, 10)), rng.normal(size=(500, 10))]
    mean, _ = combat.fit([moments(part) for part in parts])
    assert np.ptp(mean[0]) < np.ptp(parts[0].mean(0))


def test_constant_features_stay():
    parts = [np.column_stack([part, np.full(len(part), 3.0)]) for part in samples()]
    mean, var = combat.fit([moments(part) for part in parts])
    assert (mean[:, -1] == 0).all()
    assert (var[:, -1] == 1).all()
    alone, _ = combat.fit([moments(part[:, :-1]) for part in parts])
    assert mean[:, :-1] == pytest.approx(alone)


@pytest.mark.parametrize("dim", [1, 2])
def test_one_feature_has_no_prior(dim):
    parts = [part[:, :1].repeat(dim, 1) for part in samples()]
    mean, var = combat.fit([moments(part) for part in parts])
    means = [((part - m) / np.sqrt(v)).mean(0) for part, m, v in zip(parts, mean, var, strict=True)]
    assert means[0] == pytest.approx(means[2])


def test_moments_add_up():
    parts = samples()
    whole = moments(np.concatenate(parts))
    added = moments(parts[0]) + moments(parts[1]) + moments(parts[2])
    assert added.n == whole.n
    assert added.mean == pytest.approx(whole.mean)
    assert added.squares == pytest.approx(whole.squares)


SHAPE = layers.Shape(inputs=7, outputs=2, width=6, layers=2, attention=3, dropout=0.0)


def harmonising(aggregator, n_models=2):
    shape = layers.Shape(7, 2, 8, 1 if aggregator in ("mean", "transmil") else 2, 4, 0.0, aggregator)
    state = aggregators.init(shape, [torch.Generator().manual_seed(i) for i in range(n_models)])
    mean, var = combat.fit([moments(part) for part in samples()])
    for name, value in zip(combat.NAMES, (mean, var), strict=True):
        state[name] = torch.from_numpy(value).float().expand(n_models, -1, -1).clone()
    return shape, state


@pytest.mark.parametrize("aggregator", list(aggregators.AGGREGATORS))
def test_a_model_for_a_scanner_is_the_model_on_harmonised_features(aggregator):
    shape, state = harmonising(aggregator)
    x = torch.from_numpy(samples()[1]).float()
    plain = {name: value for name, value in state.items() if name not in combat.NAMES}
    harmonised = combat.apply(state, x[None, None].expand(2, 1, -1, -1), np.ones((2, 1), dtype=int))[0, 0]
    expected = aggregators.predict(plain, shape, harmonised, [60])
    torch.testing.assert_close(
        aggregators.predict(combat.for_scanner(state, 1), shape, x, [60]), expected, atol=1e-5, rtol=1e-4
    )
    unseen = combat.for_scanner(state, combat.UNSEEN)
    assert torch.equal(aggregators.predict(unseen, shape, x, [60]), aggregators.predict(plain, shape, x, [60]))


def test_scans_are_predicted_by_their_scanner():
    shape, state = harmonising("abmil")
    parts = samples()
    x = np.concatenate(parts).astype(np.float32)
    bags = Bags(["a", "b", "c"], x, np.array([0, 40, 100, 125]), np.arange(125), [""] * 3, [""] * 3)
    codes = np.array([2, combat.UNSEEN, 0])
    logits = combat.predict_scans(state, shape, bags.tensor(), bags, np.array([2, 0, 1]), codes)
    for place, (scan, code) in enumerate(zip((2, 0, 1), codes, strict=True)):
        alone = combat.for_scanner(state, code)
        expected = aggregators.predict(alone, shape, torch.from_numpy(parts[scan]).float(), [len(parts[scan])])
        torch.testing.assert_close(logits[:, place], expected[:, 0])


def test_features_of_other_arms_are_not_touched():
    x = torch.ones(1, 1, 2, 7)
    assert combat.apply({}, x, np.zeros((1, 1), dtype=int)) is x
    state = {"tile.0.weight": x}
    assert combat.for_scanner(state, 0) is state


@pytest.mark.parametrize("few", [np.array([[3.0, -1, 4]]), np.array([[3.0, -1, 4]] * 5)])
def test_a_scanner_whose_variance_cannot_be_told_is_moved_and_not_scaled(few):
    """One tile, or tiles all alike, of a whole scanner: by hand, its mean goes to that of all samples."""
    many = np.random.default_rng(0).normal(size=(50, 3))
    sums = [combat.Moments(len(x), x.mean(0), np.square(x - x.mean(0)).sum(0)) for x in (many, few)]
    mean, var = combat.fit(sums)
    np.testing.assert_allclose(var[1], 1)
    np.testing.assert_allclose(few.mean(0) - mean[1], np.concatenate([many, few]).mean(0))
    assert np.isfinite(mean).all()
    assert np.isfinite(var).all()
