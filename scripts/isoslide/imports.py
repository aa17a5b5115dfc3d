"""Imported features as the configuration names them: which file is of which scan. Light: the Snakefile imports it."""

import glob
import os
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from isoslide.sheet import SheetError, included

EXAMPLES = 5


def file_of(pattern: str, row: Mapping[str, str]) -> Path:
    """Return the file that a pattern names for a row of the sheet, e.g. `features/{scan}.h5`."""
    return Path(pattern.format_map(row))


def check(name: str, settings: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Refuse patterns that fit no scan of the sheet; scans without a file are found later, one by one.

    Raises:
        SheetError: one line, with examples of what was sought and of what is there.
    """
    for key in ("path", "coords"):
        pattern = settings[key]
        if not pattern:
            continue
        where = f"config import.{name}.{key}"
        for column in _columns(pattern, where):
            if column not in table:
                raise SheetError(
                    f"{where}: no column {column!r} in the sheet: use one of {list(table.columns)} in braces"
                )
        rows = included(table).to_dict("records")
        if not any(os.path.exists(file_of(pattern, row)) for row in rows):
            sought = ", ".join(str(file_of(pattern, row)) for row in rows[:EXAMPLES])
            raise SheetError(
                f"{where}: none of the {len(rows)} scans has a file. Sought: {sought}. There: {_there(pattern)}: "
                "correct the pattern, or give the sheet a column with the names of the files"
            )


def columns(settings: Mapping[str, Any]) -> list[str]:
    """Return the columns of the sheet that the import of a set of features depends on."""
    named = [column for key in ("path", "coords") if settings[key] for column in _columns(settings[key], key)]
    return list(dict.fromkeys(["scan", "specimen", "scanner", "mpp", "reference", *named]))


def needs_slides(settings: Mapping[str, Any]) -> bool:
    """Return whether these features are paired by registrations, which are made from the slides."""
    return settings["pairing"] == "registered"


def _columns(pattern: str, where: str) -> list[str]:
    try:
        columns = [field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        raise SheetError(f"{where}: {pattern!r} cannot be read ({error}): write e.g. features/{{scan}}.h5") from error
    if not columns:
        raise SheetError(f"{where}: {pattern!r} is one file for all scans: write e.g. features/{{scan}}.h5")
    return columns


def _there(pattern: str) -> str:
    """Return some names of what the pattern could mean, else of what is in its folder."""
    found = sorted(glob.glob("*".join(glob.escape(part) for part in re.split(r"\{[^}]*\}", pattern))))
    if not found:
        folder = Path(pattern.split("{")[0] + "x").parent
        if not folder.is_dir():
            return f"no folder {folder}"
        found = sorted(str(path) for path in folder.iterdir())
    more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
    return (", ".join(found[:EXAMPLES]) or "nothing") + more
