import math

import pytest
import torch

from isoslide import adversary, aggregators, layers
from isoslide.layers import Output

SHAPE = layers.Shape(inputs=5, outputs=2, width=4, layers=1, attention=3, dropout=0.0)


def start(n_models=2, n_scanners=3, dtype=torch.float64):
    generators = [torch.Generator().manual_seed(i) for i in range(n_models)]
    state = aggregators.init(SHAPE, generators, dtype)
    added = adversary.init(SHAPE, n_scanners, generators)
    return state | {name: value.to(dtype) for name, value in added.items()}


def output(m=2, g=6, t=5):
    generator = torch.Generator().manual_seed(9)
    embeddings = torch.randn(m, SHAPE.width, g, t, dtype=torch.float64, generator=generator)
    attention = torch.rand(m, g, t, dtype=torch.float64, generator=generator).softmax(-1)
    return Output(torch.zeros(m, g, 2), embeddings, attention)


CODES = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 0, 1, 0, 0]])


def test_loss_is_the_cross_entropy_of_the_scanner_bag_by_bag():
    state, out = start(), output()
    found = adversary.loss(state, out, CODES, 1.0)
    for m in range(2):
        total = 0.0
        for g in range(6):
            bag = sum(out.attention[m, g, t] * out.embeddings[m, :, g, t] for t in range(5))
            hidden = state["scanner.0.weight"][m] @ bag + state["scanner.0.bias"][m]
            hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
            logits = state["scanner.1.weight"][m] @ hidden + state["scanner.1.bias"][m]
            total += math.log(sum(math.exp(v) for v in logits.tolist())) - logits[CODES[m, g]].item()
        assert found[m].item() == pytest.approx(total / 6, abs=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_the_gradient_is_reversed_for_the_model_and_not_for_the_network(weight):
    """Numerically: the embeddings get -λ times the derivative of the loss, the network the derivative."""
    state, out = start(), output()
    embeddings = out.embeddings.clone().requires_grad_()
    own = state["scanner.0.weight"].requires_grad_()
    moved = Output(out.logits, embeddings, out.attention)
    adversary.loss(state, moved, CODES, weight).sum().backward()
    step = 1e-6
    for index in [(0, 1, 2, 3), (1, 3, 5, 0)]:
        up, down = out.embeddings.clone(), out.embeddings.clone()
        up[index] += step
        down[index] -= step
        with torch.no_grad():
            up, down = (
                adversary.loss(state, Output(out.logits, e, out.attention), CODES, 1.0).sum() for e in (up, down)
            )
        assert embeddings.grad[index].item() == pytest.approx(-weight * ((up - down) / (2 * step)).item(), abs=1e-8)
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            shifted = own.clone()
            shifted[1, 2, 3] += sign * step
            values.append(adversary.loss(state | {"scanner.0.weight": shifted}, out, CODES, 1.0).sum())
    assert own.grad[1, 2, 3].item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), abs=1e-8)


def test_the_task_model_starts_as_without_it():
    plain = aggregators.init(SHAPE, [torch.Generator().manual_seed(i) for i in range(2)], torch.float64)
    state = adversary.without(start())
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
