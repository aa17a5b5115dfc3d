"""The sample sheet: one row per scan. Reading, defaults, and every check that can be made before a job starts."""

import csv
import hashlib
import io
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

REQUIRED = ("scan", "scanner")
OPTIONAL = ("path", "specimen", "patient", "site", "stain", "mpp", "mpp_override", "reference", "split", "exclude")
SMALL_BATCH, MOST_BATCHES = 16, 256
SPLITS = ("", "train", "tune", "test")
SLIDE_COLUMNS = ("scan", "path", "scanner", "specimen", "mpp", "mpp_override", "reference")  # of the slide stages
DEMO_SLIDES = "results/demo/"  # scans under this folder are made by the rule make_demo, so need not exist yet
# File names are made of ids. Anything printable is allowed but separators, wildcards' braces, leading dots (such files
# are hidden) and leading dashes (they read as options).
BAD_ID = re.compile(r"^[.-]|[/\\{}\x00-\x1f\x7f]|^$")


class SheetError(ValueError):
    """The sheet cannot be used; the message is one line: where, what, how to mend it."""


def read(path: str | Path) -> pd.DataFrame:
    """Read and check a tab or comma separated sheet.

    Every cell is text, so that ids keep their leading zeros; an empty cell is the empty string. `specimen` defaults to
    the scan and `patient` to the specimen.

    Raises:
        SheetError: with the row (line number of the file), the value and the remedy.
    """
    table = _read_text(Path(path))
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise SheetError(f"{path}: column {missing[0]!r} is missing; it has {list(table.columns)}: add the column")
    for name in OPTIONAL:
        if name not in table:
            table[name] = ""
    table["specimen"] = table["specimen"].where(table["specimen"] != "", table["scan"])
    table["patient"] = table["patient"].where(table["patient"] != "", table["specimen"])
    for check in (_check_ids, _check_unique, _check_spelling, _check_groups, _check_values, _check_references):
        check(table, str(path))
    return table


def check_paths(table: pd.DataFrame, path: str) -> None:
    """Refuse a scan without a path or whose file is absent, unless the demo makes it or the row is excluded."""
    for line, row in _lines(table):
        if not row["exclude"] and not row["path"]:
            raise SheetError(
                f"{path} line {line}: scan {row['scan']!r} has no path: fill the column 'path'; it may be empty only "
                "where all features are imported (config import)"
            )
        if not row["exclude"] and not row["path"].startswith(DEMO_SLIDES) and not os.path.exists(row["path"]):
            raise SheetError(
                f"{path} line {line}: scan {row['scan']!r}: no file {row['path']!r}: correct the path, "
                "or write a reason into the column 'exclude'"
            )


