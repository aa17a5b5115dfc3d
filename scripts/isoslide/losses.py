"""Losses of a training step: pure functions on the tile embeddings and scores of the two scans of each specimen.

Every function carries a leading axis M of models that train side by side, and returns one loss per model. Definitions
and defaults follow the public code of the group that published the robustness losses (Henriksen, …, Kleppe,
arXiv 2602.22347); where we differ on purpose the docstring says so. Gradients run through every argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoslide import layers

NEGATIVES = ("other_specimens", "same_specimen", "same_scanner")
SCORE_LOSSES = ("mse", "softmax_mse", "kl", "logit_difference")
EMBEDDING_LOSSES = ("info_nce", "mse", "cosine")
# Up to this many anchors one matrix product of all similarities is quicker than gathering the negatives' rows.
DENSE_ANCHORS = 512
SHORTEST = 1e-12  # length that a zero vector is given


@dataclass(frozen=True)
class Draws:
    """Which tiles are compared in both directions (axis D = 2) of the contrastive loss, for M models.

    Rows count the tiles of a batch as `specimen * P + position`, P positions per specimen, N = B * P rows.
    """

    positions: Tensor  # (M, D, P) int64: columns of the tile axis T that take part
    anchors: Tensor  # (M, D, N) bool: rows that have a partner and at least one negative
    negatives: Tensor  # (M, D, N, K) int64: rows of the negatives
    used: Tensor  # (M, D, N, K) bool: False beyond the number of negatives that the batch can give


def class_weights(counts: Tensor) -> Tensor:
    """Return the inverse class frequencies, summing to 1.

    Args:
        counts: (..., C) number of specimens of each class, all above 0.

    Returns:
        (..., C) weights; 70 and 30 specimens give 0.3 and 0.7.
    """
    inverse = counts.sum(-1, keepdim=True) / counts
    return inverse / inverse.sum(-1, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the class-weighted cross-entropy, Σ w_y · nll / Σ w_y, so that the scale of the weights has no effect.

    Args:
        logits: (M, R, C) scores of R bags.
        labels: (M, R) int64 class indices.
        weights: (M, C) class weights.

    Returns:
        (M,) loss; ln C for a model that gives every class the same score.
    """
    nll = -torch.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    weight = weights.gather(-1, labels)
    return (weight * nll).sum(-1) / weight.sum(-1)


def score_loss(s1: Tensor, s2: Tensor, pairs: Tensor | None = None, kind: str = "mse") -> Tensor:
    """Return how far the scores of two scans of one specimen lie apart.

    `mse` is the mean squared difference of the raw logits, which also punishes a shift common to all classes;
    `softmax_mse` the same of the probabilities; `logit_difference` the same of the logits after subtracting that of
    class 0, blind to a common shift; `kl` the divergence KL(softmax s2 || softmax s1).

    Args:
        s1: (M, B, C) logits of the first scans.
        s2: (M, B, C) logits of the second scans.
        pairs: (M, B) bool, specimens that have two scans; all where None.
        kind: one of `SCORE_LOSSES`.

    Returns:
        (M,) mean over specimens with two scans; 0 for a model whose batch has none.
    """
    if kind == "mse":
        each = (s1 - s2).square().mean(-1)
    elif kind == "softmax_mse":
        each = (s1.softmax(-1) - s2.softmax(-1)).square().mean(-1)
    elif kind == "logit_difference":
        difference = s1 - s2
        each = (difference[..., 1:] - difference[..., :1]).square().mean(-1)
    elif kind == "kl":
        log_target = s2.log_softmax(-1)
        each = (log_target.exp() * (log_target - s1.log_softmax(-1))).sum(-1)
    else:
        raise ValueError(f"score loss {kind!r}: use one of {SCORE_LOSSES}")
    return _masked_mean(each, pairs)


