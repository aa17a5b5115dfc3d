"""One training step: the tiles it draws, and its losses part by part."""

import ctypes
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isoslide import adversary, aggregators, clam, combat, layers, losses, sampling, tasks
from isoslide.layers import Shape, State, full
from isoslide.stored_features import Stored

PARTS = ("total", "task", "embedding", "score", "instance", "scanner", "guess")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
RESIDENT_SHARE = 0.6  # of a GPU's free memory that features may take


class Streams(Protocol):
    """Generators of a model."""

    negatives: np.random.Generator
    dropout: np.random.Generator


@dataclass
class Tiles:
    """The features of all scans, and where and in what type a step computes.

    On a GPU they lie in its memory where they fit, else each batch is copied there. Features larger than memory are
    read from their files as they are drawn, or a step ahead of it by a thread: see `read_ahead`.
    """

    features: Tensor | Stored  # (rows, dim)
    device: torch.device
    dtype: torch.dtype
    _buffers: dict[torch.dtype, Tensor] = field(init=False)
    _reader: ThreadPoolExecutor = field(init=False, default_factory=partial(ThreadPoolExecutor, 1))
    _ahead: deque[tuple[Tensor, Future[Tensor]]] = field(init=False, default_factory=deque)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            if isinstance(self.features, Tensor):
                self.features = self.features.half()
            free, _ = torch.cuda.mem_get_info(self.device)
            if self.features.nbytes < RESIDENT_SHARE * free:
                self.features = self.features.to(self.device)
        # Buffers for all steps: fresh ones of this size cost as much as filling them.
        types, device = (self.features.dtype, *PRECISIONS.values()), self.features.device
        self._buffers = {dtype: torch.empty(0, dtype=dtype, device=device) for dtype in types}

    def draw(self, rows: Tensor) -> Tensor:
        """Return the features (*rows.shape, dim) of rows; valid until the next call."""
        index = rows.flatten().to(self.features.device)
        if isinstance(self.features, Stored):
            drawn = self._read(index)
        else:
            buffer = self._buffers[self.features.dtype].resize_(len(index), self.features.shape[1])
            drawn = torch.index_select(self.features, 0, index, out=buffer)
        if self.device.type == "cpu":  # float16 to bfloat16 by way of float32 is twice as fast as at once
            for dtype in (torch.float32, self.dtype):
                drawn = self._converted(drawn, dtype)
        return drawn.to(self.device, self.dtype).view(*rows.shape, -1)

    def read_ahead(self, rows: Tensor) -> None:
        """Start to read rows that `draw` will be asked for, in this order, while the steps before them compute.

        Does nothing where features are in memory. Copying mapped rows takes no lock of Python's.
        """
        if isinstance(self.features, Stored):
            index = rows.flatten()
            self._ahead.append((index, self._reader.submit(self.features.__getitem__, index)))

    def _read(self, index: Tensor) -> Tensor:
        if self._ahead and torch.equal(self._ahead[0][0], index):
            return self._ahead.popleft()[1].result()
        self._ahead.clear()
        return self.features[index]

    def _converted(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        return drawn if drawn.dtype == dtype else self._buffers[dtype].resize_(drawn.shape).copy_(drawn)


def keep_freed_memory(keep: bool = True) -> bool:
    """Let the C library keep large blocks for the next step, or set it back; return whether it was told to.

    By default glibc gives them back to the system, and filling fresh pages takes 5-15 % of a step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    blocks, threshold = (0, 2**31 - 1) if keep else (65_536, 131_072)
    return bool(mallopt(M_MMAP_MAX, blocks)) and bool(mallopt(M_TRIM_THRESHOLD, threshold))


def losses_of(
    streams: Sequence[Streams],
    state: State,
    shape: Shape,
    tiles: Tiles,
    batch: sampling.Batch,
    task: tasks.Task,
    fitted: Mapping[str, Tensor],
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    step: int,
) -> list[Tensor]:
    """Return the losses `PARTS` (M,) of a step; `guess` is the task loss of a constant guess.

    A loss of weight 0 is not computed and is NaN. Products are computed in the type of `tiles`, losses in float32.
    """
    x = tiles.draw(drawn_rows(batch, shape))
    x = combat.apply(state, x, batch.scanners)
    paired, n_bags = arm["sampler"] == "paired", batch.rows.shape[1]
    shared = paired and settings["head_dropout"] == "paired"
    keep = layers.dropout_factors([one.dropout for one in streams], shape.dropout, n_bags, shape.width, shared)
    valid = torch.from_numpy(batch.valid).to(tiles.device)
    out = aggregators.forward(state, shape, x, valid, None if keep is None else keep.to(tiles.device))
    known = tasks.truth(batch, 2 if paired else 1)
    known = tasks.Truth(*(part.to(tiles.device) for part in (known.labels, known.times, known.events)), known.sides)
    total = own = task.loss(out.logits, known, fitted)
    guess = tasks.guess_loss(task, out.logits, known, fitted)
    warm = min(1.0, step / arm["warmup_steps"]) if arm["warmup_steps"] else 1.0
    embedding = score = instance = scanner = torch.full_like(total, math.nan)
    if shape.aggregator == "clam_sb":
        instance = clam.instance_loss(state, out, known.labels.long(), valid, settings["instance_tiles"])
        total = total + settings["instance_weight"] * instance
    if arm["embedding_weight"]:
        embedding = _embedding_loss(streams, out.embeddings, batch, arm)
        total = total + warm * arm["embedding_weight"] * embedding
    if arm["score_weight"]:
        b = n_bags // 2
        pairs = torch.from_numpy(batch.pairs[:, :b]).to(tiles.device)
        score = losses.score_loss(out.logits[:, :b], out.logits[:, b:], pairs, arm["score_loss"])
        total = total + warm * arm["score_weight"] * score
    if arm.get("adversarial_weight"):
        codes = torch.from_numpy(batch.scanners).to(tiles.device)
        scanner = adversary.loss(state, out, codes, warm * arm["adversarial_weight"])
        total = total + scanner
    return [total, own, embedding, score, instance, scanner, guess]


def drawn_rows(batch: sampling.Batch, shape: Shape) -> Tensor:
    """Return the rows (M, G, T) of the features that a step draws, in the order that the aggregator wants."""
    ordered = shape.aggregator in aggregators.ORDERED
    return torch.from_numpy(aggregators.in_order(batch.rows, batch.valid) if ordered else batch.rows)


def reading_ahead(batches: Iterator[sampling.Batch], tiles: Tiles, shape: Shape, n: int) -> Iterator[sampling.Batch]:
    """Yield n batches; while the caller works on one, the tiles of the next are read."""
    waiting: deque[sampling.Batch] = deque()
    for batch in islice(batches, n):
        tiles.read_ahead(drawn_rows(batch, shape))
        waiting.append(batch)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting


def _embedding_loss(
    streams: Sequence[Streams], embeddings: Tensor, batch: sampling.Batch, arm: Mapping[str, Any]
) -> Tensor:
    m, e, g, t = embeddings.shape
    b = g // 2
    valid = batch.valid[:, :b] & batch.pairs[:, :b, None]
    if arm["embedding_loss"] != "info_nce":
        h1, h2 = full(embeddings).view(m, e, 2, b, t).permute(2, 0, 3, 4, 1)
        function = losses.embedding_mse if arm["embedding_loss"] == "mse" else losses.embedding_cosine
        return function(h1, h2, torch.from_numpy(valid).to(embeddings.device))
    scanners = batch.scanners.reshape(m, 2, b).swapaxes(1, 2)
    allowed = losses.allowed_specimens(arm["negatives"], batch.patients[:, :b], scanners)
    rngs = [one.negatives for one in streams]
    draws = losses.draw_negatives(rngs, allowed, valid, arm["n_negatives"], arm["n_anchors"])
    draws = losses.Draws(*(getattr(draws, name).to(embeddings.device) for name in losses.Draws.__dataclass_fields__))
    return losses.info_nce_of_tiles(embeddings.view(m, e, 2, b, t), draws, arm["temperature"])
