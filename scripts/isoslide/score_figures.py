"""Figures of scores: scan against scan, ROC, calibration, survival. Colours and rules as in `figures.py`."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoslide import wording
from isoslide.figures import GREY, MARKERS, PALE, STYLE, colours, rows_axis

SIZE, SIZE_FLAT = (3.7, 3.9), (3.7, 3.3)
"""Of the panels here, in inches, so that they stand in rows; the flat one stands beside those of `figures.py`."""

MAX_MARKS = 240
"""Marks of a panel; of more, evenly spread ones are drawn (the table beside the figure has all)."""


def scatter(rows: pd.DataFrame, title: str) -> Figure:
    """Draw score against score: `first`, `second` (scores of two scans of a specimen) and `pair` (the scanners)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, "score on the first scanner", "score on the second scanner")
        low, high = _range(rows[["first", "second"]])
        axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        _marks(axes, rows, "first", "second")
        margin = (high - low) * 0.02
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
        _legend(figure, rows["pair"].nunique())
        return figure


def bland_altman(rows: pd.DataFrame, limits: pd.DataFrame, title: str) -> Figure:
    """Draw the difference of two scans' scores against their mean, with bias (line) and limits of agreement (dotted).

    `rows` as for `scatter`; `limits` has a row `pair` = `all` with `bias`, `low`, `high`.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, "mean of the two scores", "second minus first score")
        table = rows.assign(mean=(rows["first"] + rows["second"]) / 2, difference=rows["second"] - rows["first"])
        axes.axhline(0, color=PALE, linewidth=1, zorder=0)
        for row in limits[limits["pair"] == "all"].to_dict("records"):
            if np.isfinite(row["bias"]):
                axes.axhline(row["bias"], color=GREY, linewidth=1.2)
            for name in ("low", "high"):
                if np.isfinite(row[name]):
                    axes.axhline(row[name], color=GREY, linewidth=1.2, linestyle=(0, (1, 2)))
        _marks(axes, table, "mean", "difference")
        low, high = _range(rows[["first", "second"]])
        margin = (high - low) * 0.02
        axes.set(xlim=(low - margin, high + margin), ylim=(low - high - margin, high - low + margin))
        _legend(figure, rows["pair"].nunique())
        return figure


def roc(rows: pd.DataFrame, arms: list[str], control: str, title: str) -> Figure:
    """Draw ROC curves: `arm`, `fpr`, `tpr`."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, "false positive rate", "true positive rate", SIZE_FLAT)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        for arm, colour in colours(arms, control).items():
            ours = rows[rows["arm"] == arm]
            if len(ours):
                axes.plot(ours["fpr"], ours["tpr"], color=colour, linewidth=1.6, label=arm)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        _legend(figure, len(arms), 2)
        return figure


def calibration(rows: pd.DataFrame, title: str) -> Figure:
    """Draw observed share of positives against predicted probability by scanner."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, "predicted probability", "observed share of positives")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        scanners = sorted(rows["scanner"].unique())
        for (scanner, colour), marker in zip(colours(scanners).items(), itertools.cycle(MARKERS), strict=False):
            ours = rows[rows["scanner"] == scanner]
            axes.plot(ours["predicted"], ours["observed"], f"{marker}-", color=colour, markersize=5, label=scanner)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        _legend(figure, len(scanners), 4)
        return figure


def values(rows: pd.DataFrame, title: str, label: str) -> Figure:
    """Draw predicted (`p`) against true values (`label`) by scanner."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, label, "predicted")
        low, high = float(rows[["label", "p"]].min().min()), float(rows[["label", "p"]].max().max())
        axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        drawn = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MAX_MARKS)).astype(int)]
        scanners = sorted(rows["scanner"].unique())
        for (scanner, colour), marker in zip(colours(scanners).items(), itertools.cycle(MARKERS), strict=False):
            ours = drawn[drawn["scanner"] == scanner]
            axes.plot(ours["label"], ours["p"], marker, color=colour, markersize=3.6, alpha=0.65, label=scanner)
        _legend(figure, len(scanners), 4)
        return figure