def included(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are not excluded."""
    return table[table["exclude"] == ""]


def batch_of(specimen: str, n_batches: int) -> int:
    """Return the batch of a specimen: the leading bits of its hash, so it never depends on the other rows."""
    return int.from_bytes(hashlib.sha256(specimen.encode()).digest()[:4], "big") * n_batches >> 32


def batches(table: pd.DataFrame, batch_size: int | None = None) -> dict[str, pd.DataFrame]:
    """Group the included scans into batches, scans of one specimen together.

    The number of batches is a power of two, so a growing sheet keeps its batches until it has doubled.

    Args:
        table: of the sheet.
        batch_size: scans in a batch, at most about so many. None: 16, so that a small cohort keeps all cores busy, and
            more where that would make over 256 batches, which cost more to schedule than they gain.

    Returns:
        Batch name (`b0`, `b1`, …) to its rows; batches without a scan are left out.
    """
    rows = included(table)
    batch_size = batch_size or max(SMALL_BATCH, math.ceil(len(rows) / MOST_BATCHES))
    n_batches = 1
    while n_batches * batch_size < len(rows):
        n_batches *= 2
    width = len(str(n_batches - 1))
    names = rows["specimen"].map(lambda specimen: f"b{batch_of(specimen, n_batches):0{width}d}")
    return {name: group for name, group in rows.groupby(names, sort=True)}


def _read_text(path: Path) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte order mark
    except FileNotFoundError:
        raise SheetError(f"no sample sheet {path}: name it in the config under 'sheet'") from None
    except UnicodeDecodeError as error:
        raise SheetError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    header = text.split("\n", 1)[0]
    separator = "\t" if "\t" in header else ","
    if separator not in header:
        raise SheetError(f"{path}: header {header.strip()!r} has neither tabs nor commas: save it as TSV or CSV")
    lines = _cells(path, text, separator)
    names = [name.strip() for name in next(lines)[1]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SheetError(f"{path}: column {repeated[0]!r} stands twice: remove one")
    numbers, rows = [], []
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(names):
            raise SheetError(f"{path} line {number}: {len(cells)} cells but {len(names)} columns: remove the extra one")
        numbers.append(number)
        rows.append([*(cell.strip() for cell in cells), *[""] * (len(names) - len(cells))])
    if not rows:
        raise SheetError(f"{path}: no rows: add one row per scan")
    return pd.DataFrame(rows, columns=names, index=numbers, dtype=str)


def _cells(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line. A quotation mark that is not closed would swallow the scans behind it."""
    lines = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    remedy = "a cell that begins with a quotation mark has to end with one, on the same line: mend it"
    for number in itertools.count(1):
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise SheetError(f"{path} line {number}: {error}: {remedy}") from error
        if cells is None:
            return
        if lines.line_num > number:
            raise SheetError(f"{path} line {number}: a cell goes on in line {lines.line_num}: {remedy}")
        yield number, cells


def _lines(table: pd.DataFrame) -> Iterable[tuple[int, dict[str, str]]]:
    return zip(table.index, table.to_dict("records"), strict=True)


def _check_ids(table: pd.DataFrame, path: str) -> None:
    for name in ("scan", "specimen", "patient", "scanner"):
        bad = table[table[name].str.contains(BAD_ID)]
        if len(bad):
            raise SheetError(
                f"{path} line {bad.index[0]}: {name} {bad[name].iloc[0]!r}: ids become file names, so they may not be "
                r"empty, start with . or -, or hold / \ { } or control characters: rename it"
            )
        long = table[table[name].map(lambda text: len(text.encode())) > 200]
        if len(long):
            raise SheetError(
                f"{path} line {long.index[0]}: {name} {long[name].iloc[0]!r} is over 200 bytes: shorten it"
            )


def _check_unique(table: pd.DataFrame, path: str) -> None:
    lower = table["scan"].map(_folded)  # a case-insensitive disk would give both the same file
    twice = table[lower.duplicated(keep=False)]
    if len(twice):
        same = twice[lower[twice.index] == lower[twice.index[0]]]
        raise SheetError(
            f"{path} lines {', '.join(map(str, same.index))}: scan {same['scan'].iloc[0]!r} stands {len(same)} times: "
            "give every scan an id of its own"
        )


def _folded(text: str) -> str:
    """Return a name without what one may not see in it: case, kinds of blanks, how an accent is encoded."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _check_spelling(table: pd.DataFrame, path: str) -> None:
    """Refuse two spellings of one name: a patient under two names would train and test, a scanner would be two."""
    for column in ("scanner", "patient", "specimen"):
        names = table[column].drop_duplicates()
        folded = names.map(_folded)
        alike = names[folded.duplicated(keep=False)]
        if len(alike):
            alike = alike[folded[alike.index] == folded[alike.index[0]]]
            raise SheetError(
                f"{path} lines {', '.join(map(str, alike.index))}: {column} {' and '.join(map(repr, alike))} are spelt "
                "nearly alike: use one spelling, or names that differ in more than case or blanks"
            )


def _check_groups(table: pd.DataFrame, path: str) -> None:
    owners = table.drop_duplicates(["specimen", "patient"])
    twice = owners[owners["specimen"].duplicated(keep=False)]
    if len(twice):
        same = twice[twice["specimen"] == twice["specimen"].iloc[0]]
        raise SheetError(
            f"{path} lines {', '.join(map(str, same.index))}: specimen {same['specimen'].iloc[0]!r} is of patients "
            f"{' and '.join(map(repr, same['patient']))}: one glass slide is of one patient, correct one of them"
        )


def _check_values(table: pd.DataFrame, path: str) -> None:
    for line, row in _lines(table[["split", "mpp", "mpp_override"]].drop_duplicates()):
        if row["split"] not in SPLITS:
            raise SheetError(f"{path} line {line}: split {row['split']!r}: leave it empty or use one of {SPLITS[1:]}")
        if row["mpp"]:
            try:
                mpp = float(row["mpp"])
            except ValueError:
                mpp = float("nan")
            if not 0.05 <= mpp <= 5:
                raise SheetError(
                    f"{path} line {line}: mpp {row['mpp']!r}: give µm per pixel as a number from 0.05 to 5, "
                    "with a point, or leave it empty to take it from the file"
                )
        if row["mpp_override"] not in ("", "yes") or (row["mpp_override"] and not row["mpp"]):
            raise SheetError(
                f"{path} line {line}: mpp_override {row['mpp_override']!r} with mpp {row['mpp']!r}: write yes where "
                "the sheet's mpp is to win over the file's, and give that mpp; else leave the cell empty"
            )


def _check_references(table: pd.DataFrame, path: str) -> None:
    named = included(table)
    named = named[named["reference"] != ""]
    wrong = named[named["reference"] != "yes"]
    if len(wrong):
        raise SheetError(
            f"{path} line {wrong.index[0]}: reference {wrong['reference'].iloc[0]!r}: write yes for the scan that the "
            "others of its specimen are laid onto, else leave the cell empty"
        )
    twice = named[named["specimen"].duplicated(keep=False)]
    if len(twice):
        same = twice[twice["specimen"] == twice["specimen"].iloc[0]]
        raise SheetError(
            f"{path} lines {', '.join(map(str, same.index))}: specimen {same['specimen'].iloc[0]!r} has {len(same)} "
            "reference scans: leave yes at one of them"
        )


def split_columns(task: Mapping[str, Any]) -> list[str]:
    """Return the columns that the folds of a task are drawn from."""
    labels_of_task = [task[key] for key in ("label", "time", "event") if key in task]
    return ["scan", "specimen", "patient", "scanner", "site", "split", *labels_of_task]
