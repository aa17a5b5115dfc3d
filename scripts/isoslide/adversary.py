"""Rival arm `adversarial`: a network that tells the scanner from the bag, and a task model that is trained to fool it.

The attention-weighted mean of a bag's tile embeddings goes through a gradient reversal into Linear, LeakyReLU, Linear
on the scanners; cross-entropy (Ganin et al. 2016). The network is trained on the loss as it is, the task model receives
its gradient times -λ. It is dropped from the model when training is done.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoslide.layers import Output, Shape, State, full, linear, linear_parts, start

PREFIX = "scanner."


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: float) -> Tensor:
        context.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.weight * gradient, None


def init(shape: Shape, n_scanners: int, generators: Sequence[torch.Generator]) -> State:
    """Return the parameters of the scanner networks, stacked over one per generator."""
    parts = linear_parts(f"{PREFIX}0", shape.width, shape.width) + linear_parts(f"{PREFIX}1", shape.width, n_scanners)
    return start(parts, generators)


def loss(state: State, out: Output, scanners: Tensor, weight: float) -> Tensor:
    """Return the mean cross-entropy (M,) of the scanner networks; what flows back into the task models is reversed.

    Args:
        state: with the parameters of `init`.
        out: of the forward pass.
        scanners: (M, G) codes.
        weight: λ; the gradient that leaves the scanner networks is multiplied by -λ.
    """
    bags = torch.einsum("megt,mgt->meg", full(out.embeddings), full(out.attention))
    hidden = F.leaky_relu(linear(state, f"{PREFIX}0", _Reverse.apply(bags, weight)))
    logits = linear(state, f"{PREFIX}1", hidden)
    return F.cross_entropy(logits, scanners, reduction="none").mean(1)


def without(state: State) -> State:
    """Return the state of the task models alone."""
    return {name: value for name, value in state.items() if not name.startswith(PREFIX)}
