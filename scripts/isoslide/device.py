"""Claiming a GPU: Snakemake counts GPUs but never says which, so jobs on one machine agree through file locks."""

import fcntl
import logging
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path


class DeviceError(Exception):
    """The device that was asked for cannot be had; the message is one line."""


def claim(device: str, environment: MutableMapping[str, str] = os.environ, folder: str | None = None) -> str:
    """Return the torch device to use; for `cuda`, make one free GPU the only visible one.

    Call before torch is imported. A scheduler's choice of one GPU stands (CUDA_VISIBLE_DEVICES or SLURM_JOB_GPUS); of
    several that are visible, as in an allocation of a whole node, one is claimed. The lock is held until the process
    ends, however it ends.

    Raises:
        DeviceError: when no GPU is there: a job never falls back to the CPU by itself.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("SLURM_JOB_GPUS"))
    if device == "cpu" or (visible is not None and "," not in visible):
        return device
    cards = list_gpus(environment)
    names = [name.strip() for name in visible.split(",")] if visible else list(cards)
    if not names:
        raise DeviceError("no GPU on this machine (nvidia-smi lists none): set 'device: cpu' in the config, or move")
    folder = folder or tempfile.gettempdir()
    waited = False
    while True:
        for name in names:
            if _lock(Path(folder, f"isoslide-{cards.get(name, name if '-' in name else 'gpu' + name)}.lock")):
                environment["CUDA_VISIBLE_DEVICES"] = name
                logging.info("claimed GPU %s of %s", name, ",".join(names))
                return device
        if not waited:
            logging.info("all of the GPUs %s are taken, waiting", ",".join(names))
        waited = True
        time.sleep(5)


def list_gpus(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return {number: serial name} of the GPUs that nvidia-smi lists; empty without it.

    Locks go by the serial name: where each job is shown its own GPUs only, all of them start at number 0.
    """
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, env=dict(environment)
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    return dict(re.findall(r"^GPU (\d+): .*\(UUID: ([\w-]+)\)", listing.stdout, flags=re.MULTILINE))


def describe(device: str) -> dict[str, str]:
    """Return what the job runs on, for log and record: name and UUID of the GPU, or the machine's kind and threads."""
    import torch

    if device == "cpu":
        return {"device": "cpu", "name": platform.processor() or platform.machine(), "uuid": ""}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"device": device, "name": properties.name, "uuid": f"GPU-{properties.uuid}", "visible": visible}


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
