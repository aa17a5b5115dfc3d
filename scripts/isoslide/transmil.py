"""TransMIL: tiles attend to each other and to a class token, in linear time, for M models side by side.

Shao et al. 2021 (TransMIL): Linear and ReLU per tile; the tiles, in order of tile id and filled up to a square by
repeating the first, after a class token; attention layer; depthwise convolutions over the square (PPEG); attention
layer; LayerNorm and Linear on the class token. Attention is Nystrom's approximation (Xiong et al. 2021) through
`attention` landmarks, the means of equally long runs of tokens, with 8 heads and a depthwise convolution of the values.

Differences from the authors' code, on purpose: runs of tokens are equally long to within one token, where theirs fills
up with zero tokens that take part in the attention; with no more tokens than landmarks attention is therefore exact.
Padding takes no part. The pseudo-inverse starts from each matrix's own norms, theirs from the largest of the batch, so
that a bag's score does not depend on its neighbours. Dropout is that of the head alone.

The tile embeddings that the embedding loss compares are those after the first Linear and ReLU: of the tile alone. The
attention shown is the class token's to each tile in the last layer, mean over heads; the approximation can be negative,
which counts as 0. One-tile scores are those of bags of one tile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isoslide.layers import (
    Output,
    Part,
    Shape,
    State,
    full,
    layer_norm,
    linear,
    linear_parts,
    n_models,
    norm_parts,
    single,
    start,
)

HEADS = 8
TAPS = 33  # of the convolution of the values along the tokens
KERNELS = (7, 5, 3)  # of the convolutions over the square
INVERSE_STEPS = 6
CHUNK_ROWS = 65_536  # tiles that pass the first layer at once in evaluation
ONE_TILE_BAGS = 4_096  # models x bags of one tile at once


@dataclass(frozen=True)
class _Tokens:
    """Where the tokens of each bag lie; L tokens at most, the class token first, padding last.

    Attributes:
        source: (M, G, L - 1) tile of each token.
        side: (M, G) tiles of a side of the bag's square.
        valid: (M, G, L) bool.
        segment: (M, G, L) landmark of each token.
        n_landmarks: (M, G).
    """

    source: Tensor
    side: Tensor
    valid: Tensor
    segment: Tensor
    n_landmarks: Tensor


def parts(shape: Shape) -> list[Part]:
    """Return the tensors of a model.

    Raises:
        ValueError: if 8 heads do not divide the width.
    """
    if shape.width % HEADS:
        raise ValueError(f"aggregator transmil has {HEADS} heads: width {shape.width} is no multiple of {HEADS}")
    found = [*linear_parts("tile.0", shape.inputs, shape.width), Part("token", (shape.width,), sd=1.0)]
    for i in range(2):
        found += norm_parts(f"norm.{i}", shape.width, running=False)
        found += linear_parts(f"qkv.{i}", shape.width, 3 * shape.width, bias=False)
        found.append(Part(f"values.{i}", (HEADS, TAPS), sd=(1 / (3 * TAPS)) ** 0.5))
        found += linear_parts(f"out.{i}", shape.width, shape.width)
    for size in KERNELS:
        found.append(Part(f"ppeg.{size}.weight", (shape.width, size, size), sd=(1 / 3) ** 0.5 / size))
        found.append(Part(f"ppeg.{size}.bias", (shape.width,)))
    return [
        *found,
        *norm_parts("norm.2", shape.width, running=False),
        *linear_parts("head", shape.width, shape.outputs),
    ]


def init(shape: Shape, generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float32) -> State:
    """Return fresh parameters, stacked over one model per generator."""
    return start(parts(shape), generators, dtype)


def forward(
    state: State,
    shape: Shape,
    x: Tensor,
    valid: Tensor | None = None,
    keep: Tensor | None = None,
) -> Output:
    """Run a forward pass; arguments as `abmil.forward`, with the padding of a bag after its tiles, tiles in order."""
    m, g, t, _ = x.shape
    h = F.relu(linear(state, "tile.0", x.reshape(m, g * t, -1).transpose(1, 2)))
    if valid is None:
        valid = torch.ones(m, g, t, dtype=torch.bool, device=x.device)
    h = h.view(m, shape.width, g, t)
    logits, attention = _transform(state, shape, h.permute(0, 2, 3, 1), valid, keep)
    return Output(logits, h, attention)


@torch.no_grad()
def predict(state: State, shape: Shape, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits (M, G, C) of whole bags, model by model and bag by bag; arguments as `abmil.predict`."""
    bags = x.split(list(sizes))
    models = [single(state, i) for i in range(n_models(state))]
    return torch.cat([torch.cat([_whole(model, shape, bag)[0] for bag in bags], 1) for model in models])


