import json

import numpy as np
import pytest
import torch
from torch import nn

from isoslide import abmil, layers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def oracle(shared):
    return json.loads((shared / "oracles/losses.json").read_text())


NAMES = {
    "encoder.0": "tile.0",
    "encoder.2": "tile_norm.0",
    "encoder.3.0": "tile.1",
    "encoder.3.2": "tile_norm.1",
    "encoder.4.0": "tile.2",
    "encoder.4.2": "tile_norm.2",
    "attention.0": "attention.0",
    "attention.2": "attention.1",
    "head.1": "head_norm",
    "head.3": "head",
}
PARTS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def oracle_state(reference):
    state = {}
    for name, values in reference.items():
        module, part = name.rsplit(".", 1)
        if part in PARTS:
            state[f"{NAMES[module]}.{PARTS[part]}"] = torch.tensor(values, dtype=torch.float64)[None]
    return state


SMALL = layers.Shape(inputs=6, outputs=2, width=4, layers=3, attention=2, dropout=0)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_state(shape, seeds=(0,), dtype=torch.float64):
    state = abmil.init(shape, generators(*seeds), dtype)
    g = torch.Generator().manual_seed(99)
    for name, value in state.items():
        if not name.endswith(".weight") or "norm" in name:
            value.add_(torch.rand(value.shape, generator=g, dtype=dtype) * 0.3)
    return state


def test_evaluation_equals_the_oracle(oracle):
    c = oracle["abmil"]
    x = torch.tensor(c["x"], dtype=torch.float64)
    rows = torch.cat([x[i, :n] for i, n in enumerate(c["lens"])])
    state = oracle_state(c["state"])
    logits = abmil.predict(state, SMALL, rows, c["lens"])
    torch.testing.assert_close(logits[0], torch.tensor(c["eval"]["logits"], dtype=torch.float64), atol=1e-10, rtol=0)
    h, scores = abmil.embed(state, SMALL, rows)
    embeddings = torch.tensor(c["eval"]["embeddings"], dtype=torch.float64)
    expected = torch.cat([embeddings[i, :n] for i, n in enumerate(c["lens"])])
    torch.testing.assert_close(h[0].T, expected, atol=1e-10, rtol=0)
    raw = torch.tensor(c["eval"]["per_tile_raw_attention_bag0"], dtype=torch.float64).flatten()
    torch.testing.assert_close(scores[0, : c["lens"][0]], raw[: c["lens"][0]], atol=1e-10, rtol=0)
    tiles = torch.tensor(c["eval"]["per_tile_logits_bag0"], dtype=torch.float64)
    torch.testing.assert_close(abmil.head(state, h[:, :, :5])[0], tiles, atol=1e-10, rtol=0)


@pytest.mark.parametrize("key", ["train_dropout0", "train_dropout0_padding_excluded"])
def test_training_pass_equals_the_oracle(oracle, key):
    c = oracle["abmil"]
    x = torch.tensor(c["x"], dtype=torch.float64)[None]
    valid = torch.arange(5)[None, None] < torch.tensor(c["lens"])[None, :, None]
    expected = c[key]
    state = oracle_state(c["state"])
    if key == "train_dropout0":  # the reference lets padding into the statistics; equal only where there is none
        single = abmil.forward(state, SMALL, x)
        assert single.logits.shape == (1, 3, 2)
        mean = state["tile_norm.0.mean"][0]
        reference = torch.tensor(expected["running_mean_after"]["encoder.2.running_mean"], dtype=torch.float64)
        torch.testing.assert_close(mean, reference, atol=1e-10, rtol=0)
        return
    out = abmil.forward(state, SMALL, x, valid)
    torch.testing.assert_close(out.logits[0], torch.tensor(expected["logits"], dtype=torch.float64), atol=1e-10, rtol=0)
    embeddings = torch.tensor(expected["embeddings"], dtype=torch.float64).permute(2, 0, 1)
    torch.testing.assert_close(out.embeddings[0], embeddings, atol=1e-10, rtol=0)
    for name, value in expected["running_after"].items():
        module, part = name.rsplit(".", 1)
        ours = state[f"{NAMES[module]}.{PARTS[part]}"][0]
        torch.testing.assert_close(ours, torch.tensor(value, dtype=torch.float64), atol=1e-10, rtol=0)


