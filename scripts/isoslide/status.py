"""Status tables: one row per scan of a batch, from the first stage to the last, whatever became of the scan."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from isoslide import atomic

OK = "ok"
BREAKS = re.compile(r"\s*[\t\n\r]\s*")
COLUMNS = ("scan", "status", "reason", "n_tiles", "path", "key")


def write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows sorted by scan: the columns of `COLUMNS`, then any others in the order they first appear."""
    rows = list(rows)
    extras = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    names = [*COLUMNS, *extras]
    cells = [[_text(row.get(name)) for name in names] for row in sorted(rows, key=lambda row: row["scan"])]
    atomic.write_table(path, pd.DataFrame(cells, columns=names, dtype=str))


def read(path: str | Path) -> pd.DataFrame:
    """Read a status table; every cell is text, a missing value is the empty string."""
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def bad(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose scan did not come through."""
    return table[table["status"] != OK]


def summary(table: pd.DataFrame) -> str:
    """Return counts by status for a log line, e.g. `62 ok, 1 no_tissue`."""
    counts = table["status"].value_counts()
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "no scans"


def _text(value: Any) -> str:
    """Return a cell: floats with six significant digits, line breaks and tabs of error messages as blanks.

    Other blanks stay: two of them, or one of another width, may stand in an id or a path.
    """
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else BREAKS.sub(" ", str(value)).strip()


def carried(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a scan that an earlier stage already gave up on, with its status and reason."""
    return failed(row, row["status"], row["reason"])


def failed(row: Mapping[str, Any], status: str, reason: str) -> dict[str, Any]:
    """Return the row of a scan that this stage gives up on; what identifies the scan stays, the rest is empty."""
    return {
        "scan": row["scan"],
        "status": status,
        "reason": reason,
        "specimen": row["specimen"],
        "scanner": row["scanner"],
    }
