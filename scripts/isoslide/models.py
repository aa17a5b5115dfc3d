"""Trained models as files: parameters in safetensors, everything else about a model in a JSON card beside it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from isoslide import atomic, combat, layers

COLUMNS = (
    "fold",
    "seed",
    "status",
    "reason",
    "step",
    "tune_metric",
    "tune_inconsistency",
    "train_loss",
    "spread",
    "path",
    "key",
)


def save(path: Path, state: layers.State | None, card: Mapping[str, Any]) -> None:
    """Write a model and its card; a model that never came to a checkpoint has a card only.

    The card is written last, so a card with the right key means that the model is whole.
    """
    if state is not None:
        with atomic.output(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    atomic.write_json(path.with_suffix(".json"), _without_nan({"path": str(path) if state else "", **card}))


def card(path: Path) -> dict[str, Any]:
    """Return a model's card; empty where there is none."""
    file = path.with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def load(path: str | Path, scanner: str | None = None) -> tuple[layers.State, layers.Shape]:
    """Return a stack of one model and its sizes.

    Args:
        path: the model's file.
        scanner: of the scans that it shall score. A model of an arm with `combat` then takes their features as they
            are; those of a scanner it was not trained on stay unharmonised.

    Raises:
        ValueError: if a model of such an arm is loaded for no scanner.
    """
    state, own = load_file(path), card(Path(path))
    shape = layers.Shape(**own["shape"])
    stacked = {name: tensor.unsqueeze(0) for name, tensor in state.items()}
    harmonised = own.get("combat", [])
    if harmonised and scanner is None:
        raise ValueError(f"{path}: features were harmonised by scanner in training: name the scanner of the scans")
    code = harmonised.index(scanner) if scanner in harmonised else combat.UNSEEN
    return combat.for_scanner(stacked, code), shape


def harmonised(paths: Iterable[str | Path]) -> set[str]:
    """Return the scanners for which models harmonise features; none unless their arm has `combat`."""
    return {name for path in paths for name in card(Path(path)).get("combat", [])}


def stack(states: list[layers.State]) -> layers.State:
    """Join stacks of models of equal sizes."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not know, by null."""
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
