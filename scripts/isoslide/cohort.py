"""Who is in the study: counts by scanner and class, label-scanner association, and what was lost on the way."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from isoslide import metrics, status

USABLE_ALONE = "not_registered"
"""Status of a scan that could not be laid onto its reference: still used, but never as one of a pair."""


def by_scanner(sheet: pd.DataFrame) -> pd.DataFrame:
    """Return scans, specimens and patients by scanner, with a last row for all."""
    rows = []
    for name, group in [*sheet.groupby("scanner", sort=True), ("all", sheet)]:
        excluded = int((group["exclude"] != "").sum())
        counts = {"patients": group["patient"].nunique(), "specimens": group["specimen"].nunique(), "scans": len(group)}
        rows.append({"scanner": name} | counts | {"excluded in the sheet": excluded})
    return pd.DataFrame(rows)


def images(checks: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return by `scanner` what its files are: µm/px, colour profile, vendor, software; None where nothing is known.

    Args:
        checks: status table of the checks; scans that could not be opened are left out.
    """
    if checks is None or not {"mpp_x", "icc", "vendor", "software"} <= set(checks):
        return None
    rows = []
    for name, group in checks[checks["status"] == status.OK].groupby("scanner", sort=True):
        mpp = pd.to_numeric(group["mpp_x"], errors="coerce").dropna()
        sizes = sorted({f"{value:.4g}" for value in mpp}, key=float)
        profiles = group["icc"].value_counts()
        software = group["software"].map(_without_details).replace("", "not named").value_counts()
        rows.append(
            {
                "scanner": name,
                "µm/px": ", ".join(sizes) if len(sizes) < 4 else f"{sizes[0]} to {sizes[-1]}",
                "colour profile": ", ".join(f"{text}: {n}" for text, n in profiles.items()),
                "format": ", ".join(group["vendor"].value_counts().index),
                "software": "; ".join(software.index[:3]) + (" and others" if len(software) > 3 else ""),
            }
        )
    return pd.DataFrame(rows) if rows else None


def _without_details(software: str) -> str:
    """Return what a file says of its software up to the first comma, semicolon or line end."""
    return re.split(r"[,;|\r\n]", software)[0].strip()


def training_counts(splits: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return `scanner`, `class`, `scans`: the distinct scans that any fold trains or selects on."""
    used = splits[splits["role"].isin(("train", "tune"))].drop_duplicates("scan")
    names = used["class"].where(used["class"] != "", "no class" if kind == "survival" else used["label"])
    return used.assign(**{"class": names}).groupby(["scanner", "class"]).size().rename("scans").reset_index()


def association(splits: pd.DataFrame, sheet: pd.DataFrame) -> list[dict[str, Any]]:
    """Return Cramér's V of class with scanner, and with site if the sheet has any, over the scans in training.

    In survival as good or poor also that of the event, over all scans in training or tuning.
    """
    trained = splits[splits["role"].isin(("train", "tune"))].drop_duplicates("scan")
    trained = trained.merge(sheet[["scan", "site"]], on="scan", how="left")
    columns = ("scanner", "site") if (trained["site"] != "").any() else ("scanner",)
    by_class = (trained["event"] != "").any() and "event" not in set(trained["class"])
    rows = []
    for what in ("class", "event") if by_class else ("class",):
        used = trained[trained[what] != ""]
        for column in columns:
            try:
                row = {"value": metrics.cramers_v(used[what], used[column]), "reason": ""}
            except metrics.Undefined as undefined:
                row = {"value": float("nan"), "reason": undefined.reason}
            rows.append({"what": what, "with": column} | row)
    return rows


def losses(sheet: pd.DataFrame, stages: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scans lost by stage and scanner (first row: the sheet, last: what is left), and the list of them.

    A scan is counted at the first stage that gave it up. Scans that are only unusable as a pair are listed, not lost.
    """
    scanners = sorted(sheet["scanner"].unique())
    excluded = sheet[sheet["exclude"] != ""]
    listed = [
        {
            "scan": row["scan"],
            "scanner": row["scanner"],
            "stage": "sheet",
            "status": "excluded",
            "reason": row["exclude"],
        }
        for row in excluded.to_dict("records")
    ]
    gone = set(excluded["scan"])
    rows = [("in the sheet", sheet), ("excluded in the sheet", excluded)]
    for stage, table in stages.items():
        bad = status.bad(table)
        bad = bad[~bad["scan"].isin(gone)]
        lost = bad[bad["status"] != USABLE_ALONE]
        listed += bad.assign(stage=stage)[["scan", "scanner", "stage", "status", "reason"]].to_dict("records")
        rows.append((f"lost at {stage}", lost))
        gone |= set(lost["scan"])
    rows.append(("left", sheet[~sheet["scan"].isin(gone)]))
    counts = pd.DataFrame(
        [
            {"stage": label} | {name: int((group["scanner"] == name).sum()) for name in scanners} | {"all": len(group)}
            for label, group in rows
        ]
    )
    return counts, pd.DataFrame(listed, columns=["scan", "scanner", "stage", "status", "reason"])


def registration_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Return `scan`, `specimen`, `scanner`, `error_um` of every scan that was laid onto another one."""
    rows = table[(table["scan"] != table["reference"]) & (table["error_um"] != "")]
    rows = rows.assign(error_um=pd.to_numeric(rows["error_um"], errors="coerce")).dropna(subset=["error_um"])
    return rows[["scan", "specimen", "scanner", "error_um"]].reset_index(drop=True)


def unpaired(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each `scanner` how many scans are `registered` and how many `refused` (used alone, never as a pair).

    Args:
        table: status table of the registrations; scans that an earlier stage gave up are in neither column.
    """
    counts = pd.crosstab(table["scanner"], table["status"])
    counts = counts.reindex(columns=["ok", "not_registered"], fill_value=0)
    return counts.set_axis(["registered", "refused"], axis=1).rename_axis(columns=None).reset_index()


def examples(errors: pd.DataFrame, number: int = 6) -> list[tuple[str, float]]:
    """Return specimens to look at with their largest error: the worst half of `number`, then the ones in the middle."""
    worst = errors.groupby("specimen")["error_um"].max().sort_values(ascending=False, kind="stable")
    top = list(worst.index[: number // 2])
    rest = [name for name in worst.index if name not in top]
    middle = max(0, len(rest) // 2 - number // 4)
    return [(name, float(worst[name])) for name in top + rest[middle : middle + number - len(top)]]
