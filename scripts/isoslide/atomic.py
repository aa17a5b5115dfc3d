"""Files that are either whole or absent: written under a hidden name beside the target, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


@contextmanager
def output(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; it becomes `path` when the block ends without error.

    The file is opened by the caller in the ordinary way, so its mode follows the umask. The process id in the name
    keeps two jobs that write the same target apart: the last one to finish wins, whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # 200-character ids leave no room for a prefix in the 255 bytes of a file name, so the stem is cut.
    temporary = path.with_name(f".{path.stem[:60]}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with Unix line ends."""
    with output(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a tab-separated table without index; floats with six significant digits, missing values empty."""
    with output(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
