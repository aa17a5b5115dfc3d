"""Pictures to look a cohort through by: µm per pixel by scanner, and all tissue outlines on one page."""

import html
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from isoslide import figures, status

NUMBERS = ("tissue_mm2", "sharpness", "ink_share", "black_share")
SOURCES = ("file", "sheet", "assumed")  # of µm/px
TICKS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4, 5)
INK = 0.05  # a larger share of ink is worth a look, and so is
BLACK = 0.02  # a larger share of black,
LITTLE_TISSUE = 0.2  # less than this share of the scanner's median of tissue,
BLURRED = 0.4  # or of sharpness
STYLE = """
body { font: 14px/1.35 system-ui, sans-serif; margin: 1rem; color: #222; background: #fff; }
h1 { font-size: 1.25rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; }
figure { margin: 0; border: 2px solid #ddd; border-radius: 4px; overflow: hidden; }
figure.look { border-color: #e69f00; }
figure.lost { border-color: #d55e00; }
img, .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #f4f4f4; }
figcaption { padding: 3px 5px; font-size: 12px; overflow-wrap: anywhere; }
.why { color: #a03c00; }
"""


def mpp_histogram(table: pd.DataFrame) -> Figure:
    """Draw how often each µm/px of level 0 occurs, a row per scanner, on one logarithmic axis.

    Args:
        table: of the checks stage; scans that were given up are left out.
    """
    good = table[table["status"] == status.OK]
    scanners = sorted(good["scanner"].unique())
    values = good["mpp_x"].astype(float) if len(good) else pd.Series([0.25])
    low, high = values.min() / 1.3, values.max() * 1.3
    edges = np.geomspace(low, high, max(20, round(np.log(high / low) / 0.01)) + 1)  # bars of 1 %, or 20 in all
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(5, 1 + 0.9 * max(1, len(scanners))), layout="constrained")
        rows = figure.subplots(max(1, len(scanners)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, scanner in zip(rows, scanners, strict=False):
            rows_of = good[good["scanner"] == scanner]
            parts = [rows_of[rows_of["mpp_source"] == source]["mpp_x"].astype(float) for source in SOURCES]
            axes.hist(parts, edges, stacked=True, color=figures.OKABE_ITO[: len(SOURCES)], label=SOURCES)
            axes.set_title(f"{scanner}: {len(rows_of)} scans")
            axes.yaxis.get_major_locator().set_params(integer=True)
        rows[-1].set_xscale("log")
        ticks = [tick for tick in TICKS if low <= tick <= high]
        rows[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        rows[-1].minorticks_off()
        rows[-1].set_xlabel("µm per pixel of level 0")
        rows[len(rows) // 2].set_ylabel("scans")
        figure.legend(*rows[0].get_legend_handles_labels(), title="stated by", loc="outside upper right", ncols=3)
    return figure


def contact_sheet(table: pd.DataFrame, pictures: Mapping[str, str]) -> str:
    """Return an HTML page with every scan's outline: those given up first, then those worth a look, then the others.

    Scans of one specimen stand side by side.

    Args:
        table: of the tissue stage, a row per scan.
        pictures: scan to its overlay's path, relative to the page; absent where there is none.
    """
    table = table.sort_values(["specimen", "scan"])
    lost = table["status"] != status.OK
    notes = worth_a_look(table[~lost])
    look = table["scan"].isin([scan for scan, note in notes.items() if note])
    parts = (
        ("Given up", "lost", table[lost]),
        ("Worth a look", "look", table[~lost & look]),
        ("No remarks", "", table[~lost & ~look]),
    )
    body = [f"<h1>Tissue of {len(table)} scans</h1>"]
    for title, kind, rows in parts:
        if len(rows):
            cards = "\n".join(_card(row, kind, pictures, notes) for row in rows.to_dict("records"))
            body.append(f'<h2>{title} ({len(rows)})</h2>\n<div class="sheet">\n{cards}\n</div>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tissue outlines</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def worth_a_look(good: pd.DataFrame) -> dict[str, list[str]]:
    """Return by scan why a person should look at its outline; an empty list for most.

    Args:
        good: rows of the tissue stage whose status is ok.
    """
    if good.empty:
        return {}
    numbers = good[list(NUMBERS)].astype(float)
    median = numbers.groupby(good["scanner"]).transform("median")
    why = {
        "much ink": numbers["ink_share"] > INK,
        "much black": numbers["black_share"] > BLACK,
        "little tissue": numbers["tissue_mm2"] < LITTLE_TISSUE * median["tissue_mm2"],
        "blurred": numbers["sharpness"] < BLURRED * median["sharpness"],
        "drawn by hand": good["reason"] != "",
    }
    return {scan: [name for name in why if why[name][index]] for index, scan in good["scan"].items()}


def _card(row: Mapping[str, str], kind: str, pictures: Mapping[str, str], notes: Mapping[str, Iterable[str]]) -> str:
    scan = html.escape(row["scan"])
    if row["scan"] in pictures:
        link = html.escape(quote(pictures[row["scan"]]))
        picture = f'<a href="{link}"><img src="{link}" alt="{scan}" loading="lazy"></a>'
    else:
        picture = '<div class="none"></div>'
    why = f"{row['status']}: {row['reason']}" if kind == "lost" else ", ".join(notes[row["scan"]])
    facts = f"{html.escape(row['scanner'])}"
    if row.get("tissue_mm2"):
        facts += f" · {float(row['tissue_mm2']):.3g} mm²"
    text = f'{facts}<br><span class="why">{html.escape(why)}</span>' if why else facts
    return f'<figure class="{kind}">{picture}<figcaption><b>{scan}</b> {text}</figcaption></figure>'
