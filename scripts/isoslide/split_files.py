"""The user's own division of the cohort: a table that says who trains, tunes and tests in each fold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoslide import splits
from isoslide.splits import SplitError, named

ROLES = (*splits.USED, splits.UNUSED)


def read(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return `fold` (integer), `scan`, `role` of a tab separated file with `fold`, `role` and `scan` or `patient`.

    A row of a patient stands for all its scans; with both columns the scan counts. Every cell is text.

    Args:
        path: the file.
        table: the sample sheet, see `sheet.read`.

    Raises:
        SplitError: with the line, the value and the remedy.
    """
    try:
        rows = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise SplitError(f"no file {path}: correct splits.file in the config, or leave the key out") from None
    unit = "scan" if "scan" in rows else "patient"
    missing = [name for name in ("fold", "role", unit) if name not in rows]
    if missing:
        raise SplitError(
            f"{path}: column {missing[0]!r} is missing; it has {list(rows.columns)}: it needs fold, role, and scan or "
            "patient, separated by tabs"
        )
    rows = rows[["fold", "role", unit]].apply(lambda column: column.str.strip())
    for name, good, wanted in (
        ("fold", rows["fold"].str.fullmatch(r"\d{1,6}"), "a number from 0"),
        ("role", rows["role"].isin(ROLES), f"one of {ROLES}"),
        (unit, rows[unit].isin(table[unit]), f"a {unit} of the sheet"),
    ):
        if not good.all():
            line = int(np.flatnonzero(~good)[0])
            raise SplitError(f"{path} line {line + 2}: {name} {rows[name].iloc[line]!r}: write {wanted}")
    rows["fold"] = rows["fold"].astype(int)
    _check_once(rows, unit, str(path))
    if unit == "patient":
        rows = rows.merge(table[["scan", "patient"]], on="patient").drop(columns="patient")
    return rows


def make(
    table: pd.DataFrame, task: str, settings: Mapping[str, Any], divided: Mapping[str, Any], path: str | Path
) -> pd.DataFrame:
    """Return the split table of a task, see `splits.make`, from the user's file.

    Scans without a row in a fold are unused there. In a fold without tuning patients, they are drawn from those that
    train. In survival, scans without a class are unused where they would train.

    Args:
        table: the sample sheet.
        task: its name.
        settings: the task's block of the config.
        divided: the block `splits` of the config, of which `tune` and `seed` count.
        path: the user's file.

    Raises:
        SplitError: if the file cannot be used, patients stand in two parts of a fold, or a part lacks a class.
    """
    given = read(path, table)
    rows = splits.with_outcome(table, task, settings)
    patients = splits.patient_table(rows, task)
    rng = np.random.default_rng([divided["seed"], 0])
    parts = []
    for fold, own in given.groupby("fold"):
        part = rows.copy()
        part.insert(0, "fold", fold)
        part["role"] = part["scan"].map(own.set_index("scan")["role"]).fillna(splits.UNUSED)
        _check_marks(part, path)
        if splits.TUNE not in set(part["role"]):
            trains = patients.index.isin(part.loc[part["role"] == splits.TRAIN, "patient"])
            tuned = splits.tuning_patients(patients, pd.Series(~trains, patients.index), divided["tune"], rng)
            chosen = part["patient"].map(tuned) & part["role"].eq(splits.TRAIN)
            part.loc[chosen, "role"] = splits.TUNE
        part.loc[part["role"].eq(splits.TRAIN) & part["label"].eq(""), "role"] = splits.UNUSED
        parts.append(part)
    return splits.finished(pd.concat(parts), task, settings)


def _check_once(rows: pd.DataFrame, unit: str, path: str) -> None:
    """Refuse a scan or patient with two roles in one fold."""
    roles = rows.groupby(["fold", unit])["role"].agg(lambda found: tuple(sorted(set(found))))
    both = roles[roles.map(len) > 1]
    if len(both):
        fold, (one, other) = both.index[0][0], both.iloc[0][:2]
        shared = list(both[fold][both[fold] == both.iloc[0]].index)
        raise SplitError(
            f"{path}: fold {fold}: {len(shared)} {unit}s stand in {one} and in {other}: {named(shared)}: "
            f"a {unit} belongs to one of them"
        )
    twice = rows[rows.duplicated(["fold", unit])]
    if len(twice):
        line = twice.index[0]
        raise SplitError(
            f"{path} line {line + 2}: {unit} {twice[unit].iloc[0]!r} stands twice in fold {twice['fold'].iloc[0]}"
        )


def _check_marks(part: pd.DataFrame, path: str | Path) -> None:
    """Refuse a role that the column `split` of the sheet speaks against."""
    wrong = part[part["split"].ne("") & part["role"].ne(part["split"]) & part["role"].ne(splits.UNUSED)]
    if len(wrong):
        row = wrong.iloc[0]
        raise SplitError(
            f"{path}: fold {row['fold']}: scan {row['scan']!r} is to {row['role']}, the sheet's column split says "
            f"{row['split']}: correct one of them"
        )
