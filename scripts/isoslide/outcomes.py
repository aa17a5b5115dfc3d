"""Outcomes of a task: the label columns of the sheet, checked, and made classes, values, times and events. Light.

What a task is, by its block of the configuration:

- `binary`, `multiclass`: a class out of a column; its index is the label.
- `regression`: a number out of a column; quarters of the specimens' values stand in for classes where folds are dealt.
- `survival`: time and event. With the loss `classes` the label is good (0) or poor (1), made by cut-offs; with `cox`
  and `hazard` it says whether there was an event.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from isoslide import sheet
from isoslide.sheet import SheetError

SURVIVAL_CLASSES = ("good", "poor")
EVENT_CLASSES = ("censored", "event")
QUARTERS = ("Q1", "Q2", "Q3", "Q4")
MIN_PATIENTS = 3
"""Patients of a class of a multiclass task, at least: one to train, one to tune, one to test."""

Settings = Mapping[str, Any]


def kind_of(settings: Settings) -> str:
    """Return how a task is learned: its type or, of a survival task, its loss (`classes`, `cox` or `hazard`)."""
    return settings.get("loss", "classes") if settings["type"] == "survival" else settings["type"]


def outcomes(rows: pd.DataFrame, task: str, settings: Settings) -> pd.DataFrame:
    """Return the rows that have an outcome, with the columns label, class, time and event.

    `label` (text) is the index of the class, or the number of a regression task; empty in survival with the loss
    `classes` for scans that are neither good nor poor. `class` is what folds are stratified by.
    """
    return _READERS[settings["type"]](rows.copy(), task, settings)


def without_outcome(splits: pd.DataFrame, table: pd.DataFrame) -> str:
    """Return how many included scans a task leaves out because they have no outcome of it; empty where none.

    Args:
        splits: the task's split table, which has all scans with an outcome.
        table: the sheet, see `sheet.read`.
    """
    used = sheet.included(table)
    out = used[~used["scan"].isin(splits["scan"])]
    if out.empty:
        return ""
    by_scanner = ", ".join(f"{name} {n}" for name, n in out["scanner"].value_counts().sort_index().items())
    patients = len(set(out["patient"]) - set(splits["patient"]))
    return f"{len(out)} of {len(used)} scans have no outcome ({by_scanner}), {patients} patients none at all"


def class_names(values: pd.Series, task: str, settings: Settings) -> list[str]:
    """Return the classes in the order of their index: sorted, `positive` as class 1, or as `classes` lists them."""
    classes = sorted(set(values))
    if "positive" in settings:
        positive = settings["positive"]
        if len(classes) != 2 or positive not in classes:
            raise SheetError(
                f"task {task!r}: needs two classes, one of them {positive!r} (tasks.{task}.positive); column "
                f"{settings['label']!r} has {classes[:6]}: correct one of them"
            )
        return [*(name for name in classes if name != positive), positive]
    listed = list(settings.get("classes", classes))
    if sorted(listed) != classes:
        raise SheetError(
            f"config tasks.{task}.classes: {listed}, but column {settings['label']!r} has {classes[:12]}: name each of "
            "them once, or leave the key out"
        )
    return listed


def check_tasks(table: pd.DataFrame, tasks: Mapping[str, Settings], path: str) -> None:
    """Refuse tasks whose columns are absent, or whose labels cannot be what the task needs.

    Args:
        table: the sheet, see `sheet.read`.
        tasks: the block `tasks` of the configuration.
        path: the sheet's path, for messages.

    Raises:
        SheetError: with the row or the key, the value and the remedy.
    """
    for task, settings in tasks.items():
        for key in ("label", "time", "event"):
            column = settings.get(key)
            if column is not None and column not in table:
                raise SheetError(
                    f"config tasks.{task}.{key}: no column {column!r} in {path}; it has {list(table.columns)}: "
                    "name one of them or add the column"
                )
        _CHECKS[settings["type"]](sheet.included(table), task, settings, path)


def enough(patients: pd.DataFrame, kind: str, trains: bool, n_classes: int) -> bool:
    """Say whether a part of a fold can be trained on or scored.

    Classes need one patient each; in survival an event and somebody to compare with and, to train on good and poor,
    both; regression two different values.

    Args:
        patients: a row per patient of the part, columns as of `outcomes`; of one with several classes a row for each.
        kind: see `kind_of`.
        trains: whether models are trained on it, and not scored.
        n_classes: of the task.
    """
    n_present = patients.loc[patients["class"] != "", "class"].nunique()
    if kind == "regression":
        return patients["label"].nunique() > 1
    if kind in ("binary", "multiclass"):
        return n_present == max(2, n_classes)
    compared = bool(patients["event"].eq(1).any()) and len(patients) > 1
    return compared and (kind != "classes" or not trains or n_present == max(2, n_classes))


def _read_classes(rows: pd.DataFrame, task: str, settings: Settings) -> pd.DataFrame:
    rows["class"] = labels(rows, settings["label"])
    rows = rows[rows["class"] != ""].copy()
    rows["time"] = rows["event"] = ""
    index = {name: str(i) for i, name in enumerate(class_names(rows["class"], task, settings))}
    rows["label"] = rows["class"].map(index)
    return rows


def _read_values(rows: pd.DataFrame, task: str, settings: Settings) -> pd.DataFrame:
    rows["label"] = labels(rows, settings["label"])
    rows = rows[rows["label"] != ""].copy()
    rows["time"] = rows["event"] = ""
    values = rows["label"].map(float)
    if len(rows):
        edges = np.quantile(values[~rows["specimen"].duplicated()], (0.25, 0.5, 0.75))
        rows["class"] = [QUARTERS[i] for i in np.searchsorted(edges, values)]
    else:
        rows["class"] = ""
    return rows


def _read_survival(rows: pd.DataFrame, task: str, settings: Settings) -> pd.DataFrame:
    time, event = (labels(rows, settings[name]) for name in ("time", "event"))
    rows = rows[(time != "") & (event != "")].copy()
    rows["time"], rows["event"] = time[rows.index].map(float), event[rows.index].map(int)
    if kind_of(settings) == "classes":
        rows["class"] = [_survival_class(t, e, settings) for t, e in zip(rows["time"], rows["event"], strict=True)]
        names = SURVIVAL_CLASSES
    else:
        rows["class"] = [EVENT_CLASSES[event] for event in rows["event"]]
        names = EVENT_CLASSES
    rows["label"] = rows["class"].map({name: str(i) for i, name in enumerate(names)} | {"": ""})
    return rows


def _survival_class(time: float, event: int, settings: Settings) -> str:
    if event and time < settings["poor_before"]:
        return "poor"
    return "good" if time > settings["good_after"] else ""


def _check_classes(rows: pd.DataFrame, task: str, settings: Settings, path: str) -> None:
    column = settings["label"]
    values = labels(rows, column)
    values = values[values != ""]
    spellings: dict[str, str] = {}
    for line, value in values.items():
        other = spellings.setdefault(value.casefold(), value)
        if other != value:
            raise SheetError(f"{path} line {line}: {column} is spelled {value!r} and {other!r}: use one spelling")
    classes = sorted(spellings.values())
    kind, wanted, other = settings["type"], "two classes", "multiclass"
    if kind == "multiclass":
        wanted, other = "three classes or more", "binary, with one of them as positive"
    if (len(classes) == 2) != (kind == "binary") or len(classes) < 2:
        raise SheetError(
            f"config tasks.{task}: a {kind} task needs {wanted}, column {column!r} of {path} has "
            f"{len(classes)}: {classes[:6]}: correct the column or set the type to {other}"
        )
    if settings.get("positive") not in (None, *classes):
        raise SheetError(
            f"config tasks.{task}.positive: no label {settings['positive']!r} in column {column!r} of {path}: "
            f"use one of {classes}"
        )
    class_names(values, task, settings)
    _check_one_value(rows, values, column, path)
    if kind == "multiclass":
        counts = rows.loc[values.index, "patient"].groupby(values).nunique()
        if counts.min() < MIN_PATIENTS:
            listed = ", ".join(f"{name} {n}" for name, n in counts.items())
            raise SheetError(
                f"config tasks.{task}: class {counts.idxmin()!r} has {counts.min()} patients ({listed}), of which none "
                f"may be in two of training, tuning and test: at least {MIN_PATIENTS} are needed; merge classes, or "
                "empty the cells of the rare one"
            )


def _check_values(rows: pd.DataFrame, task: str, settings: Settings, path: str) -> None:
    column = settings["label"]
    values = labels(rows, column)
    values = values[values != ""]
    for line, text in values.items():
        if not math.isfinite(_number(text)):
            raise SheetError(
                f"{path} line {line}: {column} {text!r}: regression task {task!r} needs numbers, with a point: correct "
                "the cell, or empty it to leave the scan out of the task"
            )
    if len(values) and values.map(float).nunique() < 2:
        raise SheetError(
            f"config tasks.{task}: column {column!r} of {path} has one value only, {values.iloc[0]!r}: nothing can be "
            "learned from it"
        )
    _check_one_value(rows, values, column, path)


def _check_survival(rows: pd.DataFrame, task: str, settings: Settings, path: str) -> None:
    times, events = labels(rows, settings["time"]), labels(rows, settings["event"])
    for line in rows.index:
        time, event = times[line], events[line]
        if time == "" or event == "":
            continue
        if not 0 < _number(time) < float("inf"):
            raise SheetError(f"{path} line {line}: {settings['time']} {time!r}: task {task!r} needs a time above 0")
        if event not in ("0", "1"):
            raise SheetError(f"{path} line {line}: {settings['event']} {event!r}: write 1 for an event, 0 for censored")
    known = rows.assign(time=times.map(_number), event=events)[(times != "") & (events != "")]
    once = known.drop_duplicates(["patient", "time", "event"])
    twice = once[once["patient"].duplicated(keep=False)]
    if len(twice):
        one, other = twice[twice["patient"] == twice["patient"].iloc[0]].iloc[:2].itertuples()
        raise SheetError(
            f"{path} lines {one.Index}, {other.Index}: scans of patient {one.patient!r} differ in {settings['time']} "
            f"or {settings['event']}: {one.time:g}, {one.event} and {other.time:g}, {other.event}: a patient is "
            "followed once, correct one of them"
        )


def _check_one_value(rows: pd.DataFrame, values: pd.Series, column: str, path: str) -> None:
    both = pd.DataFrame({"specimen": rows.loc[values.index, "specimen"], "value": values}).drop_duplicates()
    twice = both[both["specimen"].duplicated(keep=False)]
    if len(twice):
        twice = twice[twice["specimen"] == twice["specimen"].iloc[0]]
        raise SheetError(
            f"{path} lines {', '.join(map(str, twice.index[:2]))}: scans of specimen {twice['specimen'].iloc[0]!r} "
            f"differ in {column}: {' and '.join(map(repr, twice['value'][:2]))}: a label belongs to the glass slide"
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


_READERS: Mapping[str, Callable[[pd.DataFrame, str, Settings], pd.DataFrame]] = {
    "binary": _read_classes,
    "multiclass": _read_classes,
    "regression": _read_values,
    "survival": _read_survival,
}
_CHECKS: Mapping[str, Callable[[pd.DataFrame, str, Settings, str], None]] = {
    "binary": _check_classes,
    "multiclass": _check_classes,
    "regression": _check_values,
    "survival": _check_survival,
}


def labels(table: pd.DataFrame, column: str) -> pd.Series:
    """Return the column with the empty and not-available spellings made the empty string."""
    return table[column].where(~table[column].str.casefold().isin(("na", "nan", "n/a", "none", "null", "unknown")), "")
