"""Nested, patient-grouped, stratified folds: which scan trains, tunes or tests in which fold.

Folds are numbered through: with `repeats` the fold k of draw r is number r x folds + k, and each patient is tested once
in every draw. Metrics are computed per model and averaged over the models of a seed, so more draws average over more
divisions of the same patients; intervals rest on resampled patients and do not shrink with the number of draws.
"""

import zlib
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from isoslide import outcomes, sheet

TRAIN, TUNE, TEST, UNUSED = "train", "tune", "test", "unused"
USED = (TRAIN, TUNE, TEST)
COLUMNS = ("fold", "scan", "specimen", "patient", "scanner", "role", "label", "class", "time", "event")
LISTED = 5  # names in a message, at most


class SplitError(ValueError):
    """The cohort cannot be split as asked; the message is one line: task, fold, counts, remedy."""


def make(table: pd.DataFrame, task: str, settings: Mapping[str, Any], splits: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per fold and scan that has an outcome.

    Whole patients are dealt to folds, each stratum evenly: class; quarter of the values in regression; in survival
    censored or event, or with the loss `classes` good, poor, or neither with and without event. A cross-validated
    patient is tested in one fold of every draw. By `site` whole sites are dealt. By `scanner` there is a fold per
    scanner, which neither trains nor tunes in it; the patients of the fold are tested on all their scans, and another
    draw moves the scanners on by one. The column `split` of the sheet says more per scan:

    - `test`: the scan is tested when its patient is, and unused otherwise. A patient who has no other scans is tested
      in every fold.
    - `train`: the scan's patient is never tested, but trains or tunes.
    - `tune`: the scan's patient tunes in every fold, and no others are drawn for tuning.

    If nothing is left to cross-validate, a draw has one fold, or by `scanner` one for each. In survival, scans of a
    patient followed too briefly to have a class are unused where they would train.

    Args:
        table: the sample sheet, see `sheet.read`.
        task: its name, for messages.
        settings: the task's block of the config.
        splits: `folds`, `tune` (share of the patients left for training), `seed`; `by` (patient) and `repeats` (1).

    Raises:
        SplitError: if labels are missing, or train, tune or test of a fold lacks a class or, in survival, an event.
    """
    rows = with_outcome(table, task, settings)
    patients = patient_table(rows, task)
    rng = np.random.default_rng([splits["seed"], zlib.crc32(task.encode())])
    rotating = patients[patients["use"] == "any"]
    by, repeats = splits.get("by", "patient"), splits.get("repeats", 1)
    held_out = _scanners(rows, task) if by == "scanner" else []
    n_folds = len(held_out) or (splits["folds"] if len(rotating) else 1)
    parts = []
    for repeat in range(repeats):
        if by == "site" and len(rotating):
            fold_of = _deal_sites(rotating["stratum"], _sites(rows, rotating.index, n_folds, task), n_folds, rng)
        else:
            fold_of = _deal(rotating["stratum"], n_folds, rng)
        for fold in range(n_folds):
            held = held_out[(fold + repeat) % n_folds] if held_out else None
            tested = patients["use"].eq(TEST) | fold_of.reindex(patients.index).eq(fold)
            tuned = tuning_patients(patients, tested, splits["tune"], rng)
            part = rows.copy()
            part.insert(0, "fold", repeat * n_folds + fold)
            part["role"] = [
                _role(row, bool(tested[row.patient]), bool(tuned[row.patient]), held) for row in rows.itertuples()
            ]
            parts.append(part)
    return finished(pd.concat(parts), task, settings)


def with_outcome(table: pd.DataFrame, task: str, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the included scans that have an outcome, see `outcomes.outcomes`.

    Raises:
        SplitError: if there are none.
    """
    rows = outcomes.outcomes(sheet.included(table), task, settings)
    if rows.empty:
        raise SplitError(f"task {task!r}: no scan of the sheet has an outcome: fill in its columns")
    return rows


def finished(rows: pd.DataFrame, task: str, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of all folds, checked, in the columns and the order of a split table."""
    result = rows.sort_values(["fold", "scan"], kind="stable")[list(COLUMNS)].reset_index(drop=True)
    check(result, task, outcomes.kind_of(settings))
    return result


def check(result: pd.DataFrame, task: str, kind: str) -> None:
    """Refuse overlap of patients, and folds in which a part lacks a class or an event (see `outcomes.enough`).

    Raises:
        SplitError: naming task, fold, part and counts, or the patients in two parts.
    """
    for fold, rows in result.groupby("fold"):
        for one, other in combinations(USED, 2):
            if shared := sorted(_patients_of(rows, one) & _patients_of(rows, other)):
                raise SplitError(
                    f"task {task!r} fold {fold}: {len(shared)} patients stand in {one} and in {other}: "
                    f"{named(shared)}: a patient belongs to one of them"
                )
        n_classes = result.loc[result["label"] != "", "label"].nunique()
        for role in USED:
            part = _one_of_each(rows[rows["role"] == role])
            counts = part[part["class"] != ""].groupby("class")["patient"].nunique()
            if not outcomes.enough(part, kind, role == TRAIN, n_classes):
                found = ", ".join(f"{n} {name}" for name, n in counts.items()) or "none with a class"
                events = f", {_with_event(part)} with an event" if part["event"].ne("").any() else ""
                raise SplitError(
                    f"task {task!r} fold {fold}: {part['patient'].nunique()} patients to {role} ({found}{events}) are "
                    f"too few to {'score' if role != TRAIN else 'train on'}: use fewer folds, a larger share for "
                    "tuning, or more patients"
                )


def proof(result: pd.DataFrame, sites: Mapping[str, str]) -> pd.DataFrame:
    """Return what each part of each fold holds and what it shares with the others, counted from the finished table.

    Columns: fold, role; patients, specimens, scans, events (patients); classes and scanners (patients and scans of
    each, as text; a patient with specimens of two classes counts in both); held_out (scanners of the role that the
    fold neither trains nor tunes on); shared_patients, shared_specimens, shared_sites (also in another of train, tune
    and test).

    Args:
        result: the split table.
        sites: scan to site; the empty string where it is not known.
    """
    result = result.assign(site=result["scan"].map(sites).fillna(""))
    records = []
    for fold, rows in result[result["role"].isin(USED)].groupby("fold"):
        fitted = set(rows.loc[rows["role"] != TEST, "scanner"])
        for role in USED:
            own, others = rows[rows["role"] == role], rows[rows["role"] != role]
            people = _one_of_each(own)
            classed = people[people["class"] != ""].drop_duplicates(["patient", "class"])
            shared = {
                f"shared_{name}s": len((set(own[name]) & set(others[name])) - {""})
                for name in ("patient", "specimen", "site")
            }
            records.append(
                {
                    "fold": fold,
                    "role": role,
                    "patients": people["patient"].nunique(),
                    "specimens": own["specimen"].nunique(),
                    "scans": len(own),
                    "events": _with_event(people),
                    "classes": _counts(classed["class"]),
                    "scanners": _counts(own["scanner"]),
                    "held_out": ", ".join(sorted(set(own["scanner"]) - fitted)),
                    **shared,
                }
            )
    return pd.DataFrame(records)


def named(names: list[str]) -> str:
    """Return the first names of a list as text, and how many are left."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


def patient_table(rows: pd.DataFrame, task: str) -> pd.DataFrame:
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
        # The highest class of several specimens; numbers are text here, and "9" is below "10".
        first = own.sort_values(["label", "event"], ascending=False, key=pd.to_numeric).iloc[0]
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


def _deal_sites(strata: pd.Series, sites: pd.Series, n_folds: int, rng: np.random.Generator) -> pd.Series:
    """Deal whole sites to folds, large ones first, each where the fold's strata then come closest to an even share.

    Args:
        strata: of the patients.
        sites: of the same patients.
        n_folds: at most the number of sites, so that no fold stays empty.
        rng: breaks ties.
    """
    counts = pd.crosstab(sites, strata)  # (sites, strata)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts.sum(1).to_numpy()[order], kind="stable")]
    even = counts.sum(0).to_numpy() / n_folds
    held = np.zeros((n_folds, counts.shape[1]))
    fold_of_site = {}
    for place, number in enumerate(order):
        added = counts.iloc[number].to_numpy()
        cost = ((held + added - even) ** 2 - (held - even) ** 2).sum(1)
        if empty := [fold for fold in range(n_folds) if not held[fold].any()]:
            cost = cost if len(order) - place > len(empty) else np.where(held.any(1), np.inf, cost)
        fold = int(np.argmin(cost))
        held[fold] += added
        fold_of_site[counts.index[number]] = fold
    return sites.map(fold_of_site)


def _sites(rows: pd.DataFrame, patients: pd.Index, n_folds: int, task: str) -> pd.Series:
    """Return the site of each patient."""
    rows = rows[rows["patient"].isin(patients)]
    if (rows["site"] == "").any():
        scans = sorted(rows.loc[rows["site"] == "", "scan"])
        raise SplitError(f"task {task!r}: splits.by is 'site', but the sheet names none for scan {named(scans)}")
    owners = rows.drop_duplicates(["patient", "site"])
    if (twice := owners["patient"].duplicated()).any():
        people = sorted(owners.loc[twice, "patient"].unique())
        raise SplitError(
            f"task {task!r}: splits.by is 'site', but patient {named(people)} has scans of several sites: give each "
            "patient one site, or split by patient"
        )
    if owners["site"].nunique() < n_folds:
        raise SplitError(
            f"task {task!r}: {owners['site'].nunique()} sites cannot fill {n_folds} folds: set splits.folds to at most "
            "their number"
        )
    return owners.set_index("patient")["site"].reindex(patients)


def _scanners(rows: pd.DataFrame, task: str) -> list[str]:
    """Return the scanners that are left out in turn: those that may train."""
    found = sorted(set(rows.loc[rows["split"] != TEST, "scanner"]))
    if len(found) < 2:
        raise SplitError(
            f"task {task!r}: splits.by is 'scanner', which leaves each out in turn, but only {named(found)} may train"
        )
    return found


def _patients_of(rows: pd.DataFrame, role: str) -> set[str]:
    return set(rows.loc[rows["role"] == role, "patient"])


def _one_of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row of each patient and outcome: specimens of one patient may differ in theirs."""
    return rows.drop_duplicates(["patient", "label", "class", "event"])


def _with_event(rows: pd.DataFrame) -> int:
    return rows.loc[rows["event"].eq(1), "patient"].nunique()


def _counts(values: pd.Series) -> str:
    """Return the values with their counts, e.g. `negative 12, positive 7`."""
    return ", ".join(f"{name} {n}" for name, n in values.value_counts().sort_index().items())


def tuning_patients(patients: pd.DataFrame, tested: pd.Series, share: float, rng: np.random.Generator) -> pd.Series:
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


def _role(row: Any, tested: bool, tuned: bool, held_out: str | None) -> str:
    if tested:
        return TEST
    if row.split == TEST or row.scanner == held_out:
        return UNUSED
    if tuned:
        return TUNE
    return TRAIN if row.label != "" else UNUSED
