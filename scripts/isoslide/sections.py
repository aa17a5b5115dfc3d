"""The parts of the report: each task and encoder, the cohort, registration, tissue; as tables and drawings."""

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from isoslide import cohort, evaluation, figures, outcomes, score_sections, wording
from isoslide.feature_sections import embedding_part, metadata_part
from isoslide.measures import BY_NAME, CHANCE, METRICS
from isoslide.run import Draw, Drawing, Result, Run, arms_of, main_metric
from isoslide.scopes import SIDES

STRIPS = ("inconsistency", "rmse", "agreement", "spread", "brier", "uno_c")
CURVES = {
    "task": "task loss",
    "embedding": "embedding loss (unweighted)",
    "score": "score loss (unweighted)",
    "scanner": "loss of the network that tells the scanner",
    "tune_metric": "tuning set: accuracy",
    "tune_inconsistency": "tuning set: inconsistency",
}
MAX_LISTED, MAX_OVERLAYS = 200, 24


def task(run: Run, result: Result, draw: Draw) -> dict[str, Any]:
    """Return what the page shows of one task and encoder."""
    arms, control = arms_of(run, result), run.config["control"]
    prefix = f"{result.task}-{result.encoder}"
    means = result.metrics[result.metrics["seed"] == evaluation.MEAN]
    main = main_metric(run, result)
    return {
        "task": result.task,
        "encoder": result.encoder,
        "kind": run.config["tasks"][result.task]["type"],
        "main": BY_NAME[main],
        "arms": arms,
        "collapsed": {arm: reason for arm in arms if (reason := evaluation.is_collapsed(result.metrics, arm))},
        "guessing": guessing(means, arms, main),
        "pooled": metric_table(means, arms, "pooled"),
        "parts": {name: metric_table(means, arms, name) for name in SIDES if (means["scope"] == name).any()},
        "classes": class_tables(means, arms),
        "training": [training_row(result, arm) for arm in arms],
        "seeds": seed_table(result.metrics, arms, ("inconsistency", main, "spread")),
        "pairs": pair_table(means, arms),
        "strips": strips(result, arms, control, main, prefix, draw),
        "plane": plane(result, arms, control, main, prefix, draw),
        "scans": score_sections.pair_part(run, result, prefix, draw),
        "outcome": score_sections.outcome_part(run, result, prefix, draw),
        "thresholds": score_sections.threshold_rows(result, arms),
        "embeddings": embedding_part(run, result, prefix, draw),
        "auc_check": score_sections.auc_check(result),
        "by_scanner": scanner_figures(run, result, arms, main, prefix, draw),
        "curves": curve_figures(result, arms, control, prefix, draw),
    }


def metric_table(means: pd.DataFrame, arms: list[str], scope: str) -> list[dict[str, Any]]:
    """Return a row per metric with a cell (value, low, high, reason) per arm."""
    rows = means[means["scope"] == scope].set_index(["metric", "arm"])
    table = []
    for metric in METRICS:
        if metric.name in rows.index.get_level_values(0):
            cells = [
                rows.loc[(metric.name, arm)].to_dict() if (metric.name, arm) in rows.index else None for arm in arms
            ]
            table.append({"title": metric.title, "better": metric.better, "cells": cells})
    return table


def guessing(means: pd.DataFrame, arms: list[str], main: str) -> str:
    """Return a sentence that names the arms whose accuracy is not shown to be better than a guess, if there are any."""
    rows = means[(means["metric"] == main) & (means["scope"] == "pooled")].set_index("arm")
    named = [arm for arm in arms if arm in rows.index and not rows.loc[arm, "low"] > CHANCE[main]]
    if not named:
        return ""
    title, chance = BY_NAME[main].title, f"{CHANCE[main]:g}"
    return f"Not shown to be better than a guess (no interval of {title} above {chance}): {', '.join(named)}."


def class_tables(means: pd.DataFrame, arms: list[str]) -> list[dict[str, Any]]:
    """Return for each class of a multiclass task its name and the metrics of it against all others."""
    scopes = [scope for scope in means["scope"].drop_duplicates() if scope.startswith("class:")]
    return [{"name": scope.removeprefix("class:"), "rows": metric_table(means, arms, scope)} for scope in scopes]


def pair_table(means: pd.DataFrame, arms: list[str]) -> list[dict[str, Any]]:
    """Return a row per pair of scanners and arm, with the metrics that compare two scans."""
    names = [metric.name for metric in METRICS if metric.takes in ("pairs", "matrix", "specimens", "decisions")]
    pairs = means[means["scope"].str.startswith("pair:")]
    names = [name for name in names if (pairs["metric"] == name).any()]
    table = pairs.pivot_table(index=["scope", "arm"], columns="metric", values="value", aggfunc="first", dropna=False)
    rows = []
    for scope in pairs["scope"].drop_duplicates():
        for arm in arms:
            if (scope, arm) in table.index:
                values = table.loc[(scope, arm)].reindex(names)
                rows.append({"pair": scope.removeprefix("pair:"), "arm": arm, "values": list(values)})
    return [{"titles": [BY_NAME[name].title for name in names], "rows": rows}]


