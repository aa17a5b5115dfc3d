"""The plain way to train a task model, to measure ours against: one model, a file read per bag, losses as defined.

It does what `training.py` does at the same numbers (same start, batches, negatives and dropout), in the code that one
would write first: `torch.nn` modules, a DataLoader whose workers open the HDF5 file of each bag, PyTorch's optimiser,
schedule and clipping.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isoslide import abmil, layers, losses, sampling, selection, status, tasks, training
from isoslide.bags import Bags
from isoslide.layers import Shape, State

N_FEATURES_ALIKE = 32  # features that carry the class, so that losses fall as they do in earnest


class PlainModel(nn.Module):
    """`abmil` of one model, batches without padding."""

    def __init__(self, shape: Shape, state: State):
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
        self.norm, self.head = nn.BatchNorm1d(shape.width), nn.Linear(shape.width, shape.outputs)
        modules = {f"tile.{i}": self.tile[3 * i] for i in range(shape.layers)}
        modules |= {f"tile_norm.{i}": self.tile[3 * i + 2] for i in range(shape.layers)}
        modules |= {"attention.0": self.attention[0], "attention.1": self.attention[2]}
        self._modules_by_name = modules | {"head_norm": self.norm, "head": self.head}
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(state[name][0])

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and running statistics by the names of `abmil.py`."""
        own = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        return {
            f"{name}.{part}": getattr(module, attribute)
            for name, module in self._modules_by_name.items()
            for part, attribute in own.items()
            if hasattr(module, attribute)
        }

    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (G, C) and tile embeddings (G, T, E) of features (G, T, inputs)."""
        h = self.tile(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        attention = self.attention(h).softmax(1)
        bags = self.norm((h * attention).sum(1))
        return self.head(bags * keep), h


class FilesOfBags(Dataset):
    """Features of the bags of many steps, one after another; each is read from its file when asked for."""

    def __init__(self, paths: Sequence[Path], bags: Bags, batches: Sequence[sampling.Batch]):
        self.items = []
        for batch in batches:
            for rows in batch.rows[0]:
                scan = int(np.searchsorted(bags.offsets, rows[0], side="right")) - 1
                self.items.append((paths[scan], rows - bags.offsets[scan]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        path, tiles = self.items[index]
        with h5py.File(path, "r") as file:
            return torch.from_numpy(file["features"][:][tiles].astype(np.float32))


def train_plainly(
    model: training.Model,
    paths: Sequence[Path],
    bags: Bags,
    shape: Shape,
    arm: Mapping[str, Any],
    settings: Mapping[str, Any],
    n_specimens: int,
    n_tiles: int,
    n_workers: int,
    device: str = "cpu",
) -> State:
    """Train one model of a paired arm and return its parameters and running statistics after the last step."""
    source = sampling.paired(model.fold.specimens, bags, model.batches, n_specimens, n_tiles)
    batches = [next(source) for _ in range(settings["steps"])]
    loader = DataLoader(FilesOfBags(paths, bags, batches), 2 * n_specimens, num_workers=n_workers)
    plain = PlainModel(shape, abmil.init(shape, [model.start])).to(device)
    optimiser = torch.optim.SGD(
        plain.parameters(), lr=settings["learning_rate"], momentum=0.95, weight_decay=settings["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings["learning_rate"], settings["steps"], div_factor=25, final_div_factor=500
    )
    weights = torch.tensor(model.fold.fitted["class_weights"], device=device)
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings["precision"]]
    for batch, x in zip(batches, loader, strict=True):
        keep = layers.dropout_factors([model.dropout], shape.dropout, 2 * n_specimens, shape.width, shared=True)[0]
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            logits, h = plain(x.to(device), keep.to(device))
        logits, h = logits.float(), h.float()
        loss = F.cross_entropy(logits, torch.from_numpy(batch.labels[0]).long().to(device), weights)
        first, second = logits.chunk(2)
        loss = loss + arm["score_weight"] * F.mse_loss(first, second)
        loss = loss + arm["embedding_weight"] * _info_nce(*h.chunk(2), batch, model, arm)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), settings["clip"])
        optimiser.step()
        schedule.step()
    return {name: value.detach().cpu() for name, value in plain.tensors().items()}


def _info_nce(
    one: Tensor, other: Tensor, batch: sampling.Batch, model: training.Model, arm: Mapping[str, Any]
) -> Tensor:
    """Return the contrastive loss of embeddings (B, T, E) of two scans."""
    b, t, _ = one.shape
    allowed = losses.allowed_specimens(arm["negatives"], batch.patients[:, :b], batch.scanners.reshape(1, 2, b))
    valid = np.ones((1, b, t), dtype=bool)
    draws = losses.draw_negatives([model.negatives], allowed, valid, arm["n_negatives"], arm["n_anchors"])
    one, other, parts = F.normalize(one, dim=-1), F.normalize(other, dim=-1), []
    for direction, (own, partner) in enumerate(((one, other), (other, one))):
        positions = draws.positions[0, direction].to(own.device)
        anchors, positives = own[:, positions].flatten(0, 1), partner[:, positions].flatten(0, 1)
        negatives = anchors[draws.negatives[0, direction].to(own.device)]  # (N, K, E)
        positive = (anchors * positives).sum(-1, keepdim=True)
        cosines = torch.cat((positive, torch.einsum("ne,nke->nk", anchors, negatives)), 1)
        target = torch.zeros(len(anchors), dtype=torch.long, device=own.device)
        parts.append(F.cross_entropy(cosines / arm["temperature"], target))
    return torch.stack(parts).mean()


def make_cohort(folder: Path, n_scans: int, n_tiles: int, dim: int, seed: int = 0) -> Path:
    """Write features of specimens with two scans each, and return their status table."""
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_scans // 2):
        content = rng.standard_normal((n_tiles, dim), dtype=np.float32)
        content[:, :N_FEATURES_ALIKE] += i % 2
        for s, scanner in enumerate("AB"):
            scan = f"S{i:04d}{scanner}"
            path = folder / f"{scan}.h5"
            with h5py.File(path, "w") as file:
                file["features"] = (content + np.float32(0.1 * s)).astype(np.float16)
                file["tile_ids"] = np.arange(n_tiles)
                file.attrs.update(reference=f"S{i:04d}A", paired=True, encoder="generated")
            row = {"scan": scan, "scanner": scanner, "specimen": scan[:-1], "n_tiles": n_tiles, "key": scan}
            rows.append({"status": status.OK, "path": path} | row)
    status.write(folder / "features.tsv", rows)
    return folder / "features.tsv"


def fold_of(bags: Bags) -> training.Fold:
    """Return a fold that trains on every specimen of `make_cohort` and tunes on nothing: steps alone are measured."""
    specimens = [
        sampling.Specimen(i % 2, i, (2 * i, 2 * i + 1), (0, 1), ((0, 1),)) for i in range(len(bags.scans) // 2)
    ]
    nothing = np.zeros(0)
    tuning = selection.Tuning(nothing.astype(int), nothing, nothing, nothing, nothing, "binary")
    task = tasks.KINDS["binary"]
    return training.Fold(0, specimens, tuning, task, task.fit(specimens, 2))


def products(shape: Shape, rows: int) -> list[tuple[int, int, int]]:
    """Return rows, inner size and columns of every matrix product of a step of one model over so many tiles.

    Forward, gradients of weights and, but for the first layer, gradients of inputs.
    """
    sizes = [(shape.inputs, shape.width), *[(shape.width, shape.width)] * (shape.layers - 1)]
    sizes += [(shape.width, shape.attention), (shape.attention, 1)]
    found = []
    for i, (n_in, n_out) in enumerate(sizes):
        found += [(n_out, n_in, rows), (n_out, rows, n_in)]
        if i:
            found.append((n_in, n_out, rows))
    return found