def embedding_mse(h1: Tensor, h2: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean squared difference between the embeddings of a tile on two scans.

    Args:
        h1: (M, B, T, E) tile embeddings of the first scans.
        h2: (M, B, T, E) embeddings of the same tiles on the second scans.
        valid: (M, B, T) bool, tiles that both scans have; all where None.

    Returns:
        (M,) mean over valid tiles and E; 0 where there are none.
    """
    return _masked_mean((h1 - h2).square().mean(-1).flatten(1), None if valid is None else valid.flatten(1))


def embedding_cosine(h1: Tensor, h2: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean of 1 - cosine between the embeddings of a tile on two scans; arguments as `embedding_mse`."""
    each = 1 - F.cosine_similarity(h1, h2, dim=-1)
    return _masked_mean(each.flatten(1), None if valid is None else valid.flatten(1))


def info_nce(h1: Tensor, h2: Tensor, draws: Draws, temperature: float = 0.1) -> Tensor:
    """Return the contrastive loss that tells a tile on the other scan from other tiles on the same scan.

    For an anchor tile of scan 1 the positive is the same tile of scan 2, the negatives are tiles of scan 1:
    -log of the positive's share in the softmax of cosines / temperature; mean over anchors. The same with the scans
    exchanged, and the average of both. An anchor without negatives is dropped (in the reference it would make the
    whole loss 0).

    Args:
        h1: (M, B, T, E) tile embeddings of the first scans.
        h2: (M, B, T, E) embeddings of the same tiles on the second scans.
        draws: the anchors and negatives, from `draw_negatives`.
        temperature: divides the cosines.

    Returns:
        (M,) loss; 0 for a model without anchors.
    """
    return info_nce_of_tiles(torch.stack((h1, h2), 1).permute(0, 4, 1, 2, 3), draws, temperature)


def info_nce_of_tiles(embeddings: Tensor, draws: Draws, temperature: float = 0.1) -> Tensor:
    """Return `info_nce` of embeddings (M, E, 2, B, T) as a tile network leaves them, of both scans in one."""
    own, size, positive = _anchors(embeddings, draws.positions)
    # Lengths divide the few products that are used, not the vectors: fewer passes over the embeddings.
    lengths = size.unsqueeze(-1) * size.gather(2, draws.negatives.flatten(2)).view_as(draws.negatives)
    negative = _products(own, draws.negatives) / lengths
    if not bool(draws.used.all()):
        negative = negative.masked_fill(~draws.used, float("-inf"))
    logits = torch.cat((positive.unsqueeze(-1), negative), -1) / temperature
    return _masked_mean(torch.logsumexp(logits, -1) - logits[..., 0], draws.anchors).mean(-1)


def allowed_specimens(mode: str, patients: np.ndarray, scanners: np.ndarray) -> np.ndarray:
    """Return which specimens of a batch may give negatives to which.

    Two specimens of one patient are never each other's negatives (they are in the reference).

    Args:
        mode: `other_specimens`; `same_specimen` (the other tiles of the anchor's own scan); or `same_scanner` (other
            specimens whose scan in this direction comes from the anchor's scanner, so that "another scanner" is no
            clue for "another tile").
        patients: (M, B) integer codes.
        scanners: (M, B, 2) integer codes of the scanners of both scans.

    Returns:
        (M, 2, B, B) bool: direction, specimen of the anchor, specimen of the negative.
    """
    n_models, n_specimens = patients.shape
    shape = (n_models, 2, n_specimens, n_specimens)
    if mode == "same_specimen":
        return np.broadcast_to(np.eye(n_specimens, dtype=bool), shape)
    others = (patients[:, :, None] != patients[:, None, :])[:, None]
    if mode == "other_specimens":
        return np.broadcast_to(others, shape)
    if mode == "same_scanner":
        side = np.moveaxis(scanners, 2, 1)
        return others & (side[:, :, :, None] == side[:, :, None, :])
    raise ValueError(f"negatives {mode!r}: use one of {NEGATIVES}")


def draw_negatives(
    rngs: Sequence[np.random.Generator],
    allowed: np.ndarray,
    valid: np.ndarray,
    n_negatives: int,
    max_positions: int,
) -> Draws:
    """Draw positions, anchors and negatives for M models; each model draws from its own generator.

    At most `max_positions` of the T tile positions take part, the same for all specimens, anew in each direction.
    Negatives are drawn without replacement; their number is `n_negatives`, or the least number that any anchor of the
    batch can have (anchors that can have none do not count and are dropped).

    Args:
        rngs: one generator per model.
        allowed: (M, 2, B, B) bool, from `allowed_specimens`.
        valid: (M, B, T) bool, tiles present on both scans of a pair; False throughout for a specimen with one scan.
        n_negatives: K.
        max_positions: P at most.
    """
    n_models, n_specimens, n_tiles = valid.shape
    p = min(max_positions, n_tiles)
    n = n_specimens * p
    k = max(1, min(n_negatives, n))
    numbers = [rng.random(2 * n_tiles + 2 * n * k) for rng in rngs]
    shuffled = np.stack([u[: 2 * n_tiles].reshape(2, n_tiles) for u in numbers]).argsort(-1)
    uniform = np.stack([u[2 * n_tiles :].reshape(2, n, k) for u in numbers])
    positions = np.broadcast_to(np.arange(p), (n_models, 2, p)) if p == n_tiles else shuffled[..., :p]

    rows = np.take_along_axis(valid[:, None], positions[:, :, None, :], axis=3)  # (M, 2, B, P)
    candidates = (allowed[..., None] & rows[:, :, None]).reshape(n_models, 2, n_specimens, n)
    order = np.argsort(~candidates, axis=-1, kind="stable")  # the candidates first, in row order
    own = np.take_along_axis(
        candidates, np.arange(n).reshape(1, 1, n_specimens, p), axis=3
    )  # is a row among its own specimen's candidates
    rank = np.take_along_axis(candidates.cumsum(-1) - 1, np.arange(n).reshape(1, 1, n_specimens, p), axis=3)
    available = candidates.sum(-1, keepdims=True) - own
    anchors = rows & (available > 0)
    flat = (n_models, 2, n)
    available, anchors, own, rank = (a.reshape(flat) for a in (available, anchors, own, rank))

    least = np.where(anchors, available, k).min(-1, initial=k)  # (M, 2)
    picks = _subsets(uniform, available, least)
    picks += own[..., None] & (picks >= rank[..., None])  # leaves the anchor itself out
    picks = np.minimum(picks, n - 1)
    specimen = np.repeat(np.arange(n_specimens), p)
    negatives = order[np.arange(n_models)[:, None, None, None], np.arange(2)[:, None, None], specimen[:, None], picks]
    used = np.broadcast_to(np.arange(k) < least[..., None, None], negatives.shape)
    return Draws(*(torch.from_numpy(np.array(a)) for a in (positions, anchors, negatives, used)))


def _subsets(uniform: np.ndarray, available: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw `sizes` different integers below `available` by Floyd's algorithm, for all anchors at once.

    Args:
        uniform: (M, 2, N, K) numbers in [0, 1).
        available: (M, 2, N).
        sizes: (M, 2), at most `available` for the anchors that count.

    Returns:
        (M, 2, N, K) integers; columns beyond `sizes` are without meaning.
    """
    picks = np.full(uniform.shape, -1, dtype=np.int64)
    for r in range(uniform.shape[-1]):
        last = np.maximum(available - sizes[..., None] + r, 0)
        pick = (uniform[..., r] * (last + 1)).astype(np.int64)
        taken = (picks[..., :r] == pick[..., None]).any(-1)
        picks[..., r] = np.where(taken, last, pick)
    return picks


def _anchors(h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows at the chosen tile positions, their lengths, and their cosines with the other scan.

    Rows are copied once they are chosen, and are float32 where the embeddings are bfloat16.

    Args:
        h: (M, E, D, B, T) embeddings of both scans.
        positions: (M, D, P).

    Returns:
        (M, D, B * P, E), (M, D, B * P) and (M, D, B * P).
    """
    m, e, d, b, t = h.shape
    p = positions.shape[-1]
    dtype = torch.float32 if h.dtype == torch.bfloat16 else h.dtype
    if p == t:  # all take part, in order, and both directions have the same positives
        own = torch.stack(h.permute(2, 0, 3, 4, 1).unbind(), 1).reshape(m, d, b * t, e).to(dtype)
        size = _lengths(own)
        cosine = (own[:, 0] * own[:, 1]).sum(-1) / (size[:, 0] * size[:, 1])
        return own, size, cosine.unsqueeze(1).expand(m, d, b * t)
    index = positions.permute(1, 0, 2).reshape(d, m, 1, 1, 1, p).expand(d, m, e, d, b, p)
    sides = [layers.Gather.apply(h, one).permute(0, 2, 3, 4, 1).reshape(m, d, b * p, e) for one in index]
    own = torch.stack([side[:, i] for i, side in enumerate(sides)], 1).to(dtype)
    other = torch.stack([side[:, 1 - i] for i, side in enumerate(sides)], 1).to(dtype)
    size = _lengths(own)
    return own, size, (own * other).sum(-1) / (size * _lengths(other))


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1).clamp(min=SHORTEST)


def _products(rows: Tensor, negatives: Tensor) -> Tensor:
    """Return the dot products (M, D, N, K) of rows (M, D, N, E) with the rows that `negatives` (M, D, N, K) names."""
    m, d, n, e = rows.shape
    if n <= DENSE_ANCHORS or negatives.shape[-1] > n // 8:
        return (rows @ rows.transpose(2, 3)).gather(3, negatives)
    first = torch.arange(m * d, device=negatives.device).view(m, d, 1, 1) * n
    flat, index = rows.reshape(-1, e), negatives + first
    each = [flat.index_select(0, one.flatten()).view_as(rows) for one in index.unbind(-1)]
    return torch.stack([(other * rows).sum(-1) for other in each], -1)  # one by one: all at once leave the cache


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the last axis of the values under the mask; 0 where the mask is empty."""
    if mask is None:
        return values.mean(-1)
    # `where` and not a product: a value outside the mask may be NaN or infinite.
    total = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum(-1)
    return total / mask.sum(-1).clamp(min=1)
