"""Every aggregator against one model written plainly with torch.nn, without stacking, padding or chunks."""

import math
import resource

import numpy as np
import pytest
import torch
from torch import nn

from isoslide import abmil, aggregators, clam, layers, transmil

torch.set_num_threads(1)

NAMES = ("abmil", "gated_abmil", "clam_sb", "transmil", "mean")
F64 = torch.float64


def shape_of(name, **changes):
    return layers.Shape(
        **{"inputs": 6, "outputs": 2, "width": 16, "layers": 2, "attention": 5, "dropout": 0, "aggregator": name}
        | changes
    )


def random_state(shape, n_models=1, dtype=F64):
    """Parameters none of which is 0 or 1."""
    state = aggregators.init(shape, [torch.Generator().manual_seed(i) for i in range(n_models)], dtype)
    g = torch.Generator().manual_seed(99)
    return {name: value + 0.3 * torch.rand(value.shape, generator=g, dtype=dtype) for name, value in state.items()}


def randn(*size, seed=0):
    return torch.randn(*size, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    """One model; `values` holds its parameters by our names, `training` chooses batch or running statistics."""

    def __init__(self, shape, state):
        super().__init__()
        self.shape = shape
        trained = layers.trainable(state)
        self.values = nn.ParameterDict(
            {k.replace(".", "-"): nn.Parameter(v[0].clone(), requires_grad=k in trained) for k, v in state.items()}
        )

    def get(self, name):
        return self.values[name.replace(".", "-")]

    def linear(self, name, h):
        return h @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def norm(self, name, h):
        if self.training:
            mean, var = h.mean(0), h.var(0, unbiased=False)
        else:
            mean, var = self.get(f"{name}.mean"), self.get(f"{name}.var")
        return (h - mean) / (var + 1e-5).sqrt() * self.get(f"{name}.weight") + self.get(f"{name}.bias")


class PlainPooling(Plain):
    def forward(self, x):
        """Logits, tile embeddings and attention of bags (G, T, inputs)."""
        kind, h = self.shape.aggregator, x.flatten(0, 1)
        for i in range(1 if kind == "mean" else self.shape.layers):
            h = self.linear(f"tile.{i}", h)
            h = self.norm(f"tile_norm.{i}", h if kind == "mean" else torch.where(h > 0, h, 0.01 * h))
        h = h.unflatten(0, x.shape[:2])
        if kind == "mean":
            attention = torch.full(x.shape[:2], 1 / x.shape[1], dtype=F64)
        else:
            hidden = self.linear("attention.0", h).tanh()
            if kind != "abmil":
                hidden = hidden * self.linear("attention.gate", h).sigmoid()
            attention = self.linear("attention.1", hidden).squeeze(-1).softmax(-1)
        bags = self.norm("head_norm", (h * attention.unsqueeze(-1)).sum(1))
        return self.linear("head", bags), h, attention


class PlainTransmil(Plain):
    def layer_norm(self, name, h):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return h * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def attend(self, i, h):
        n, e = h.shape
        d = e // 8
        q, k, v = (part.view(n, 8, d).transpose(0, 1) for part in (h @ self.get(f"qkv.{i}.weight").T).split(e, 1))
        m = min(self.shape.attention, n)
        runs = [[j for j in range(n) if j * m // n == r] for r in range(m)]
        heads, rows = [], []
        for a in range(8):
            ql, kl = (torch.stack([part[a][run].mean(0) for run in runs]) for part in (q, k))
            one = (q[a] @ kl.T / math.sqrt(d)).softmax(-1)
            two = (ql @ kl.T / math.sqrt(d)).softmax(-1)
            three = (ql @ k[a].T / math.sqrt(d)).softmax(-1)
            z = two.T / (two.sum(0).max() * two.sum(1).max())
            for _ in range(6):
                az = two @ z
                eye = torch.eye(m, dtype=F64)
                z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
            full = one @ z @ three
            taps = self.get(f"values.{i}")[a]
            near = torch.stack(
                [sum(taps[16 + j - t] * v[a][j] for j in range(max(0, t - 16), min(n, t + 17))) for t in range(n)]
            )
            heads.append(full @ v[a] + near)
            rows.append(full[0])
        return self.linear(f"out.{i}", torch.cat(heads, 1)), torch.stack(rows).mean(0)

    def ppeg(self, h, side):
        grid = h.T.reshape(1, -1, side, side)
        out = grid
        for k in (7, 5, 3):
            weight = self.get(f"ppeg.{k}.weight").unsqueeze(1)
            out = out + nn.functional.conv2d(grid, weight, self.get(f"ppeg.{k}.bias"), padding=k // 2, groups=len(h.T))
        return out.flatten(2)[0].T

    def bag(self, x):
        tiles = self.linear("tile.0", x).relu()
        n, side = len(x), math.ceil(math.sqrt(len(x)))
        h = torch.cat((self.get("token")[None], tiles, tiles[: side * side - n]))
        h = h + self.attend(0, self.layer_norm("norm.0", h))[0]
        h = torch.cat((h[:1], self.ppeg(h[1:], side)))
        change, row = self.attend(1, self.layer_norm("norm.1", h))
        logits = self.linear("head", self.layer_norm("norm.2", (h + change)[0]))
        attention = row[1 : n + 1].clone()
        attention[: side * side - n] += row[n + 1 :]
        attention = attention.detach().clamp(min=0)
        return logits, tiles, attention / attention.sum()

    def forward(self, x):
        return tuple(torch.stack(part) for part in zip(*map(self.bag, x), strict=True))


def plain_of(shape, state):
    return (PlainTransmil if shape.aggregator == "transmil" else PlainPooling)(shape, state)


@pytest.mark.parametrize("name", NAMES)
def test_stack_equals_plain_models_with_gradients(name):
    shape = shape_of(name, outputs=3)
    state = random_state(shape, 2)
    plain = [plain_of(shape, layers.single(state, i)) for i in range(2)]
    for parameter in layers.trainable(state):
        state[parameter].requires_grad_()
    x, weight = randn(2, 3, 7, 6), randn(1, 16, 3, 7, seed=5)
    out = aggregators.forward(state, shape, x)
    (out.logits.square().sum() + (out.embeddings * weight).sum()).backward()
    for i, model in enumerate(plain):
        logits, embeddings, attention = model(x[i])
        torch.testing.assert_close(out.logits[i], logits, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(out.embeddings[i], embeddings.permute(2, 0, 1), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(out.attention[i], attention, atol=1e-10, rtol=1e-10)
        (logits.square().sum() + (embeddings.permute(2, 0, 1) * weight[0]).sum()).backward()
        for parameter in layers.trainable(state):
            if parameter.startswith("instance"):
                continue
            expected = model.get(parameter).grad
            torch.testing.assert_close(state[parameter].grad[i], expected, atol=1e-8, rtol=1e-7, msg=parameter)


@pytest.mark.parametrize("name", NAMES)
def test_whole_bags_and_tiles_alone_equal_the_plain_model(name, monkeypatch):
    for module, bound in ((abmil, "PREDICTION_ROWS"), (transmil, "CHUNK_ROWS"), (transmil, "ONE_TILE_BAGS")):
        monkeypatch.setattr(module, bound, 4)
    monkeypatch.setattr(abmil, "POOLED_VALUES", 1)
    shape = shape_of(name)
    state = random_state(shape, 2)
    bags = [randn(n, 6, seed=n) for n in (1, 9, 3, 30)]
    logits = aggregators.predict(state, shape, torch.cat(bags), [len(bag) for bag in bags])
    for i in range(2):
        model = plain_of(shape, layers.single(state, i)).eval()
        for j, bag in enumerate(bags):
            torch.testing.assert_close(logits[i, j], model(bag[None])[0][0], atol=1e-9, rtol=1e-9)
        attention, alone = aggregators.tile_values(state, shape, bags[1])
        torch.testing.assert_close(attention[i], model(bags[1][None])[2][0], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(alone[i], model(bags[1][:, None])[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    shape = shape_of(name)
    sizes = torch.tensor([[7, 2, 5], [4, 9, 3]])
    valid = torch.arange(9) < sizes.unsqueeze(-1)
    x = randn(2, 3, 9, 6)
    results = []
    for extra in (0, 8):
        state = random_state(shape, 2)
        names = layers.trainable(state)
        for parameter in names:
            state[parameter].requires_grad_()
        filled = torch.where(valid.unsqueeze(-1), x, 7.0)
        padded = torch.cat((filled, torch.full((2, 3, extra, 6), -9.0, dtype=F64)), 2)
        out = aggregators.forward(state, shape, padded, torch.cat((valid, valid.new_zeros(2, 3, extra)), 2))
        out.logits.square().sum().backward()
        results.append(
            (out.logits, out.attention[..., :9], {k: state[k].grad for k in names if state[k].grad is not None})
        )
        assert (out.attention[..., :9][~valid] == 0).all()
        assert out.attention.sum(-1).detach().numpy() == pytest.approx(1)
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=1e-9)
    if name == "transmil":  # no batch statistics: each bag for itself
        for i in range(2):
            for j in range(3):
                bag = x[i : i + 1, j : j + 1, : sizes[i, j]]
                alone = aggregators.forward(layers.single(random_state(shape, 2), i), shape, bag)
                torch.testing.assert_close(alone.logits[0, 0], results[0][0][i, j].detach(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tiles(name):
    """No matter to the pooling ones; to TransMIL it matters, and batches are put in order of tile id for it."""
    shape = shape_of(name)
    x, order = randn(1, 2, 10, 6), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    one, other = (aggregators.forward(random_state(shape), shape, bags).logits for bags in (x, x[:, :, order]))
    assert torch.allclose(one, other, atol=1e-10) == (name not in aggregators.ORDERED)


def test_rows_in_order():
    rows = np.array([[[7, 3, 5, 0], [2, 1, 0, 0]]])
    valid = np.array([[[True, True, True, False], [True, True, True, False]]])
    assert aggregators.in_order(rows, valid).tolist() == [[[3, 5, 7, 0], [0, 1, 2, 0]]]


@pytest.mark.parametrize("name", NAMES)
def test_a_models_start_does_not_depend_on_its_neighbours(name):
    shape = shape_of(name)
    together = aggregators.init(shape, [torch.Generator().manual_seed(i) for i in range(3)])
    alone = aggregators.init(shape, [torch.Generator().manual_seed(2)])
    for parameter, value in layers.single(together, 2).items():
        assert torch.equal(value, alone[parameter])
        assert not parameter.endswith("weight") or "norm" in parameter or value.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_half_the_bits_change_little(name):
    """bfloat16 keeps 8 bits of a number: logits move by under 3 % of their spread over bags."""
    shape = shape_of(name, inputs=64, width=64, layers=3, attention=32)
    state = aggregators.init(shape, [torch.Generator().manual_seed(0)])
    x = randn(1, 16, 64, 64).float() + randn(1, 16, 1, 64, seed=3).float()
    exact = aggregators.forward(dict(state), shape, x)
    rough = aggregators.forward(dict(state), shape, x.bfloat16())
    assert rough.logits.dtype == rough.attention.dtype == torch.float32
    assert (rough.logits - exact.logits).abs().max() < 0.03 * exact.logits.std()


def test_with_enough_landmarks_attention_is_nearly_exact():
    shape = shape_of("transmil", attention=200)
    state = random_state(shape)
    h = randn(1, 1, 10, 16)
    tokens = transmil._tokens(torch.ones(1, 1, 9, dtype=torch.bool), 200)
    out, row = transmil._attend(state, 0, h, tokens)
    q, k, v = (part.view(10, 8, 2).transpose(0, 1) for part in (h[0, 0] @ state["qkv.0.weight"][0].T).split(16, 1))
    exact = (q @ k.transpose(1, 2) / math.sqrt(2)).softmax(-1)
    torch.testing.assert_close(row[0, 0], exact[:, 0].mean(0), atol=3e-3, rtol=0)


def test_width_of_transmil_is_a_multiple_of_its_heads():
    with pytest.raises(ValueError, match="width 20 is no multiple of 8"):
        aggregators.init(shape_of("transmil", width=20), [torch.Generator()])


def test_the_mean_is_linear_in_the_mean_feature():
    shape = shape_of("mean")
    state = random_state(shape)
    x = randn(12, 6)
    whole = aggregators.predict(state, shape, x, [12])
    torch.testing.assert_close(whole, aggregators.predict(state, shape, x.mean(0, keepdim=True), [1]))


def plain_instance_loss(state, embeddings, attention, labels, k):
    """One model, bag by bag: embeddings (G, T, E) without padding, attention (G, T)."""
    losses = []
    for h, a, label in zip(embeddings, attention, labels, strict=True):
        order = sorted(range(len(a)), key=lambda i: -float(a[i]))
        n = min(k, len(order))
        weight = state["instance.weight"][2 * label : 2 * label + 2]
        bias = state["instance.bias"][2 * label : 2 * label + 2]
        each = [-(h[i] @ weight.T + bias).log_softmax(-1)[1] for i in order[:n]]
        each += [-(h[i] @ weight.T + bias).log_softmax(-1)[0] for i in order[::-1][:n]]
        losses.append(sum(each) / (2 * n))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("k", [1, 2, 8])  # 8 of bags of 7, 3 and 1
def test_instance_loss_equals_the_plain_one_in_small_bags_too(k):
    shape = shape_of("clam_sb", outputs=3)
    state = random_state(shape, 2)
    sizes = [[7, 3, 1], [2, 7, 5]]
    valid = torch.arange(7) < torch.tensor(sizes).unsqueeze(-1)
    labels = torch.tensor([[0, 2, 1], [1, 1, 0]])
    embeddings = randn(2, 16, 3, 7)
    attention = randn(2, 3, 7, seed=1).masked_fill(~valid, float("-inf")).softmax(-1)
    out = layers.Output(torch.zeros(2, 3, 3), embeddings, attention)
    loss = clam.instance_loss(state, out, labels, valid, k)
    for i in range(2):
        single = {name: value[0] for name, value in layers.single(state, i).items()}
        bags = [embeddings[i, :, j, :n].T for j, n in enumerate(sizes[i])]
        weights = [attention[i, j, :n] for j, n in enumerate(sizes[i])]
        expected = plain_instance_loss(single, bags, weights, labels[i].tolist(), k)
        assert float(loss[i]) == pytest.approx(float(expected), rel=1e-5)


def test_instance_classifiers_that_know_nothing_have_loss_ln_2():
    shape = shape_of("clam_sb")
    state = random_state(shape)
    state |= {name: torch.zeros_like(state[name]) for name in ("instance.weight", "instance.bias")}
    out = aggregators.forward(state, shape, randn(1, 2, 3, 6))
    loss = clam.instance_loss(state, out, torch.tensor([[0, 1]]), torch.ones(1, 2, 3, dtype=torch.bool), 8)
    assert loss.item() == pytest.approx(math.log(2))


def test_memory_of_a_big_bag_is_planned_for():
    """A sixteenth of the bag of complaint I2; the whole one is measured by scripts/benchmark_training.py."""
    shape = layers.Shape(inputs=64, aggregator="transmil")
    state = aggregators.init(shape, [torch.Generator().manual_seed(0)])
    x = torch.randn(6_250, 64)
    aggregators.predict(state, shape, x[:100], [100])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert torch.isfinite(aggregators.predict(state, shape, x, [len(x)])).all()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < transmil.memory(shape, len(x))
