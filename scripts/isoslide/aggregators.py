"""Task models by name: one interface to all ways of making a bag of tile features into scores, for M models at once.

A module that implements one has the functions `init`, `forward`, `predict` and `tile_values` of `abmil.py`; what
`Shape.layers` and `Shape.attention` mean to it stands in docs/training.md. Adding one: a module with these functions, a
line in `AGGREGATORS`, its name in the schema of the configuration.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from isoslide import abmil, clam, layers, transmil
from isoslide.bags import Bags
from isoslide.layers import Output, Shape, State
from isoslide.stored_features import Stored

AGGREGATORS: dict[str, ModuleType] = {
    "abmil": abmil,
    "gated_abmil": abmil,
    "clam_sb": abmil,
    "transmil": transmil,
    "mean": abmil,
}
ORDERED = ("transmil",)  # those that see the tiles of a bag as a sequence, in order of tile id
SCAN_ROWS = 65_536  # tiles of several scans that are predicted together


def modules(name: str) -> list[ModuleType]:
    """Return the modules that an aggregator's numbers come from."""
    return [layers, AGGREGATORS[name], *([clam] if name == "clam_sb" else [])]


def init(shape: Shape, generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float32) -> State:
    """Return fresh parameters and running statistics, stacked over one model per generator."""
    return AGGREGATORS[shape.aggregator].init(shape, generators, dtype)


def forward(state: State, shape: Shape, x: Tensor, valid: Tensor | None = None, keep: Tensor | None = None) -> Output:
    """Run a training step's forward pass; see `abmil.forward`."""
    return AGGREGATORS[shape.aggregator].forward(state, shape, x, valid, keep)


def predict(state: State, shape: Shape, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits (M, G, C) of whole bags in evaluation; see `abmil.predict`."""
    return AGGREGATORS[shape.aggregator].predict(state, shape, x, sizes)


def tile_values(state: State, shape: Shape, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention (M, n) of a bag, summing to 1, and each tile's logits (M, n, C) as a bag of its own."""
    return AGGREGATORS[shape.aggregator].tile_values(state, shape, x)


def no_sum(name: str) -> str:
    """Return why a bag's logits are no sum of terms of its tiles, or the empty string where they are.

    Those that weigh their tiles have an affine head in evaluation: the terms are attention times a tile's own logits.
    """
    if AGGREGATORS[name] is abmil:
        return ""
    return f"the tiles of {name} attend to each other, so the score is no sum over tiles"


@torch.no_grad()
def embed(state: State, shape: Shape, x: Tensor) -> Tensor:
    """Return the embeddings (M, n, E) of tiles (n, inputs) that the embedding loss compares, in evaluation."""
    return AGGREGATORS[shape.aggregator].embed(state, shape, x)[0].transpose(1, 2)


@torch.no_grad()
def predict_scans(state: State, shape: Shape, features: Tensor | Stored, bags: Bags, scans: Sequence[int]) -> Tensor:
    """Return the logits (M, scans, C) of whole scans, all models on the same scans.

    Args:
        state: stacked parameters and running statistics.
        shape: sizes of the models.
        features: the features of `bags`, see `Bags.tensor`.
        bags: which rows belong to a scan.
        scans: indices into the bags.
    """
    weight = state["head.bias"]
    out = [torch.zeros(len(weight), 0, shape.outputs, dtype=weight.dtype, device=weight.device)]
    first = 0
    while first < len(scans):
        stop, rows = first, 0
        while stop < len(scans) and (stop == first or rows + bags.size(scans[stop]) <= SCAN_ROWS):
            rows += bags.size(scans[stop])
            stop += 1
        index = torch.from_numpy(np.concatenate([bags.rows(scan) for scan in scans[first:stop]]))
        x = features[index.to(features.device)].to(weight.device)
        out.append(predict(state, shape, x, [bags.size(scan) for scan in scans[first:stop]]))
        first = stop
    return torch.cat(out, 1)


def in_order(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the rows (M, G, T) of a batch with each bag's tiles in order of tile id, its padding still behind them."""
    return np.where(valid, np.sort(np.where(valid, rows, np.iinfo(rows.dtype).max), -1), 0)
