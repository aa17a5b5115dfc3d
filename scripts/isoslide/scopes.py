"""Scopes: which test scans a number is about.

`pooled` all; `scanner:A` one scanner's; `pair:A-B` specimens with scans on both; `class:NAME` one class of a multiclass
task against all others. Where a model is tested on scans of a scanner that its own fold neither trained nor tuned on,
`unseen` are those and `seen` the others. Where patients are tested in every fold of several (an external cohort, a
fixed test set) and others are not, `external` are the former and `internal` the latter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

SIDES: Mapping[str, tuple[str, bool]] = {
    "unseen": ("is_unseen", True),
    "seen": ("is_unseen", False),
    "external": ("is_external", True),
    "internal": ("is_external", False),
}
"""Scopes that take a part of each model's scans: the column that `mark` adds, and its value."""


@dataclass(frozen=True)
class Scope:
    """Which scans a number is about; `single` if no model has scans of two scanners there."""

    name: str
    scanners: tuple[str, ...]
    of_class: int | None = None  # only this class, against all others
    single: bool = False

    def inside(self, frame: pd.DataFrame) -> np.ndarray:
        """Return which rows (n,) of the predictions are of the scope."""
        inside = frame["scanner"].isin(self.scanners).to_numpy()
        if self.name in SIDES:
            column, side = SIDES[self.name]
            inside &= (frame[column] == side).to_numpy()
        return inside

    def within(self, scanners: Sequence[str]) -> "Scope":
        """Return the scope of one model, whose scans are of these scanners: they may differ only in a part of them."""
        return replace(self, scanners=tuple(sorted(set(scanners)))) if self.name in SIDES else self


def mark(frame: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with the columns `is_unseen` and `is_external`.

    Args:
        frame: predictions of an arm, with `fold` (number), `patient` and `scanner`.
        splits: the split table as text.
    """
    folds = splits.assign(fold=splits["fold"].astype(int))
    fitted = folds.loc[folds["role"].isin(("train", "tune")), ["fold", "scanner"]].drop_duplicates()
    known = pd.MultiIndex.from_frame(fitted)
    tested = folds[folds["role"] == "test"].groupby("patient")["fold"].nunique()
    n_folds = folds["fold"].nunique()
    always = tested.index[tested == n_folds] if n_folds > 1 else []
    own = pd.MultiIndex.from_arrays([frame["fold"].astype(int), frame["scanner"]])
    return frame.assign(is_unseen=~own.isin(known), is_external=frame["patient"].isin(always).to_numpy())


def scopes(frame: pd.DataFrame, classes: Sequence[str] = ()) -> list[Scope]:
    """Return pooled, the parts that `mark` tells apart, each class, each scanner and each pair of scanners."""
    scanners = tuple(sorted(frame["scanner"].unique()))
    result = [Scope("pooled", scanners)]
    for name, (column, side) in SIDES.items():
        own = frame[frame[column] == side] if column in frame else frame.iloc[:0]
        if own.empty or (len(own) == len(frame) and name != "unseen"):
            continue
        single = own.groupby("fold")["scanner"].nunique().max() < 2
        result.append(Scope(name, tuple(sorted(own["scanner"].unique())), single=single))
    result += [Scope(f"class:{name}", scanners, index) for index, name in enumerate(classes)]
    result += [Scope(f"scanner:{name}", (name,), single=True) for name in scanners]
    return result + [Scope(f"pair:{a}-{b}", (a, b)) for a, b in combinations(scanners, 2)]


def complete(frame: pd.DataFrame, inside: np.ndarray, scope: Scope) -> tuple[np.ndarray, str]:
    """Return the rows (n,) of specimens with scans on all scanners of the scope (else on two), and a note if so.

    In a part of each model's scans, all scanners are those that the model's fold has there.
    """
    keys = ["fold", "specimen"] if scope.name in SIDES else ["specimen"]
    own = frame.loc[inside, [*keys, "scanner"]]
    has = own.groupby(keys)["scanner"].transform("nunique")
    wanted = own.groupby("fold")["scanner"].transform("nunique") if scope.name in SIDES else len(scope.scanners)
    result = np.zeros(len(frame), dtype=bool)
    result[inside] = has == wanted
    if result.any() or len(scope.scanners) < 3:
        return result, ""
    result[inside] = has > 1
    return result, "no specimen has all scanners: specimens with two or more scans"
