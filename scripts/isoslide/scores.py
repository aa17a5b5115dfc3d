"""What is drawn from the predictions themselves: ROC, calibration, survival curves, differences of scan pairs.

Each function takes the predictions of one arm (columns as written by predict_scans.py) and returns a table.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isoslide import metrics, survival
from isoslide.estimates import class_columns
from isoslide.metrics import Undefined

FPR = np.linspace(0, 1, 51)
HIGH, LOW = "high risk", "low risk"
AGREED = "all scanners agree"


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `seed`, `specimen`, `pair`, `first`, `second`: each two scans of a specimen, scanners in order.

    In a multiclass task there is a row for each class.
    """
    keys = ["seed", "fold", "specimen", "scanner"]
    columns = class_columns(frame) or ["p"]
    each = pd.concat([frame[keys].assign(of=name, score=frame[name]) for name in columns])
    both = each.merge(each, on=["seed", "fold", "specimen", "of"], suffixes=("", "_other"))
    both = both[both["scanner"] < both["scanner_other"]]
    both = both.assign(pair=both["scanner"] + "-" + both["scanner_other"])
    both = both.rename(columns={"score": "first", "score_other": "second"}).sort_values(
        ["seed", "pair", "specimen", "of"]
    )
    return both[["seed", "specimen", "pair", "first", "second"]].reset_index(drop=True)


def class_shares(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return `row`, `column`, `share`: of the scans of a class (row), how many are predicted as each (column).

    All scanners and models with finite scores together; a row sums to 1.
    """
    frame = frame[np.isfinite(frame["p"])]
    predicted = frame[class_columns(frame)].to_numpy().argmax(1)
    return _shares(frame["label"].to_numpy(int), predicted, names, by_row=True)


def decision_shares(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return `row`, `column`, `share`: of all pairs of scans of a specimen, how many have each two predicted classes.

    The row is the class on the scanner whose name comes first. All pairs and models with finite scores together; the
    sum is 1.
    """
    frame = frame[np.isfinite(frame["p"])]
    keys = ["seed", "fold", "specimen", "scanner"]
    each = frame[keys].assign(predicted=frame[class_columns(frame)].to_numpy().argmax(1))
    both = each.merge(each, on=keys[:3], suffixes=("", "_other"))
    both = both[both["scanner"] < both["scanner_other"]]
    return _shares(both["predicted"].to_numpy(int), both["predicted_other"].to_numpy(int), names, by_row=False)


def _shares(rows: np.ndarray, columns: np.ndarray, names: Sequence[str], by_row: bool) -> pd.DataFrame:
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (rows, columns), 1)
    total = counts.sum(1, keepdims=True) if by_row else counts.sum()
    share = counts / np.maximum(total, 1)
    pairs = [(row, column) for row in names for column in names]
    return pd.DataFrame(pairs, columns=["row", "column"]).assign(share=share.ravel())


def limits_of_agreement(both: pd.DataFrame) -> pd.DataFrame:
    """Return by `pair` (last row: `all`) `n`, `bias`, `low`, `high` of second minus first score.

    bias = mean difference; limits of agreement = bias ± 1.96 SD of the differences (Bland & Altman 1986). The SD
    (1/(n - 1)) is taken over the specimens of a seed, squares averaged over seeds; n = specimens.
    """
    rows = []
    both = both.assign(difference=both["second"] - both["first"])
    for name, group in [*both.groupby("pair", sort=True), ("all", both)]:
        bias = group["difference"].mean()
        sd = np.sqrt(group.groupby("seed")["difference"].var().mean())
        n = group["specimen"].nunique()
        rows.append({"pair": name, "n": n, "bias": bias, "low": bias - 1.96 * sd, "high": bias + 1.96 * sd})
    return pd.DataFrame(rows, columns=["pair", "n", "bias", "low", "high"])


