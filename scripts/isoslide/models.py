"""Trained models as files: parameters in safetensors, everything else about a model in a JSON card beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from isoslide import atomic, layers

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


def load(path: str | Path) -> tuple[layers.State, layers.Shape]:
    """Return a stack of one model and its sizes."""
    state = load_file(path)
    shape = layers.Shape(**card(Path(path))["shape"])
    return {name: tensor.unsqueeze(0) for name, tensor in state.items()}, shape


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
