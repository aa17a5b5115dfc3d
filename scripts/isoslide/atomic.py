"""Files that are either whole or absent: written under a hidden name beside the target, then renamed."""

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.\w+)?$", re.DOTALL)


class WriteError(OSError):
    """A file cannot be written: disk full, quota, read-only. The message is one line; the user has to act."""


@contextmanager
def output(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; it becomes `path` when the block ends without error.

    The file is opened by the caller in the ordinary way, so its mode follows the umask. A random part of the name keeps
    two jobs that write the same target apart, on one machine or two: the last one to finish wins, whole.

    Raises:
        WriteError: the disk is full, the quota is used up, or the place is not to be written to.
    """
    path = Path(path)
    # 200-character ids leave no room for a prefix in the 255 bytes of a file name, so the stem is cut.
    temporary = path.with_name(f".{path.stem[:60]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with open(path, "rb"):  # a shared disk shows it to other machines once this one has seen it itself
            pass
    except (OSError, RuntimeError) as error:  # HDF5 raises RuntimeError where it fails on closing
        why = _refusal(error)
        if why is None:
            raise
        raise WriteError(f"cannot write {path}: {why}") from error
    finally:
        with suppress(OSError):  # absent, or on a disk that has become read-only
            temporary.unlink()


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, which must not exist, when the block ends without error.

    Raises:
        WriteError: the disk is full, the quota is used up, or the place is not to be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        why = _refusal(error)
        if why is None:
            raise
        raise WriteError(f"cannot write {path}: {why}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: str | Path, older_than: float = 86_400) -> None:
    """Remove what killed jobs left of files they were writing: temporary names not touched for so many seconds."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.match(entry.name):
                with suppress(OSError):  # another job was faster, or the place is read-only
                    if entry.stat().st_mtime < time.time() - older_than:
                        os.unlink(entry.path)


def cannot_lock(error: BaseException) -> bool:
    """Return whether HDF5 gave up on locking a file: another process holds it, or its disk has no locks."""
    return isinstance(error, OSError) and "lock file" in str(error)


def _refusal(error: OSError | RuntimeError) -> str | None:
    """Return why the file system refused, or None if the error is of another kind."""
    if isinstance(error, WriteError):
        return None
    for number in REFUSALS:
        if getattr(error, "errno", None) == number or f"errno = {number}," in str(error):
            return os.strerror(number)
    return None


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with Unix line ends."""
    with output(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: str | Path, table: pd.DataFrame, digits: int = 6) -> None:
    """Write a tab-separated table without index; floats with so many significant digits, missing values empty."""
    with output(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format=f"%.{digits}g", lineterminator="\n")
