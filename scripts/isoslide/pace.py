"""Where the seconds and the memory of an encoding job go, and what it is bound by."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

BOUND = 0.1  # of the time: where the encoder waits for tiles longer than this, reading is what limits the job


class Clock:
    """Counts tiles, seconds waiting for tiles and seconds in the model."""

    def __init__(self) -> None:
        self.tiles, self.waited, self.modelled = 0, 0.0, 0.0
        self.first: float | None = None  # seconds until the first tiles were there, which nothing can hide
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for tiles."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if self.first is None:
            self.first = seconds
        else:
            self.waited += seconds

    @contextmanager
    def model(self, tiles: int) -> Iterator[None]:
        """Count the block as the model's, with so many tiles."""
        start = time.perf_counter()
        yield
        self.modelled += time.perf_counter() - start
        self.tiles += tiles

    @property
    def bound_by(self) -> str:
        """What limits the job: `reading`, `the model`, or `nothing` where nothing was encoded."""
        if not self.tiles:
            return "nothing"
        return "reading" if self.waited > BOUND * (self.waited + self.modelled) else "the model"

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the job so far; memory in MB (10^6 bytes)."""
        cuda = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_initialized() else 0.0
        return {
            "tiles": self.tiles,
            "seconds": round(time.perf_counter() - self._start, 3),
            "tiles_per_second": round(self.tiles / max(self.waited + self.modelled, 1e-9), 2),
            "seconds_first_tiles": round(self.first or 0.0, 3),
            "seconds_waiting": round(self.waited, 3),
            "seconds_model": round(self.modelled, 3),
            "bound_by": self.bound_by,
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
            "peak_gpu_memory_mb": round(cuda),
        }

    def __str__(self) -> str:
        """Return the line for the log."""
        facts = self.facts()
        gpu = f", {facts['peak_gpu_memory_mb']} MB on the GPU" if facts["peak_gpu_memory_mb"] else ""
        return (
            f"{self.tiles} tiles, {facts['tiles_per_second']:.1f} tiles/s, {facts['seconds_waiting']:.1f} s waiting "
            f"for tiles, {facts['seconds_model']:.1f} s in the model, {facts['seconds_first_tiles']:.1f} s to the "
            f"first tiles, at most {facts['peak_memory_mb']} MB of memory{gpu}: bound by {self.bound_by}"
        )
