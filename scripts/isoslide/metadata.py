"""What can be told of the label without looking at the tissue: a model that sees only facts about the scan.

Where such a model does well, scanner, site or colour are tied to the label in training, and an image model can score
well by recognising them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from isoslide import task_weighted, uncertainty, weighted

COLUMNS = ["task", "predictors", "value", "low", "high", "n", "reason"]
FOLDS = 5
COLOUR = tuple(f"{name}_{kind}" for name in ("red", "green", "blue") for kind in ("mean", "sd"))
PREDICTORS = {
    "scanner": ("scanner",),
    "site": ("site",),
    "µm/px, tiles, tissue area, sharpness": ("mpp_x", "n_tiles", "tissue_mm2", "sharpness"),
    "colour of the tissue": COLOUR,
}
ALL = "all of these"
CATEGORIES = ("scanner", "site")


def cases(splits: pd.DataFrame, sheet: pd.DataFrame, stages: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the scans that any fold trains or selects on and that have a class, with `y` and their metadata.

    Args:
        splits: the task's split table; `y` is the number of the class in the order of the labels: 1 = positive, poor or
            with an event, 0 to 3 = quarters of the values of a regression task.
        sheet: the sample sheet, for `site`.
        stages: status tables, of which the numbers among `PREDICTORS` are taken; the first that has one counts.
    """
    used = splits[splits["role"].isin(("train", "tune")) & (splits["class"] != "")].drop_duplicates("scan")
    order = used["label"].map(pd.to_numeric).groupby(used["class"]).mean().reset_index().sort_values(["label", "class"])
    number = {name: y for y, name in enumerate(order["class"])}
    table = used[["scan", "patient", "scanner"]].assign(y=used["class"].map(number))
    table = table.merge(sheet[["scan", "site"]], on="scan", how="left")
    for stage in stages.values():
        wanted = [name for group in PREDICTORS.values() for name in group if name in stage and name not in table]
        numbers = stage[["scan", *wanted]].copy()
        numbers[wanted] = numbers[wanted].apply(pd.to_numeric, errors="coerce")
        table = table.merge(numbers.dropna(axis=1, how="all"), on="scan", how="left")
    return table


def baseline(table: pd.DataFrame, task: str, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the AUC of a logistic regression on each group of predictors, and on all (columns: `COLUMNS`).

    Five-fold cross-validation with whole patients; AUC within folds, averaged with pairs; patient-bootstrap interval.
    Of more than two classes it is the mean over classes, each against the others. Groups without a varying column are
    left out.

    Args:
        table: see `cases`.
        task: its name.
        settings: `resamples`, `seed`, `level`.
    """
    rows, seen = [], []
    for name, columns in PREDICTORS.items():
        present = [c for c in columns if c in table and table[c].nunique() > 1]
        if present:
            seen += present
            rows.append({"task": task, "predictors": name} | _auc(table, present, settings))
    if len(rows) > 1:
        rows.append({"task": task, "predictors": ALL} | _auc(table, seen, settings))
    return pd.DataFrame(rows, columns=COLUMNS)


def _auc(table: pd.DataFrame, columns: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    n_classes = max(2, table["y"].max() + 1)
    table = table.dropna(subset=columns).reset_index(drop=True)
    patients = table.groupby("patient")["y"].max()
    of_class = table.groupby("y")["patient"].nunique()  # a patient may have specimens of several
    folds = min(FOLDS, *of_class.reindex(range(n_classes), fill_value=0).tolist())
    result = {"value": np.nan, "low": np.nan, "high": np.nan, "n": len(patients)}
    if folds < 2:
        return result | {"reason": "fewer than two patients of a class"}
    weights = uncertainty.draw(patients, settings["resamples"], np.random.default_rng(settings["seed"]))
    owner = np.searchsorted(patients.index.to_numpy(), table["patient"].to_numpy())
    texts = [name for name in columns if name in CATEGORIES]
    numbers = [name for name in columns if name not in CATEGORIES]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=settings["seed"])
    values, pairs = [], []
    for train, test in splitter.split(table, table["y"], table["patient"]):
        if table["y"].iloc[train].nunique() < n_classes:
            continue
        prepare = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), texts), (StandardScaler(), numbers))
        model = make_pipeline(prepare, LogisticRegression(max_iter=1000)).fit(table.iloc[train], table["y"].iloc[train])
        score = model.decision_function(table.iloc[test])
        # Rounded: equal metadata must tie, whatever the last bits of a sum.
        auc = weighted.auc if n_classes == 2 else task_weighted.macro_auc
        value, weight = auc(table["y"].iloc[test].to_numpy(), np.round(score, 9), weights[:, owner[test]])
        values.append(value)
        pairs.append(weight)
    value = uncertainty.over_folds(np.array(values), np.array(pairs))
    low, high = uncertainty.interval(value, settings["level"], (0, 1))
    return result | {"value": value[0], "low": low, "high": high, "reason": ""}