class PlainModel(nn.Module):
    """The definition written with torch.nn, one model, no padding."""

    def __init__(self, shape, state):
        super().__init__()
        sizes = [shape.inputs, *[shape.width] * shape.layers]
        self.tile = nn.Sequential(
            *(
                layer
                for i in range(shape.layers)
                for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.LeakyReLU(), nn.BatchNorm1d(sizes[i + 1]))
            )
        )
        self.attention = nn.Sequential(
            nn.Linear(shape.width, shape.attention), nn.Tanh(), nn.Linear(shape.attention, 1)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(shape.width), nn.Linear(shape.width, shape.outputs))
        self.double()
        modules = {f"tile.{i}": self.tile[3 * i] for i in range(shape.layers)}
        modules |= {f"tile_norm.{i}": self.tile[3 * i + 2] for i in range(shape.layers)}
        modules |= {"attention.0": self.attention[0], "attention.1": self.attention[2]}
        modules |= {"head_norm": self.head[0], "head": self.head[1]}
        self.named = {}
        for name, module in modules.items():
            for part, own in (("weight", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
                if hasattr(module, own):
                    getattr(module, own).data.copy_(state[f"{name}.{part}"][0])
                    self.named[f"{name}.{part}"] = getattr(module, own)

    def forward(self, x):
        g, t, f = x.shape
        h = self.tile(x.reshape(g * t, f)).view(g, t, -1)
        attention = self.attention(h).softmax(1)
        return self.head((h * attention).sum(1))


@pytest.mark.parametrize("shape", [SMALL, layers.Shape(inputs=3, outputs=3, width=5, layers=1, attention=2)])
def test_stack_equals_plain_models_with_gradients(shape):
    state = random_state(shape, (1, 2, 3))
    plain = [PlainModel(shape, {k: v[i : i + 1] for k, v in state.items()}) for i in range(3)]
    x = torch.randn(3, 4, 6, shape.inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = layers.trainable(state)
    for name in names:
        state[name].requires_grad_()
    logits = abmil.forward(state, shape, x).logits
    logits.square().sum().backward()
    for i, model in enumerate(plain):
        expected = model(x[i])
        torch.testing.assert_close(logits[i], expected, atol=1e-12, rtol=0)
        expected.square().sum().backward()
        for name in names:
            torch.testing.assert_close(state[name].grad[i], model.named[name].grad, atol=1e-10, rtol=1e-10)
        for name in set(state) - set(names):
            torch.testing.assert_close(state[name][i], model.named[name], atol=1e-12, rtol=0)


def test_masked_pass_equals_the_pass_without_padding():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    states = [random_state(SMALL, (1, 2)) for _ in range(2)]
    plain = abmil.forward(states[0], SMALL, x)
    padded = torch.cat((x, torch.full((2, 3, 2, 6), 7.0, dtype=torch.float64)), 2)
    valid = (torch.arange(7) < 5).expand(2, 3, 7)
    masked = abmil.forward(states[1], SMALL, padded, valid)
    torch.testing.assert_close(masked.logits, plain.logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(masked.embeddings[..., :5], plain.embeddings, atol=1e-12, rtol=0)
    assert (masked.embeddings[..., 5:] == 0).all()
    assert (masked.attention[..., 5:] == 0).all()
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], atol=1e-12, rtol=0)


def test_masked_gradients_are_right():
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = torch.tensor([[[True, True, False], [True, True, True]]])
    names = layers.trainable(random_state(SMALL))

    def run(*values):
        state = random_state(SMALL) | dict(zip(names, values, strict=True))
        return abmil.forward(state, SMALL, x, valid).logits

    values = [v.clone().requires_grad_() for name, v in random_state(SMALL).items() if name in names]
    assert torch.autograd.gradcheck(run, values, atol=1e-4)


def test_tile_order_and_bag_order_do_not_matter():
    state = random_state(SMALL)
    rows = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits = abmil.predict(state, SMALL, rows, [4, 5])
    order = torch.tensor([8, 4, 6, 5, 7, 2, 0, 3, 1])
    torch.testing.assert_close(abmil.predict(state, SMALL, rows[order], [5, 4]), logits[:, [1, 0]], atol=1e-12, rtol=0)


def test_big_bags_are_predicted_in_parts(monkeypatch):
    state = random_state(SMALL)
    rows = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = abmil.predict(state, SMALL, rows, [1, 8])
    monkeypatch.setattr(abmil, "PREDICTION_ROWS", 2)
    torch.testing.assert_close(abmil.predict(state, SMALL, rows, [1, 8]), whole, atol=1e-12, rtol=0)


def test_a_models_start_does_not_depend_on_its_neighbours():
    together = abmil.init(SMALL, generators(1, 2, 3))
    alone = abmil.init(SMALL, generators(2))
    for name, value in layers.single(together, 1).items():
        assert torch.equal(value, alone[name])


def test_number_of_parameters_and_spread_of_weights(oracle):
    shape = layers.Shape(inputs=1536)
    state = abmil.init(shape, generators(0))
    assert sum(state[name].numel() for name in layers.trainable(state)) == 560_643
    for part in abmil.parts(shape):
        if part.size[0] > 1 and len(part.size) == 2 and part.name != "head.weight":
            assert part.sd == (2 / sum(part.size)) ** 0.5
            assert state[part.name].std().item() == pytest.approx(part.sd, rel=0.02)


def test_dropout_factors():
    rngs = [np.random.default_rng(i) for i in range(2)]
    shared = layers.dropout_factors(rngs, 0.2, 8, 500, shared=True)
    assert torch.equal(shared[:, :4], shared[:, 4:])
    assert shared.mean().item() == pytest.approx(1, abs=0.03)
    assert set(shared.unique().tolist()) == {0, 1.25}
    independent = layers.dropout_factors([np.random.default_rng(0)], 0.5, 8, 500, shared=False)
    assert not torch.equal(independent[:, :4], independent[:, 4:])
    assert layers.dropout_factors(rngs, 0, 8, 500, shared=True) is None


def test_one_row_cannot_be_normalised():
    with pytest.raises(ValueError, match="at least two rows"):
        abmil.forward(random_state(SMALL), SMALL, torch.zeros(1, 1, 1, 6, dtype=torch.float64))