def shares(rows: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> Figure:
    """Draw a table of shares: `row`, `column`, `share`; the darker, the more."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, xlabel, ylabel, SIZE_FLAT)
        names = list(rows["row"].drop_duplicates())
        table = rows["share"].to_numpy().reshape(len(names), -1)
        axes.imshow(table, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(table):
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=9)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, names)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return figure


def survival(rows: pd.DataFrame, title: str, xlabel: str) -> Figure:
    """Draw Kaplan-Meier curves: colours are scanners, solid lines the low-risk group, dashed ones the high-risk one.

    `p`, the same in all rows of a scanner, is named beside the scanner where there is one.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, xlabel, "share without the event")
        scanners = sorted(rows["scanner"].unique())
        for scanner, colour in colours(scanners).items():
            p = rows.loc[rows["scanner"] == scanner, "p"].iloc[0]
            said = f"{scanner}: p {'' if p < 0.001 else '= '}{wording.p_text(p)}" if np.isfinite(p) else scanner
            for name, group in rows[rows["scanner"] == scanner].groupby("group", sort=True):
                low = name.startswith("low")
                line = (0, ()) if low else (0, (4, 2))
                label = said if low or (rows[rows["scanner"] == scanner]["group"] == name).all() else None
                axes.step(
                    group["time"],
                    group["survival"],
                    where="post",
                    color=colour,
                    linestyle=line,
                    linewidth=1.5,
                    label=label,
                )
        axes.set(ylim=(-0.02, 1.02))
        axes.set_xlim(left=0)
        _legend(figure, len(scanners), 2)
        return figure


def before_after(rows: pd.DataFrame, arms: list[str], control: str, title: str, xlabel: str) -> Figure:
    """Draw a measure by arm before (hollow) and after (filled) the tile network, with its interval.

    `rows` holds `arm`, `before`, `before_low`, `before_high`, and the same of `after`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 0.95 + 0.42 * max(len(arms), 2)), layout="constrained")
        axes = figure.subplots()
        palette, known = colours(arms, control), rows.set_index("arm")
        for y, arm in enumerate(arms):
            if arm not in known.index or not np.isfinite(known.loc[arm, "after"]):
                axes.text(0.5, y, "not available", transform=axes.get_yaxis_transform(), ha="center", color=GREY)
                continue
            row, marker = known.loc[arm], MARKERS[y % len(MARKERS)]
            axes.plot([row["before"], row["after"]], [y, y], color=PALE, linewidth=1, zorder=0)
            for stage, colour, fill in (("before", GREY, "white"), ("after", palette[arm], palette[arm])):
                axes.plot([row[f"{stage}_low"], row[f"{stage}_high"]], [y, y], color=colour, linewidth=2)
                axes.plot(row[stage], y, marker, color=colour, markerfacecolor=fill, markersize=6)
        rows_axis(axes, arms, pad=0.6)
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
        return figure


def embedding_map(rows: pd.DataFrame, column: str, title: str) -> Figure:
    """Draw a map of tiles (`x`, `y`) coloured by a column."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(title, "", "")
        names = sorted(rows[column].unique())
        drawn = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MAX_MARKS)).astype(int)]
        for (name, colour), marker in zip(colours(names).items(), itertools.cycle(MARKERS), strict=False):
            ours = drawn[drawn[column] == name]
            axes.plot(ours["x"], ours["y"], marker, color=colour, markersize=3, alpha=0.7, label=name)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        _legend(figure, len(names), 4)
        return figure


def _range(scores: pd.DataFrame) -> tuple[float, float]:
    """Return 0 and 1 for probabilities, else the range of the scores."""
    low, high = float(scores.min().min()), float(scores.max().max())
    return (low, high) if low < 0 or high > 1 else (0.0, 1.0)


def _panel(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _marks(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    drawn = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MAX_MARKS)).astype(int)]
    pairs = sorted(rows["pair"].unique())
    for (pair, colour), marker in zip(colours(pairs).items(), itertools.cycle(MARKERS), strict=False):
        ours = drawn[drawn["pair"] == pair]
        if len(ours):
            axes.plot(ours[x], ours[y], marker, color=colour, markersize=3.6, alpha=0.65, label=pair)


def _legend(figure: Figure, number: int, columns: int = 3) -> None:
    if number <= 10 and figure.axes[0].get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=min(number, columns), handletextpad=0.4, columnspacing=1)
