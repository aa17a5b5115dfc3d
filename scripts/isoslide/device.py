"""Claiming a GPU: Snakemake counts GPUs but never says which, so jobs on one machine agree through file locks."""

import fcntl
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path


class DeviceError(Exception):
    """The device that was asked for cannot be had; the message is one line."""


def claim(device: str, environment: MutableMapping[str, str] = os.environ, folder: str | None = None) -> str:
    """Return the torch device to use; for `cuda`, make one free GPU the only visible one.

    Call before torch is imported. Where the scheduler already chose (CUDA_VISIBLE_DEVICES or SLURM_JOB_GPUS is set) its
    choice stands. The lock is held until the process ends, however it ends.

    Raises:
        DeviceError: when no GPU is there: a job never falls back to the CPU by itself.
    """
    if device == "cpu" or "CUDA_VISIBLE_DEVICES" in environment or "SLURM_JOB_GPUS" in environment:
        return device
    n_gpus = count_gpus(environment)
    if n_gpus == 0:
        raise DeviceError("no GPU on this machine (nvidia-smi lists none): set 'device: cpu' in the config, or move")
    locks = Path(folder or tempfile.gettempdir())
    while True:
        for index in range(n_gpus):
            if _lock(locks / f"isoslide-gpu{index}.lock"):
                environment["CUDA_VISIBLE_DEVICES"] = str(index)
                logging.info("claimed GPU %d of %d", index, n_gpus)
                return device
        logging.info("all %d GPUs are taken, waiting", n_gpus)
        time.sleep(5)


def count_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many GPUs nvidia-smi lists; 0 without it."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, env=dict(environment)
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0


_held: list[int] = []  # file descriptors of the locks; closed, and so released, when the process ends


def _lock(path: Path) -> bool:
    try:  # without O_CREAT first: in a shared /tmp the kernel refuses it for another user's file
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
