"""How a killed training job goes on: everything that changes from step to step, kept in one hidden file.

A job that was killed and started again ends with the weights of an undisturbed one: parameters, running statistics,
optimiser, schedule, generators, curves and kept checkpoints are put back, batches are drawn again up to the step. The
file is safetensors with a JSON text; it is written whole or not at all, belongs to a list of models by their content
keys, and is removed when these are written.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from isoslide import atomic
from isoslide.layers import State

NAME = ".training.safetensors"
EVERY_S = 60  # seconds between two states, at least: writing them must not cost more than training


class Kept(Protocol):
    """What of a model changes while it trains, but for its parameters."""

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what JSON can hold, and the tensors of the checkpoint kept so far."""

    def recall(self, values: Mapping[str, Any], state: State) -> None:
        """Put it back."""


@dataclass
class Run:
    """A run between two steps: M models, stacked; `alive` (M,) tells those that still train."""

    models: Sequence[Kept]
    state: State
    optimiser: Optimizer
    schedule: LRScheduler
    alive: Tensor


@dataclass
class File:
    """The file of an output folder and the content keys of the models that it belongs to."""

    path: Path
    keys: list[str]

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    def begin(self) -> None:
        """Write down which models train together, unless that stands there already."""
        if begun(self.path) != self.keys:
            self._write({}, {})

    def save(self, run: Run, step: int) -> None:
        """Keep the state after a step, if the last one is old enough."""
        if time.monotonic() - self._written < EVERY_S:
            return
        memories = [model.memory() for model in run.models]
        tensors = {f"state/{name}": value for name, value in run.state.items()}
        tensors |= {f"optimiser/{i}/{name}": value for i, name, value in _buffers(run.optimiser)}
        tensors |= {f"kept/{i}/{name}": value for i, (_, kept) in enumerate(memories) for name, value in kept.items()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in run.optimiser.param_groups]
        values = {
            "step": step,
            "alive": run.alive.tolist(),
            "groups": groups,
            "schedule": {name: value for name, value in run.schedule.state_dict().items() if name != "lr_lambdas"},
            "models": [memory for memory, _ in memories],
        }
        self._write(values, {name: value.detach().cpu().contiguous() for name, value in tensors.items()})

    def load(self, run: Run) -> int:
        """Put the kept state back into a fresh run; return its step, 0 where there is none of these models."""
        values, tensors = _read(self.path)
        if values.get("keys") != self.keys or "step" not in values:
            return 0
        with torch.no_grad():
            for name, value in run.state.items():
                value.copy_(tensors[f"state/{name}"])
        names = {}
        for name in tensors:
            kind, number, rest = name.split("/", 2) if name.count("/") > 1 else (name, "", "")
            names.setdefault((kind, number), {})[rest] = tensors[name]
        for i, parameter in enumerate(run.optimiser.param_groups[0]["params"]):
            buffers = names.get(("optimiser", str(i)), {})
            run.optimiser.state[parameter] = {
                name: value.to(parameter.device) if value.dim() else value for name, value in buffers.items()
            }
        for group, kept in zip(run.optimiser.param_groups, values["groups"], strict=True):
            group.update({name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})
        run.schedule.load_state_dict(run.schedule.state_dict() | values["schedule"])
        run.alive.copy_(torch.tensor(values["alive"]))
        for i, (model, memory) in enumerate(zip(run.models, values["models"], strict=True)):
            model.recall(memory, names.get(("kept", str(i)), {}))
        return values["step"]

    def _write(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        with atomic.output(self.path) as temporary:
            save_file(tensors, temporary, {"values": json.dumps({"keys": self.keys} | values)})
        self._written = time.monotonic()


def begun(path: Path) -> list[str]:
    """Return the keys of the models that a killed job was training together; none where there is no such file."""
    return _read(path, with_tensors=False)[0].get("keys", [])


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Any], State]:
    if not path.exists():
        return {}, {}
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys()) if with_tensors else []
            # Copies: the file is replaced while the run goes on, and products at other alignments may round otherwise.
            return json.loads(file.metadata()["values"]), {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError:  # not ours
        return {}, {}


def _buffers(optimiser: Optimizer) -> list[tuple[int, str, Tensor]]:
    """Return what the optimiser remembers of each parameter: number of the parameter, name, tensor."""
    return [
        (i, name, value)
        for i, parameter in enumerate(optimiser.param_groups[0]["params"])
        for name, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    ]
