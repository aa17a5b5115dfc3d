"""Optimisers by name, each with its course of the learning rate, for parameters with a leading model axis.

`sgd_onecycle` follows the public code of the authors' group: SGD, one-cycle learning rate (a 25th of the highest at the
start, highest at 30 % of the steps, a 12,500th at the end; momentum 0.95, 0.85, 0.95). `adamw_cosine`: AdamW
(Loshchilov and Hutter 2019), its learning rate rising in a straight line over the first 5 % of the steps, then falling
to 0 along half a cosine. Both update each number by itself, so a model's course does not depend on its neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

WARM_UP = 0.05  # of the steps of adamw_cosine

Built = tuple[Optimizer, LRScheduler]


def build(parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> Built:
    """Return optimiser and schedule as the block `training` of the config names them."""
    return OPTIMISERS[settings["optimiser"]](parameters, settings)


def clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale each model's gradient to at most the norm `limit`; return the norms (M,) before."""
    grads = [parameter.grad for parameter in parameters]
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1)
    if not bool((factors == 1).all()):
        for grad in grads:
            grad.mul_(factors.view(-1, *[1] * (grad.dim() - 1)))
    return norms


def _sgd_onecycle(parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> Built:
    highest = settings["learning_rate"]
    optimiser = torch.optim.SGD(
        parameters, lr=highest, momentum=0.95, weight_decay=settings["weight_decay"], fused=True
    )
    return optimiser, OneCycleLR(optimiser, highest, total_steps=settings["steps"], div_factor=25, final_div_factor=500)


def _adamw_cosine(parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> Built:
    steps = settings["steps"]
    rise = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1))) / 2

    optimiser = torch.optim.AdamW(
        parameters, lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
    )
    return optimiser, LambdaLR(optimiser, share)


OPTIMISERS: Mapping[str, Callable[[Sequence[Tensor], Mapping[str, Any]], Built]] = {
    "sgd_onecycle": _sgd_onecycle,
    "adamw_cosine": _adamw_cosine,
}
