"""Figures of the report: each function takes a table and returns a matplotlib Figure; `to_svg` makes it inline SVG.

One panel per figure and at most five inches wide, so that a panel stays readable on a phone and panels sit side by
side on a screen. Colours are those of Okabe & Ito (2008), told apart with any common colour blindness; the control
arm is black. Figures are made without pyplot: no global state, nothing to close.
"""

import hashlib
import io
import re
import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, GREY, PALE = "#000000", "#767676", "#d9d9d9"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#999999")
MARKERS = "osD^vPX*<>"
MAX_LINES = 100
LEAST_ERROR = 0.01
STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}


def colours(names: list[str], control: str = "") -> dict[str, str]:
    """Return a colour for each name: the control is black, the others follow the palette in order."""
    others = [name for name in names if name != control]
    return ({control: BLACK} if control else {}) | {n: OKABE_ITO[i % len(OKABE_ITO)] for i, n in enumerate(others)}


def forest(rows: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """Draw a change with its interval per row of `label`, `difference`, `low`, `high`, `flag` (text if not to trust).

    Flagged rows are grey and hollow, rows without a value say so.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 1.05 + 0.34 * max(len(rows), 2)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for y, row in enumerate(rows.to_dict("records")):
            if not np.isfinite(row["difference"]):
                axes.text(0, y, "not available", ha="center", va="center", color=GREY, backgroundcolor="white")
                continue
            colour = GREY if row["flag"] else OKABE_ITO[0]
            axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(row["difference"], y, "o", color=colour, markerfacecolor="white" if row["flag"] else colour)
        labels = [row["label"] + (" (!)" if row["flag"] else "") for row in rows.to_dict("records")]
        rows_axis(axes, labels)
        axes.margins(x=0.08)
        # Under the whole figure, not the axes, which long row labels push to the right: nothing is cut off.
        lines = [part for line in xlabel.split("\n") for part in textwrap.wrap(line, 46)]
        figure.supxlabel("\n".join(lines), fontsize=STYLE["axes.labelsize"])
        figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
        return figure


def strip(
    rows: pd.DataFrame, arms: list[str], control: str, title: str, xlabel: str, chance: float | None = None
) -> Figure:
    """Draw a metric by arm: small dots are seeds, the large mark their mean with the interval over patients.

    `rows` holds `arm`, `seed` (`mean` or a number), `value`, `low`, `high`; `chance` is where the line of a guess is.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 0.95 + 0.42 * max(len(arms), 2)), layout="constrained")
        axes = figure.subplots()
        palette = colours(arms, control)
        if chance is not None:
            axes.axvline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        for y, arm in enumerate(arms):
            ours = rows[rows["arm"] == arm]
            mean, seeds = ours[ours["seed"] == "mean"], ours[ours["seed"] != "mean"]
            if mean.empty or not np.isfinite(mean["value"].iloc[0]):
                axes.text(0.5, y, "not available", transform=axes.get_yaxis_transform(), ha="center", color=GREY)
                continue
            axes.plot(mean[["low", "high"]].to_numpy()[0], [y, y], color=palette[arm], linewidth=2)
            axes.plot(mean["value"], [y], MARKERS[y % len(MARKERS)], color=palette[arm], markersize=7)
            axes.plot(seeds["value"], y + 0.26 + 0 * seeds["value"], "o", color=palette[arm], markersize=3, alpha=0.7)
        rows_axis(axes, arms, pad=0.6)
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
        return figure


