"""Nested, patient-grouped, stratified folds: which scan trains, tunes or tests in which fold."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from isoslide import outcomes, sheet

TRAIN, TUNE, TEST, UNUSED = "train", "tune", "test", "unused"
COLUMNS = ("fold", "scan", "specimen", "patient", "scanner", "role", "label", "class", "time", "event")


class SplitError(ValueError):
    """The cohort cannot be split as asked; the message is one line: task, fold, counts, remedy."""


def make(table: pd.DataFrame, task: str, settings: Mapping[str, Any], splits: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per fold and scan that has an outcome.

    Whole patients are dealt to folds, each stratum evenly: class; quarter of the values in regression; in survival
    censored or event, or with the loss `classes` good, poor, or neither with and without event. A cross-validated
    patient is tested in one fold. The column `split` of the sheet says more per scan:

    - `test`: the scan is tested when its patient is, and unused otherwise. A patient who has no other scans is tested
      in every fold.
    - `train`: the scan's patient is never tested, but trains or tunes.
    - `tune`: the scan's patient tunes in every fold, and no others are drawn for tuning.

    If nothing is left to cross-validate, there is one fold. In survival, scans of a patient followed too briefly to
    have a class are unused where they would train.

    Args:
        table: the sample sheet, see `sheet.read`.
        task: its name, for messages.
        settings: the task's block of the config.
        splits: `folds`, `tune` (share of the patients left for training), `seed`.

    Raises:
        SplitError: if labels are missing, or train, tune or test of a fold lacks a class or, in survival, an event.
    """
    rows = outcomes.outcomes(sheet.included(table), task, settings)
    if rows.empty:
        raise SplitError(f"task {task!r}: no scan of the sheet has an outcome: fill in its columns")
    patients = _patients(rows, task)
    rng = np.random.default_rng([splits["seed"], zlib.crc32(task.encode())])
    rotating = patients[patients["use"] == "any"]
    n_folds = splits["folds"] if len(rotating) else 1
    fold_of = _deal(rotating["stratum"], n_folds, rng)
    parts = []
    for fold in range(n_folds):
        tested = patients["use"].eq(TEST) | fold_of.reindex(patients.index).eq(fold)
        tuned = _tuned(patients, tested, splits["tune"], rng)
        part = rows.copy()
        part.insert(0, "fold", fold)
        part["role"] = [_role(row, bool(tested[row.patient]), bool(tuned[row.patient])) for row in rows.itertuples()]
        parts.append(part)
    result = pd.concat(parts).sort_values(["fold", "scan"], kind="stable")[list(COLUMNS)].reset_index(drop=True)
    check(result, task, outcomes.kind_of(settings))
    return result


def check(result: pd.DataFrame, task: str, kind: str) -> None:
    """Refuse overlap of patients, and folds in which a part lacks a class or an event (see `outcomes.enough`).

    Raises:
        SplitError: naming task, fold, part and counts.
    """
    for fold, rows in result.groupby("fold"):
        patients = {role: set(rows.loc[rows["role"] == role, "patient"]) for role in (TRAIN, TUNE, TEST)}
        for one, other in ((TRAIN, TUNE), (TRAIN, TEST), (TUNE, TEST)):
            assert not patients[one] & patients[other], f"fold {fold}: patients in {one} and {other}"
        n_classes = result.loc[result["label"] != "", "label"].nunique()
        for role in (TRAIN, TUNE, TEST):
            part = rows[rows["role"] == role].drop_duplicates("patient")
            counts = part.loc[part["class"] != "", "class"].value_counts().sort_index()
            if not outcomes.enough(part, kind, role == TRAIN, n_classes):
                found = ", ".join(f"{n} {name}" for name, n in counts.items()) or "none with a class"
                events = f", {int(part['event'].eq(1).sum())} with an event" if part["event"].ne("").any() else ""
                raise SplitError(
                    f"task {task!r} fold {fold}: {len(part)} patients to {role} ({found}{events}) are too few to "
                    f"{'score' if role != TRAIN else 'train on'}: use fewer folds, a larger share for tuning, "
                    "or more patients"
                )


def _patients(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return use (any, train, tune or test) and stratum of each patient, sorted by patient."""
    records = {}
    for patient, own in rows.groupby("patient", sort=True):
        marks = set(own["split"])
        if {"train", "tune"} <= marks:
            raise SplitError(
                f"task {task!r}: patient {patient!r} has scans marked train and scans marked tune in the column split: "
                "a patient belongs to one of them"
            )
        use = next((mark for mark in (TRAIN, TUNE) if mark in marks), TEST if marks == {TEST} else "any")
        first = own.sort_values(["label", "event"], ascending=False).iloc[0]  # the highest class of several specimens
        records[patient] = {"use": use, "stratum": first["class"] or f"event {first['event']}"}
    return pd.DataFrame.from_dict(records, orient="index", columns=["use", "stratum"])


def _deal(strata: pd.Series, n_folds: int, rng: np.random.Generator) -> pd.Series:
    """Deal the patients of each stratum to folds in turn; the next stratum goes on where the last one ended."""
    fold, turn = pd.Series(-1, index=strata.index), 0
    for _, group in strata.groupby(strata, sort=True):
        order = rng.permutation(group.index.to_numpy())
        fold[order] = (turn + np.arange(len(order))) % n_folds
        turn += len(order)
    return fold


def _tuned(patients: pd.DataFrame, tested: pd.Series, share: float, rng: np.random.Generator) -> pd.Series:
    """Mark the patients that tune: those the sheet names, else a share of each stratum of those not tested."""
    named = patients["use"] == TUNE
    if named.any():
        return named
    tuned = pd.Series(False, index=patients.index)
    free = patients[~tested]
    carried = 0.0
    for _, group in free.groupby("stratum", sort=True):
        wanted = share * len(group) + carried  # fractions move on to the next stratum, so the total is right
        n = int(np.clip(round(wanted), min(1, len(group) - 1), len(group) - 1))
        carried = wanted - n
        tuned[rng.permutation(group.index.to_numpy())[:n]] = True
    return tuned


def _role(row: Any, tested: bool, tuned: bool) -> str:
    if tested:
        return TEST
    if row.split == TEST:
        return UNUSED
    if tuned:
        return TUNE
    return TRAIN if row.label != "" else UNUSED
