"""The page people read: what the tables of a run say, put together into one self-contained HTML file.

Nothing is measured here: every number comes from the tables of the evaluation, every picture from the stages.
"""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from isoslide import __version__, feature_sections, figures, presets, sections, wording
from isoslide.measures import BY_NAME
from isoslide.run import Draw, Drawing, Run, case_name, main_metric, robust_arms

TEMPLATES = Path(__file__).parent / "page"
PACKAGES = (
    "snakemake",
    "numpy",
    "pandas",
    "scipy",
    "torch",
    "timm",
    "scikit-learn",
    "lifelines",
    "croma",
    "openslide-python",
    "opencv-python-headless",
)

MAX_FOREST = 40
"""Rows of a forest plot; with more it shows the first arm with both robustness losses only."""

UNFOLDED = 4
"""Tasks times encoders up to which every section stands open on the page."""


def render(run: Run) -> tuple[str, list[Drawing]]:
    """Return the HTML page and its drawings, which the script also writes one by one."""
    drawings: list[Drawing] = []

    def draw(name: str, figure: Figure, table: pd.DataFrame, caption: str) -> Drawing:
        drawings.append(Drawing(name, figures.to_svg(figure, name), figures.to_pdf(figure), table, caption))
        return drawings[-1]

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": wording.number, "span": wording.interval, "p_text": wording.p_text}
    page = environment.get_template("page.html.j2").render(
        run=run,
        config=run.config,
        control=run.config["control"],
        overview=overview(run),
        answer=answer(run, draw),
        sections=[sections.task(run, result, draw) for result in run.results],
        folded=len(run.results) > UNFOLDED,
        features=feature_sections.feature_part(run, draw),
        cohort=sections.cohort_part(run, draw),
        registration=sections.registration_part(run, draw),
        overlays=sections.overlays(run),
        viewers=sections.viewers(run),
        settings=list(flat(run.config)),
        versions=versions(),
    )
    return page, drawings


def overview(run: Run) -> dict[str, Any]:
    """Return the counts of the page's first line."""
    used = run.sheet[run.sheet["exclude"] == ""]
    return {
        "patients": used["patient"].nunique(),
        "specimens": used["specimen"].nunique(),
        "scans": len(used),
        "scanners": used["scanner"].nunique(),
        "paired": presets.paired_specimens(run.sheet),
        "models": sum(len(models) for result in run.results for models in result.models.values()),
        "encoders": sorted({result.encoder for result in run.results}),
        "tasks": list(dict.fromkeys(result.task for result in run.results)),
        "version": __version__,
    }


def answer(run: Run, draw: Draw) -> dict[str, Any]:
    """Return the first screen: a sentence per arm and task, the table behind it, and the forest plots."""
    readings = []
    for result in run.results:
        names = ("inconsistency", main_metric(run, result))
        rows = wording.readings(result.metrics, result.comparisons, names, run.config["evaluation"]["level"])
        readings += [{"task": result.task, "encoder": result.encoder} | row for row in rows]
    wording.adjust(readings)
    order = {name: place for place, name in enumerate(run.config["arms"])}
    readings.sort(key=lambda row: order.get(row["arm"], len(order)))
    claims = []
    for arm in robust_arms(run):
        for result in run.results:
            rows = [r for r in readings if (r["arm"], r["task"], r["encoder"]) == (arm, result.task, result.encoder)]
            if rows:
                claims.append({"arm": arm, "task": result.task, "encoder": result.encoder, "rows": rows})
                claims[-1] |= {"short": wording.short(rows), "text": wording.sentence(rows)}
                claims[-1]["collapsed"] = rows[0]["collapsed"]
    summaries = []
    for arm in robust_arms(run):
        named = [(case_name(run, c["task"], c["encoder"]), c["rows"]) for c in claims if c["arm"] == arm]
        if named:
            summaries.append(wording.summary(arm, run.config["control"], named))
    return {"summaries": summaries, "claims": claims, "readings": readings, "forests": forests(run, readings, draw)}


def forests(run: Run, readings: list[dict[str, Any]], draw: Draw) -> list[Drawing]:
    """Return the forest plots: change in inconsistency and in accuracy, of every arm, task and encoder."""
    control, level = run.config["control"], f"{100 * run.config['evaluation']['level']:g} %"
    table = pd.DataFrame(readings)
    if table.empty:
        return []
    cases = zip(table["task"], table["encoder"], table["arm"], strict=True)
    table["label"] = [f"{case_name(run, task, encoder)}: {arm}" for task, encoder, arm in cases]
    table["flag"] = table["collapsed"]
    both = [name for name, arm in run.config["arms"].items() if arm.get("embedding_weight") and arm.get("score_weight")]
    shown = [*both, *robust_arms(run)][:1]
    if len(table) > 2 * MAX_FOREST and shown:
        table = table[table["arm"].isin(shown)]
    columns = ["label", "task", "encoder", "arm", "control", "metric", "difference", "low", "high", "p", "holm", "flag"]
    result = []
    for name, title, metrics, arrows in (
        ("inconsistency", "Consistency across scanners", ("inconsistency",), "← better · worse →"),
        ("accuracy", "Accuracy", ("auc", "macro_auc", "c_index"), "← worse · better →"),
        ("values", "Accuracy of values", ("r2",), "← worse · better →"),  # of another order than the others
    ):
        rows = table[table["name"].isin(metrics)]
        if rows.empty:
            continue
        what = " or ".join(BY_NAME[metric].title for metric in metrics if metric in set(rows["name"]))
        xlabel = f"change in {what} against {control}\n{arrows}"
        rows = rows[columns].sort_values("task", kind="stable")
        caption = f"Arm minus {control}, with the {level} interval over patients. (!) = collapsed: means nothing."
        if len(readings) > len(table):
            caption += f" Only {shown[0]}, for space; every arm is in the table below."
        result.append(draw(f"forest-{name}", figures.forest(rows, title, xlabel), rows, caption))
    return result


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting as (dotted name, value)."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, item)) if isinstance(item, list | tuple) else str(item)
            yield f"{prefix}{key}", text


def versions() -> list[tuple[str, str]]:
    """Return the versions of what made the page and, where it is installed here, of what made the results."""
    found = [("isoslide", __version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