def by_scanner(rows: pd.DataFrame, arms: list[str], control: str, title: str) -> Figure:
    """Draw a metric by scanner and arm: `arm`, `scanner`, `value`, `low`, `high`, `unseen`."""
    with matplotlib.rc_context(STYLE):
        scanners = sorted(rows["scanner"].unique())
        figure = Figure(figsize=(3.7, 3.3), layout="constrained")
        axes = figure.subplots()
        palette, width = colours(arms, control), 0.7 / max(len(arms), 1)
        for index, arm in enumerate(arms):
            ours = rows[rows["arm"] == arm].set_index("scanner").reindex(scanners)
            x = np.arange(len(scanners)) + (index - (len(arms) - 1) / 2) * width
            axes.vlines(x, ours["low"], ours["high"], color=palette[arm], linewidth=1.6)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(x, ours["value"], marker, color=palette[arm], markersize=5, label=arm)
        unseen = set(rows.loc[rows["unseen"], "scanner"])
        names = [f"{name}\n(not in training)" if name in unseen else name for name in scanners]
        axes.set_xticks(range(len(scanners)), names)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=min(len(arms), 3), handletextpad=0.2, columnspacing=1.2)
        return figure


def plane(rows: pd.DataFrame, arms: list[str], control: str, accuracy: str, title: str, chance: float = 0.5) -> Figure:
    """Draw accuracy against inconsistency, one dot per seed: `arm`, `seed`, `inconsistency`, `accuracy`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        palette = colours(arms, control)
        for index, arm in enumerate(arms):
            ours = rows[rows["arm"] == arm]
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(ours["inconsistency"], ours["accuracy"], marker, color=palette[arm], alpha=0.8, label=arm)
        axes.margins(0.12)
        axes.set(title=title, xlabel="inconsistency (lower = more consistent)", ylabel=accuracy)
        figure.legend(loc="outside lower center", ncols=min(len(arms), 2), handletextpad=0.2)
        return figure


def curves(rows: pd.DataFrame, column: str, arms: list[str], control: str, title: str) -> Figure:
    """Draw a training curve: `arm`, `fold`, `seed`, `step` and the column.

    One thin line per model; with more than `MAX_LINES` models the median of each arm and the range of its middle 80 %.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 2.9), layout="constrained")
        axes = figure.subplots()
        palette = colours(arms, control)
        many = len(rows[["arm", "fold", "seed"]].drop_duplicates()) > MAX_LINES
        for arm in arms:
            ours = rows[rows["arm"] == arm].dropna(subset=[column])
            (_range if many else _lines)(axes, ours, column, palette[arm], arm)
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.set(title=title, xlabel="step")
        legend = figure.legend(loc="outside lower center", ncols=min(len(arms), 2), columnspacing=1.2)
        for handle in legend.get_lines():
            handle.set(linewidth=2.5, alpha=1)
        return figure


def _lines(axes: Axes, rows: pd.DataFrame, column: str, colour: str, label: str | None) -> None:
    for _, model in rows.groupby(["fold", "seed"]):
        axes.plot(model["step"], model[column], color=colour, linewidth=0.8, alpha=0.55, label=label)
        label = None


def _range(axes: Axes, rows: pd.DataFrame, column: str, colour: str, label: str) -> None:
    if rows.empty:
        return
    levels = rows.groupby("step")[column].quantile([0.1, 0.5, 0.9]).unstack()
    axes.fill_between(levels.index, levels[0.1], levels[0.9], color=colour, alpha=0.12, linewidth=0)
    axes.plot(levels.index, levels[0.5], color=colour, linewidth=1.6, label=label)


