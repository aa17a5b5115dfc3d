"""What every script shares: parser, logging, one-line errors."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from isoslide import __version__, atomic


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose description is the script's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def json_arg(text: str) -> dict[str, Any]:
    """Read a JSON object given on the command line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def start_logging(args: argparse.Namespace) -> None:
    """Send time, level and message to stderr; the first line names the version, the machine and every argument."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    arguments = json.dumps(vars(args), default=str, sort_keys=True)
    logging.info("isoslide %s on %s %s", __version__, _place(os.environ), arguments)
    sys.excepthook = _report


def _place(environment: Mapping[str, str]) -> str:
    """Return the machine, and in a SLURM job its id, partition and GPUs: what is asked first when a job went wrong."""
    facts = {"job": "SLURM_JOB_ID", "partition": "SLURM_JOB_PARTITION", "GPUs": "CUDA_VISIBLE_DEVICES"}
    known = [f"{name} {environment[variable]}" for name, variable in facts.items() if environment.get(variable)]
    return ", ".join([os.uname().nodename, *known])


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that the user can mend as one line, any other with its traceback."""
    if isinstance(error, atomic.WriteError):
        logging.error("%s", error)
    elif atomic.cannot_lock(error):
        text = "an HDF5 file is locked, or its disk cannot lock: set HDF5_USE_FILE_LOCKING=FALSE and run again (%s)"
        logging.error(text, " ".join(str(error).split()))
    else:
        sys.__excepthook__(kind, error, trace)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how many seconds the block took."""
    start = time.perf_counter()
    yield
    logging.info("%s: %.1f s", what, time.perf_counter() - start)


def check_named(scans: Iterable[str], known: Iterable[str]) -> None:
    """End the script where the config's `heatmaps` names a scan that the sheet does not have."""
    unknown = sorted(set(scans) - set(known))
    if unknown:
        fail(f"config heatmaps: no scan {unknown[0]!r} in the sheet: name scans of the sheet")


def fail(message: str) -> NoReturn:
    """End the script with exit code 1 and one line, without a traceback: for errors the user can mend."""
    raise SystemExit(f"error: {message}")
