"""Task models with made-up parameters, saved with their cards, for tests that need no training."""

from dataclasses import replace

import torch

from isoslide import aggregators, layers, models

SHAPE = layers.Shape(inputs=6, width=8, attention=4)


def write(folder, task, fitted, outputs=2, aggregator="abmil"):
    """Two models with running statistics that are not those of a fresh model."""
    files, shape = [], replace(SHAPE, outputs=outputs, aggregator=aggregator)
    card = {"shape": shape.as_dict(), "settings": {"task": task}, "fitted": fitted}
    for seed in range(2):
        state = aggregators.init(shape, [torch.Generator().manual_seed(seed)])
        state = {name: value + 0.1 * (seed + 1) for name, value in layers.single(state, 0).items()}
        path = folder / f"m{seed}.safetensors"
        models.save(path, {name: value[0] for name, value in state.items()}, card)
        files.append(str(path))
    return files
