"""Task models that pool a bag of tile embeddings by one weight per tile: attention, gated attention, or the plain mean.

`abmil`, the default: tile network of `layers` x [Linear, LeakyReLU, BatchNorm]; attention Linear, tanh, Linear, softmax
over the tiles of the bag; head BatchNorm, dropout, Linear on the attention-weighted sum (Ilse et al. 2018; sizes follow
the public code of the group that published the robustness losses). `gated_abmil`: the tanh of the attention is
multiplied by the sigmoid of a second Linear (same paper). `clam_sb`: gated attention, and classifiers of tiles whose
loss is in `clam.py` (Lu et al. 2021). `mean`: one Linear and BatchNorm without LeakyReLU, every tile weighs the same,
same head: a linear function of the bag's mean feature, the floor that attention has to beat.

The tile embeddings are those after the last BatchNorm, before attention.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isoslide.layers import (
    Output,
    Part,
    Shape,
    State,
    batch_norm,
    full,
    linear,
    linear_parts,
    n_models,
    norm_parts,
    running_norm,
    start,
)

SLOPE = 0.01  # of LeakyReLU
PREDICTION_ROWS = 65_536  # models x tiles that pass the tile network at once: bounds memory on big slides
POOLED_VALUES = 2**28  # models x width x tiles whose embeddings are kept at once: 1 GiB of float32


def parts(shape: Shape) -> list[Part]:
    """Return the tensors of a model: weights (out, in), biases and BatchNorm vectors (out,)."""
    sizes = [shape.inputs, *[shape.width] * _depth(shape)]
    found: list[Part] = []
    for i in range(_depth(shape)):
        found += linear_parts(f"tile.{i}", sizes[i], sizes[i + 1])
    if shape.aggregator != "mean":
        found += linear_parts("attention.0", shape.width, shape.attention)
        found += linear_parts("attention.1", shape.attention, 1)
    found += linear_parts("head", shape.width, shape.outputs)
    if _gated(shape):
        found += linear_parts("attention.gate", shape.width, shape.attention)
    if shape.aggregator == "clam_sb":
        found += linear_parts("instance", shape.width, 2 * shape.outputs)
    for name in [*(f"tile_norm.{i}" for i in range(_depth(shape))), "head_norm"]:
        found += norm_parts(name, shape.width)
    return found


def init(shape: Shape, generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float32) -> State:
    """Return fresh parameters and running statistics, stacked over one model per generator."""
    return start(parts(shape), generators, dtype)


def forward(
    state: State,
    shape: Shape,
    x: Tensor,
    valid: Tensor | None = None,
    keep: Tensor | None = None,
) -> Output:
    """Run a training step's forward pass: batch statistics, and the running ones updated in place.

    Padding rows enter neither the statistics (they do in the reference) nor the attention.

    Args:
        state: stacked parameters and running statistics.
        shape: sizes of the models.
        x: (M, G, T, inputs) features.
        valid: (M, G, T) bool, False for padding; all valid where None.
        keep: (M, G, E) dropout factors of the head, 0 or 1 / (1 - dropout); no dropout where None.
    """
    m, g, t, _ = x.shape
    weights = None if valid is None or bool(valid.all()) else full(valid.reshape(m, 1, g * t).to(x.dtype))
    h = x.reshape(m, g * t, -1).transpose(1, 2)
    for i in range(_depth(shape)):
        h = batch_norm(state, f"tile_norm.{i}", _activation(shape, linear(state, f"tile.{i}", h)), weights)
    if weights is not None:
        h = h * weights.to(h.dtype)
    scores = _attention_scores(state, shape, h).view(m, g, t)
    if weights is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    attention = full(scores).softmax(-1)
    embeddings = h.view(m, shape.width, g, t)
    bags = _weighted_sum(embeddings, attention)
    bags = batch_norm(state, "head_norm", bags, None)
    if keep is not None:
        bags = bags * keep.transpose(1, 2)
    return Output(linear(state, "head", bags).transpose(1, 2), embeddings, attention)


@torch.no_grad()
def predict(state: State, shape: Shape, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits of whole bags with the running statistics, all models on the same bags.

    Args:
        state: stacked parameters and running statistics.
        shape: sizes of the models.
        x: (rows, inputs) features of all bags, one after another.
        sizes: number of rows of each of G bags, at least 1.

    Returns:
        (M, G, C) logits.
    """
    at_once = max(1, POOLED_VALUES // (shape.width * len(x)))
    if at_once < n_models(state):
        groups = [
            {name: value[first : first + at_once] for name, value in state.items()}
            for first in range(0, n_models(state), at_once)
        ]
        return torch.cat([predict(group, shape, x, sizes) for group in groups])
    pieces = [embed(state, shape, piece) for piece in x.split(max(1, PREDICTION_ROWS // n_models(state)))]
    h = torch.cat([piece[0] for piece in pieces], 2)
    scores = torch.cat([piece[1] for piece in pieces], 1)
    bags, first = [], 0
    for size in sizes:
        attention = scores[:, first : first + size].softmax(-1)
        bags.append(torch.bmm(h[:, :, first : first + size], attention.unsqueeze(-1)))
        first += size
    return head(state, torch.cat(bags, 2))


@torch.no_grad()
def tile_values(state: State, shape: Shape, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention (M, n), summing to 1, and the logits (M, n, C) of each tile as a bag of its own.

    Args:
        state: stacked parameters and running statistics.
        shape: sizes of the models.
        x: (n, inputs) features of one bag.
    """
    pieces = [embed(state, shape, piece) for piece in x.split(max(1, PREDICTION_ROWS // n_models(state)))]
    scores = torch.cat([piece[1] for piece in pieces], 1)
    return scores.softmax(-1), torch.cat([head(state, piece[0]) for piece in pieces], 1)


def embed(state: State, shape: Shape, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return tile embeddings (M, E, rows) and raw attention (M, rows) of features (rows, inputs), in evaluation."""
    h = x.to(state["tile.0.weight"].dtype).T.expand(n_models(state), -1, -1)
    for i in range(_depth(shape)):
        h = running_norm(state, f"tile_norm.{i}", _activation(shape, linear(state, f"tile.{i}", h)))
    return h, _attention_scores(state, shape, h)


def head(state: State, bags: Tensor) -> Tensor:
    """Return the logits (M, G, C) of bag vectors (M, E, G), in evaluation."""
    return linear(state, "head", running_norm(state, "head_norm", bags)).transpose(1, 2)


def _weighted_sum(embeddings: Tensor, attention: Tensor) -> Tensor:
    """Return bag vectors (M, E, G) from (M, E, G, T) and (M, G, T)."""
    if embeddings.dtype == torch.bfloat16:  # there einsum copies the embeddings: 7 % of a step
        return (embeddings * attention.to(embeddings.dtype).unsqueeze(1)).sum(-1, dtype=torch.float32)
    return torch.einsum("megt,mgt->meg", embeddings, attention)


def _depth(shape: Shape) -> int:
    return 1 if shape.aggregator == "mean" else shape.layers


def _gated(shape: Shape) -> bool:
    return shape.aggregator in ("gated_abmil", "clam_sb")


def _activation(shape: Shape, h: Tensor) -> Tensor:
    return h if shape.aggregator == "mean" else F.leaky_relu_(h, SLOPE)


def _attention_scores(state: State, shape: Shape, h: Tensor) -> Tensor:
    """Return (M, rows) of (M, E, rows); 0 for the mean, so that the softmax weighs all tiles alike."""
    if shape.aggregator == "mean":
        return h.new_zeros(h.shape[0], h.shape[2])
    hidden = torch.tanh(linear(state, "attention.0", h))
    if _gated(shape):
        hidden = hidden * torch.sigmoid(linear(state, "attention.gate", h))
    return linear(state, "attention.1", hidden).squeeze(1)