def counts(rows: pd.DataFrame, title: str) -> Figure:
    """Draw bars of scans by `scanner`, a bar for each `class`, of height `scans`."""
    with matplotlib.rc_context(STYLE):
        table = rows.pivot_table(index="scanner", columns="class", values="scans", aggfunc="sum", fill_value=0)
        figure = Figure(figsize=(3.7, 2.7), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / max(table.shape[1], 1)
        for index, name in enumerate(table.columns):
            x = np.arange(len(table)) + (index - (table.shape[1] - 1) / 2) * width
            bars = axes.bar(x, table[name], width * 0.94, color=OKABE_ITO[index % len(OKABE_ITO)], label=str(name))
            axes.bar_label(bars, fontsize=8)
        axes.set_xticks(range(len(table)), [f"scanner {name}" if len(name) < 3 else name for name in table.index])
        axes.set(title=title, ylabel="scans")
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def histogram(rows: pd.DataFrame, limit: float, title: str) -> Figure:
    """Draw the registration error (`error_um`) as a histogram per `scanner`, with the limit; logarithmic axis.

    Errors below 0.01 µm count as 0.01 µm.
    """
    with matplotlib.rc_context(STYLE):
        scanners = sorted(rows["scanner"].unique())
        figure = Figure(figsize=(4.6, 1.1 + 0.75 * max(len(scanners), 1)), layout="constrained")
        panels = figure.subplots(max(len(scanners), 1), 1, sharex=True, squeeze=False)[:, 0]
        errors = rows["error_um"].clip(lower=LEAST_ERROR)
        low = 0.8 * (float(errors.min()) if len(rows) else LEAST_ERROR)
        bins = np.geomspace(low, 1.2 * max(float(errors.max()) if len(rows) else 0.0, limit), 41)
        for axes, scanner in zip(panels, scanners, strict=False):
            axes.hist(errors[rows["scanner"] == scanner], bins, color=OKABE_ITO[0])
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            axes.axvline(limit, color=OKABE_ITO[1], linewidth=1.5)
            axes.set_ylabel(scanner, rotation=0, ha="right", va="center")
            axes.locator_params(axis="y", nbins=2, integer=True)
        panels[0].set_title(title)
        panels[-1].set_xlabel(f"error, µm (line: limit {limit:g} µm)")
        return figure


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element that can stand in a page with others: ids are prefixed with `name`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    # Only what is referred to keeps an id: a short one, with a prefix of its own for each figure on a page.
    prefix = "f" + hashlib.sha1(name.encode()).hexdigest()[:6]
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    ids = {old: f"{prefix}-{number}" for number, old in enumerate(used)}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", svg)
    return compact(re.sub(r'(url\(#|href="#)([^")]+)', lambda found: found[1] + ids[found[2]], svg))


def to_pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


def compact(svg: str) -> str:
    """Return the SVG with short coordinates, the font named once, and the style of many marks said once for all."""
    svg = re.sub(r" ?font-family: [^;\"]*sans-serif;?", "", svg)
    svg = svg.replace("<svg ", "<svg font-family=\"'DejaVu Sans', sans-serif\" ", 1)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)

    def short(found: re.Match[str]) -> str:
        # A tenth of a point is enough for long lines; small marks need a hundredth to stay round.
        digits = r"(\.\d)\d+" if len(found[0]) > 300 else r"(\.\d\d)\d+"
        return re.sub(r"\s+", " ", re.sub(digits, r"\1", found[0])).replace(' "', '"')

    svg = re.sub(r'(?<= )(d|x|y)="[^"]*"', short, svg)

    def shared(found: re.Match[str]) -> str:
        if found[1].count("<use") < 2:
            return found[1]
        style = f' style="{found[2]}"'
        return f"<g{style}>\n{found[1].replace(style, '')}</g>\n"

    svg = re.sub(r"\n\s+<", "\n<", svg)
    svg = re.sub(r'((?:<use [^>]*? style="([^"]*)"/>\n)(?:<use [^>]*? style="\2"/>\n)*)', shared, svg)
    return _without_bare_groups(svg)


def _without_bare_groups(svg: str) -> str:
    """Return the SVG without groups that say nothing; each tag of a group stands on a line of its own."""
    lines, kept = [], []
    for line in svg.split("\n"):
        if line == "<g/>":
            continue
        if line == "<g>" or (line.startswith("<g ") and not line.endswith("/>")):
            kept.append(line != "<g>")
            if not kept[-1]:
                continue
        if line == "</g>" and not kept.pop():
            continue
        lines.append(line)
    return "\n".join(lines)


def rows_axis(axes: Axes, labels: list[str], pad: float = 0.5) -> None:
    """Label the rows of a figure with one line of marks per label, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 1 + pad, -pad)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