def roc(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `fpr`, `tpr`: the ROC curve averaged over models at fixed false positive rates, weighted with pairs.

    Vertical averaging (Fawcett 2006): scores of different models are never ranked against each other.
    """
    curves, weights = [], []
    for _, rows in frame.groupby(["seed", "fold"]):
        y, score = rows["label"].to_numpy().astype(bool), rows["p"].to_numpy()
        if y.any() and not y.all() and np.isfinite(score).all():
            order = np.argsort(-score, kind="stable")
            last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
            tpr, fpr = (np.append(0, np.cumsum(part[order])[last]) / part.sum() for part in (y, ~y))
            curves.append(np.interp(FPR, fpr, tpr))
            weights.append(y.sum() * (~y).sum())
    if not curves:
        return pd.DataFrame({"fpr": [], "tpr": []})
    mean = np.average(curves, axis=0, weights=weights)
    return pd.DataFrame({"fpr": np.append(0, FPR), "tpr": np.append(0, mean)})


def calibration(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `scanner`, `bin`, `n`, `predicted`, `observed`: means in bins of equal mass, all models together."""
    rows = []
    for scanner, scans in frame[np.isfinite(frame["p"])].groupby("scanner", sort=True):
        bins = metrics.equal_mass_bins(scans["p"])
        for number, group in scans.groupby(bins):
            means = {"predicted": group["p"].mean(), "observed": group["label"].mean()}
            rows.append({"scanner": scanner, "bin": number, "n": len(group)} | means)
    return pd.DataFrame(rows, columns=["scanner", "bin", "n", "predicted", "observed"])


def risk_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `scanner`, `patient`, `time`, `event`, `high`: the risk group of every patient on every scanner.

    A patient is at high risk on a scanner when its scores there, over specimens, folds and seeds, lie on average at or
    above the threshold of the model that gave them (column `threshold`; scores of models without one do not count).
    """
    known = frame[np.isfinite(frame["p"]) & np.isfinite(frame["threshold"])]
    known = known.assign(margin=known["p"] - known["threshold"])
    patients = known.groupby(["scanner", "patient"], as_index=False).agg(
        margin=("margin", "mean"), time=("time", "first"), event=("event", "first")
    )
    return patients.assign(high=patients["margin"] >= 0).drop(columns="margin")


def survival_tests(patients: pd.DataFrame) -> pd.DataFrame:
    """Return by `scanner` (last row: `all scanners agree`) both groups' `n_low`, `n_high`, `events_low`, `events_high`,
    the log-rank test's `p`, the `hazard_ratio` of high against low risk, and the `reason` where there is none.

    The last row is of the patients who are in one group on every scanner; n of those left out is in `reason`.
    """
    same = patients.groupby("patient")["high"].transform("nunique") == 1
    one = patients[same].drop_duplicates("patient")
    rows = []
    for scanner, group in [*patients.groupby("scanner", sort=True), (AGREED, one)]:
        low, high = group[~group["high"]], group[group["high"]]
        row = {"scanner": scanner, "n_low": len(low), "n_high": len(high)}
        row |= {"events_low": int(low["event"].sum()), "events_high": int(high["event"].sum())}
        row |= {"p": np.nan, "hazard_ratio": np.nan, "reason": ""}
        try:
            row["p"] = survival.log_rank_p(group["time"], group["event"], group["high"])
            row["hazard_ratio"] = np.exp(survival.log_hazard_ratio(group["time"], group["event"], group["high"]))
        except Undefined as undefined:
            row["reason"] = undefined.reason
        rows.append(row)
    if rows and (moved := patients["patient"].nunique() - len(one)):
        rows[-1]["reason"] = "; ".join(filter(None, [rows[-1]["reason"], f"{moved} change groups between scanners"]))
    return pd.DataFrame(rows)


def survival_curves(patients: pd.DataFrame) -> pd.DataFrame:
    """Return `scanner`, `group`, `n`, `time`, `survival`: Kaplan-Meier steps by scanner and risk group.

    Takes the table of `risk_groups`.
    """
    tables = []
    for scanner, own in patients.groupby("scanner", sort=True):
        for name, group in ((LOW, own[~own["high"]]), (HIGH, own[own["high"]])):
            try:
                time, share = survival.kaplan_meier(group["time"], group["event"])
            except Undefined:
                continue
            table = {"scanner": scanner, "group": name, "n": len(group), "time": time, "survival": share}
            tables.append(pd.DataFrame(table))
    return pd.concat(tables) if tables else pd.DataFrame(columns=["scanner", "group", "n", "time", "survival"])