@torch.no_grad()
def tile_values(state: State, shape: Shape, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention (M, n) and the logits (M, n, C) of each tile as a bag of its own, as `abmil.tile_values`."""
    models = [single(state, i) for i in range(n_models(state))]
    attention = torch.cat([_whole(model, shape, x)[1][:, 0] for model in models])
    pieces = x.split(max(1, ONE_TILE_BAGS // n_models(state)))
    alone = [
        forward(state, shape, piece.to(attention).expand(len(models), -1, -1)[:, :, None]).logits for piece in pieces
    ]
    return attention, torch.cat(alone, 1)


def embed(state: State, shape: Shape, x: Tensor) -> tuple[Tensor, None]:
    """Return tile embeddings (M, E, rows) of features (rows, inputs); what they weigh depends on the whole bag."""
    return F.relu(linear(state, "tile.0", x.to(state["tile.0.weight"].dtype).T.expand(n_models(state), -1, -1))), None


def memory(shape: Shape, n_tiles: int) -> int:
    """Return the bytes that one model needs at most to predict a bag of `n_tiles` in float32, without the features."""
    tokens = n_tiles + 2 * math.isqrt(n_tiles) + 2
    return 4 * tokens * (10 * shape.width + 4 * HEADS * shape.attention)


def _whole(model: State, shape: Shape, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (1, 1, C) and attention (1, 1, n) of one model and bag (n, inputs)."""
    dtype = model["tile.0.weight"].dtype
    rows = [F.relu_(linear(model, "tile.0", piece.to(dtype).T[None])) for piece in x.split(CHUNK_ROWS)]
    h = torch.cat(rows, 2).transpose(1, 2).unsqueeze(1)
    return _transform(model, shape, h, torch.ones(1, 1, len(x), dtype=torch.bool, device=x.device), None)


def _transform(state: State, shape: Shape, h: Tensor, valid: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return logits (M, G, C) and attention (M, G, T) of tile embeddings (M, G, T, E)."""
    m, g, t, e = h.shape
    tokens = _tokens(valid, shape.attention)
    h = h.gather(2, tokens.source.unsqueeze(-1).expand(-1, -1, -1, e))
    h = torch.cat((state["token"].to(h.dtype).view(m, 1, 1, e).expand(m, g, 1, e), h), 2)
    h = h + _attend(state, 0, layer_norm(state, "norm.0", h), tokens)[0]
    h = torch.cat((h[:, :, :1], _ppeg(state, h[:, :, 1:], tokens)), 2)
    change, row = _attend(state, 1, layer_norm(state, "norm.1", h), tokens)
    token = full(layer_norm(state, "norm.2", (h + change)[:, :, 0]))  # (M, G, E)
    if keep is not None:
        token = token * keep
    row = row[..., 1:] * tokens.valid[..., 1:]
    attention = torch.zeros(m, g, t, dtype=row.dtype, device=row.device).scatter_add(2, tokens.source, row)
    attention = attention.clamp(min=0) * valid
    attention = attention / attention.sum(-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
    return linear(state, "head", token.transpose(1, 2)).transpose(1, 2), attention


def _tokens(valid: Tensor, n_landmarks: int) -> _Tokens:
    n = valid.sum(-1)  # (M, G)
    side = (n.double().sqrt() - 1e-9).ceil().long()
    length = side.square()
    place = torch.arange(int(length.max()) + 1, device=valid.device)
    used = torch.minimum(length + 1, torch.full_like(length, n_landmarks)).unsqueeze(-1)
    segment = (place * used // (length + 1).unsqueeze(-1)).clamp(max=used - 1)
    inside = place < (length + 1).unsqueeze(-1)
    return _Tokens(place[:-1] % n.unsqueeze(-1), side, inside, segment, used.squeeze(-1))


def _attend(state: State, layer: int, h: Tensor, tokens: _Tokens) -> tuple[Tensor, Tensor]:
    """Return what attention adds to tokens (M, G, L, E), and the class token's attention (M, G, L), mean over heads."""
    m, g, n, e = h.shape
    d = e // HEADS
    weight = state[f"qkv.{layer}.weight"].to(h.dtype)
    qkv = torch.bmm(h.reshape(m, g * n, e), weight.transpose(1, 2)).view(m, g, n, 3, HEADS, d)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (M, G, heads, L, d)
    q = q * d**-0.5
    v = v * tokens.valid.view(m, g, 1, n, 1)
    ql, kl = _landmarks(q, tokens), _landmarks(k, tokens)
    present = torch.arange(ql.shape[3], device=h.device) < tokens.n_landmarks.unsqueeze(-1)  # (M, G, landmarks)
    to_landmarks = _softmax(q @ kl.transpose(3, 4), present)
    middle = _softmax(ql @ kl.transpose(3, 4), present)
    middle = _inverse(middle * present.view(m, g, 1, -1, 1))
    to_tokens = _softmax(ql @ k.transpose(3, 4), tokens.valid).to(h.dtype)
    out = to_landmarks.to(h.dtype) @ (middle.to(h.dtype) @ (to_tokens @ v))
    out = out + _convolve_values(state[f"values.{layer}"], v)
    row = (full(to_landmarks[:, :, :, :1] @ middle) @ full(to_tokens.detach()))[:, :, :, 0].detach().mean(2)
    out = out.transpose(2, 3).reshape(m, g * n, e).transpose(1, 2)
    return linear(state, f"out.{layer}", out).transpose(1, 2).reshape(m, g, n, e), row


def _softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Return the softmax of (M, G, heads, rows, columns) over the columns that are present (M, G, columns)."""
    scores = full(scores)
    if not bool(present.all()):
        scores = scores.masked_fill(~present[:, :, None, None], float("-inf"))
    return scores.softmax(-1)


def _landmarks(rows: Tensor, tokens: _Tokens) -> Tensor:
    """Return the means (M, G, heads, landmarks, d) of the tokens (M, G, heads, L, d) of each segment."""
    m, g, heads, n, d = rows.shape
    size = int(tokens.n_landmarks.max())
    weights = tokens.valid.to(rows.dtype)
    counts = weights.new_zeros(m, g, size).scatter_add(2, tokens.segment, weights)
    index = tokens.segment.view(m, g, 1, n, 1).expand_as(rows)
    sums = rows.new_zeros(m, g, heads, size, d).scatter_add(3, index, rows * weights.view(m, g, 1, n, 1))
    return sums / counts.clamp(min=1).view(m, g, 1, size, 1)


def _inverse(a: Tensor) -> Tensor:
    """Return Moore-Penrose inverses of (..., n, n) by the iteration of Razavi et al. 2014; zero rows stay zero."""
    norms = a.abs().sum(-1).amax(-1) * a.abs().sum(-2).amax(-1)
    z = a.transpose(-1, -2) / norms[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(INVERSE_STEPS):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


def _convolve_values(weight: Tensor, v: Tensor) -> Tensor:
    """Return values (M, G, heads, L, d) convolved along the tokens by (M, heads, taps)."""
    m, g, heads, n, d = v.shape
    rows = v.permute(1, 4, 0, 2, 3).reshape(g * d, m * heads, n)
    out = F.conv1d(rows, weight.to(v.dtype).reshape(m * heads, 1, -1), padding=TAPS // 2, groups=m * heads)
    return out.view(g, d, m, heads, n).permute(2, 0, 3, 4, 1)


def _ppeg(state: State, h: Tensor, tokens: _Tokens) -> Tensor:
    """Return the tiles (M, G, L, E) plus their convolutions over the bag's square."""
    m, g, n, e = h.shape
    kernel = sum(F.pad(state[f"ppeg.{k}.weight"], [(KERNELS[0] - k) // 2] * 4) for k in KERNELS)
    bias = sum(state[f"ppeg.{k}.bias"] for k in KERNELS)
    size = int(tokens.side.max())
    row, column = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(size, device=h.device)] * 2, indexing="ij"))
    side = tokens.side.unsqueeze(-1)
    inside = (row < side) & (column < side)  # (M, G, size * size): places of the canvas in the bag's square
    token = torch.where(inside, row * side + column, 0)
    canvas = h.gather(2, token.unsqueeze(-1).expand(-1, -1, -1, e)) * inside.unsqueeze(-1)
    canvas = canvas.permute(1, 0, 3, 2).reshape(g, m * e, size, size)
    out = F.conv2d(
        canvas, kernel.to(h.dtype).reshape(m * e, 1, KERNELS[0], KERNELS[0]), padding=KERNELS[0] // 2, groups=m * e
    )
    out = out.view(g, m, e, size * size).permute(1, 0, 3, 2)
    place = torch.arange(n, device=h.device)
    back = (place.div(side, rounding_mode="floor") * size + place % side).clamp(max=size * size - 1)
    moved = out.gather(2, back.unsqueeze(-1).expand(-1, -1, -1, e))
    return h + moved + bias.to(h.dtype).view(m, 1, 1, e)