def seed_table(metrics: pd.DataFrame, arms: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the value of every seed."""
    rows = metrics[
        (metrics["scope"] == "pooled") & (metrics["seed"] != evaluation.MEAN) & metrics["metric"].isin(names)
    ]
    seeds = sorted(rows["seed"].unique(), key=int)
    table = rows.pivot_table(index=["metric", "arm"], columns="seed", values="value", aggfunc="first", dropna=False)
    cells = [
        {"title": BY_NAME[name].title, "arm": arm, "values": list(table.loc[(name, arm)].reindex(seeds))}
        for name in names
        for arm in arms
        if (name, arm) in table.index
    ]
    return {"seeds": seeds, "rows": cells}


def training_row(result: Result, arm: str) -> dict[str, Any]:
    """Return how many models of an arm trained, and what became of the others."""
    models = result.models.get(arm, pd.DataFrame({"status": [], "reason": []}))
    counts = models["status"].value_counts()
    reasons = models.loc[(models["status"] != evaluation.OK) & (models["reason"] != ""), "reason"]
    loss = pd.to_numeric(models["train_loss"], errors="coerce").median() if "train_loss" in models else float("nan")
    return {
        "arm": arm,
        "models": len(models),
        "ok": int(counts.get(evaluation.OK, 0)),
        "others": ", ".join(f"{n} {name}" for name, n in counts.items() if name != evaluation.OK),
        "reason": reasons.mode().iloc[0] if len(reasons) else "",
        "loss": float(loss),
        "ratio": wording.value(result.metrics, arm, "spread_ratio"),
    }


def strips(result: Result, arms: list[str], control: str, main: str, prefix: str, draw: Draw) -> list[Drawing]:
    """Return a strip plot for each of the main metrics."""
    drawings = []
    for name in (main, *STRIPS):
        rows = result.metrics[(result.metrics["metric"] == name) & (result.metrics["scope"] == "pooled")]
        if rows.empty:
            continue
        metric, chance = BY_NAME[name], CHANCE.get(name)
        arrow = {1: "better →", -1: "← better", 0: " "}[metric.better]
        figure = figures.strip(rows, arms, control, metric.title, arrow, chance)
        drawings.append(draw(f"{prefix}-{name}", figure, rows, ""))
    return drawings


def plane(result: Result, arms: list[str], control: str, main: str, prefix: str, draw: Draw) -> Drawing:
    """Return the plot of accuracy against inconsistency of every seed."""
    rows = result.metrics[(result.metrics["scope"] == "pooled") & (result.metrics["seed"] != evaluation.MEAN)]
    rows = rows[rows["metric"].isin(("inconsistency", main))]
    table = rows.pivot_table(index=["arm", "seed"], columns="metric", values="value", aggfunc="first", dropna=False)
    table = (
        table.rename(columns={main: "accuracy"})
        .reset_index()
        .reindex(columns=["arm", "seed", "inconsistency", "accuracy"])
    )
    title = BY_NAME[main].title
    caption = (
        f"One mark per seed. Upper left is best: accurate and consistent. The dotted line is a guess ({title} "
        f"{CHANCE[main]:g})."
    )
    figure = figures.plane(table, arms, control, title, "Accuracy and consistency, every seed", CHANCE[main])
    return draw(f"{prefix}-plane", figure, table, caption)


def scanner_figures(run: Run, result: Result, arms: list[str], main: str, prefix: str, draw: Draw) -> list[Drawing]:
    """Return accuracy by scanner, and inconsistency by pair of scanners, for every arm."""
    means = result.metrics[result.metrics["seed"] == evaluation.MEAN]
    unseen = evaluation.unseen_scanners(run.splits[result.task]) if result.task in run.splits else ()
    drawings = []
    for metric, kind in ((main, "scanner:"), ("inconsistency", "pair:")):
        rows = means[(means["metric"] == metric) & means["scope"].str.startswith(kind)]
        if rows.empty:
            continue
        rows = rows.assign(scanner=rows["scope"].str.removeprefix(kind))
        rows = rows.assign(unseen=rows["scanner"].isin(unseen))
        title = f"{BY_NAME[metric].title} by {'scanner' if kind == 'scanner:' else 'pair of scanners'}"
        figure = figures.by_scanner(rows, arms, run.config["control"], title)
        drawings.append(draw(f"{prefix}-by-{kind[:-1]}", figure, rows, "Mean over seeds, interval over patients."))
    return drawings


def curve_figures(result: Result, arms: list[str], control: str, prefix: str, draw: Draw) -> list[Drawing]:
    """Return the training curves, a figure per part of the loss."""
    if not result.curves:
        return []
    rows = pd.concat([table.assign(arm=arm) for arm, table in result.curves.items()])
    drawings = []
    for column, title in CURVES.items():
        if column in rows and rows[column].notna().any():
            table = rows[["arm", "fold", "seed", "step", column]]
            figure = figures.curves(table, column, arms, control, title)
            drawings.append(draw(f"{prefix}-curve-{column}", figure, table, ""))
    return drawings


def cohort_part(run: Run, draw: Draw) -> dict[str, Any]:
    """Return counts, label-scanner association by task, and losses."""
    tasks = []
    for task, splits in run.splits.items():
        counts = cohort.training_counts(splits, run.config["tasks"][task]["type"])
        figure = figures.counts(counts, f"{task}: scans in training")
        caption = "Distinct scans that some fold trains or selects on, by scanner and class."
        drawing = draw(f"{task}-cohort", figure, counts, caption)
        tied = {"association": cohort.association(splits, run.sheet), "metadata": metadata_part(run, task)}
        tasks.append({"task": task, "figure": drawing, "without": outcomes.without_outcome(splits, run.sheet)} | tied)
    lost, listed = cohort.losses(run.sheet, run.stages)
    return {
        "scanners": cohort.by_scanner(run.sheet),
        "images": cohort.images(run.stages.get("checks")),
        "tasks": tasks,
        "lost": lost,
        "listed": listed.head(MAX_LISTED),
        "unlisted": max(0, len(listed) - MAX_LISTED),
        "pictures": lost_pictures(run, listed),
    }


def lost_pictures(run: Run, listed: pd.DataFrame) -> list[dict[str, str]]:
    """Return thumbnails of scans that were lost or cannot be paired, as far as there are pictures."""
    found = []
    for row in listed.to_dict("records"):
        path = run.tissue / f"{row['scan']}.jpg" if run.tissue else None
        if path and path.exists() and len(found) < MAX_OVERLAYS:
            found.append({"source": picture(path, 170), "text": f"{row['scan']}: {row['status']} ({row['stage']})"})
    return found


def registration_part(run: Run, draw: Draw) -> dict[str, Any] | None:
    """Return the histogram of registration errors and example pictures; None where nothing was registered."""
    table = run.stages.get("registrations")
    if table is None or "error_um" not in table:
        return None
    errors, limit = cohort.registration_errors(table), float(run.config["registration"]["limit_um"])
    if errors.empty:
        return None
    figure = figures.histogram(errors, limit, "Registration error by scanner")
    pictures = []
    for specimen, error in cohort.examples(errors):
        if run.registrations and (path := run.registrations / f"{specimen}.jpg").exists():
            text = f"{specimen}: largest error {wording.number(error, 2)} µm"
            pictures.append({"source": picture(path, 420), "text": text})
    return {
        "figure": draw("registration", figure, errors, "Every scan that was laid onto its specimen's reference scan."),
        "median": float(errors["error_um"].median()),
        "refused": int((table["status"] == "not_registered").sum()),
        "by_scanner": cohort.unpaired(table),
        "number": len(errors),
        "limit": limit,
        "pictures": pictures,
    }


def overlays(run: Run) -> list[dict[str, str]]:
    """Return thumbnails of tissue outlines: whole specimens evenly over the sheet."""
    if run.tissue is None:
        return []
    used = run.sheet[run.sheet["exclude"] == ""]
    per_specimen = max(1, int(used.groupby("specimen").size().median()))
    specimens = sorted(used["specimen"].unique())
    step = max(1, len(specimens) * per_specimen // MAX_OVERLAYS)
    chosen = used[used["specimen"].isin(specimens[::step])].sort_values(["specimen", "scanner"])["scan"]
    found = []
    for scan in chosen:
        path = run.tissue / f"{scan}.jpg"
        if path.exists() and len(found) < MAX_OVERLAYS:
            found.append({"source": picture(path, 170), "text": scan})
    return found


def viewers(run: Run) -> list[dict[str, str]]:
    """Return where the pages and pictures of the scans in the config's `heatmaps` are, relative to the report."""
    return [
        {"scan": scan, "page": f"../viewer/{quote(scan)}.html", "picture": f"../viewer/thumbnails/{quote(scan)}.jpg"}
        for scan in run.config.get("heatmaps", [])
    ]


def picture(path: Path, width: int) -> str:
    """Return a JPEG as a data URI, at most `width` pixels wide."""
    with Image.open(path) as image:
        image.draft("RGB", (width, width))
        small = image.convert("RGB")
    small.thumbnail((width, width * 2))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
