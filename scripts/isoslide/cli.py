"""What every script shares: parser, logging, one-line errors."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
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
    """Send time, level and message to stderr; the first line names the version and every argument."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    logging.info("isoslide %s %s", __version__, json.dumps(vars(args), default=str, sort_keys=True))
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that the user can mend as one line, any other with its traceback."""
    if isinstance(error, atomic.WriteError):
        logging.error("%s", error)
    elif isinstance(error, BlockingIOError) and "lock file" in str(error):
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


def fail(message: str) -> NoReturn:
    """End the script with exit code 1 and one line, without a traceback: for errors the user can mend."""
    raise SystemExit(f"error: {message}")
