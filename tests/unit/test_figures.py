import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isoslide import figures

ARMS = ["mixed", "paired", "robust"]
RNG = np.random.default_rng(0)
FOREST = pd.DataFrame(
    {
        "label": ["response: robust", "response: dead", "survival: robust"],
        "difference": [-0.1, -0.3, np.nan],
        "low": [-0.2, -0.4, np.nan],
        "high": [-0.05, -0.2, np.nan],
        "flag": ["", "most of its models did not train", ""],
    }
)
STRIP = pd.DataFrame(
    [(arm, seed, 0.7, 0.6, 0.8) for arm in ARMS[:2] for seed in ("mean", "1", "2")],
    columns=["arm", "seed", "value", "low", "high"],
)
SCANNERS = pd.DataFrame(
    [(arm, scanner, 0.7, 0.6, 0.8, scanner == "D") for arm in ARMS for scanner in "AD"],
    columns=["arm", "scanner", "value", "low", "high", "unseen"],
)
PLANE = pd.DataFrame({"arm": ARMS, "seed": "1", "inconsistency": [0.5, 0.4, np.nan], "accuracy": [0.7, 0.8, 0.5]})
CURVE = pd.DataFrame(
    [(arm, fold, 1, step, 1 / step) for arm in ARMS for fold in (0, 1) for step in (50, 100)],
    columns=["arm", "fold", "seed", "step", "task"],
)
MANY = pd.concat([CURVE.assign(seed=seed, task=CURVE["task"] + seed) for seed in range(30)])
COUNTS = pd.DataFrame({"scanner": ["A", "B", "B"], "class": ["x", "x", "y"], "scans": [3, 4, 5]})
ERRORS = pd.DataFrame({"scanner": ["A", "A", "C"], "error_um": [0.5, 7.0, 1.0]})

DRAWN = {
    "forest": lambda: figures.forest(FOREST, "title", "change"),
    "forest-empty": lambda: figures.forest(FOREST.iloc[:0], "title", "change"),
    "strip": lambda: figures.strip(STRIP, ARMS, "paired", "title", "x", 0.5),
    "by-scanner": lambda: figures.by_scanner(SCANNERS, ARMS, "paired", "title"),
    "plane": lambda: figures.plane(PLANE, ARMS, "paired", "AUC", "title"),
    "curves": lambda: figures.curves(CURVE, "task", ARMS, "paired", "title"),
    "curves-many": lambda: figures.curves(MANY, "task", ARMS, "paired", "title"),
    "counts": lambda: figures.counts(COUNTS, "title"),
    "histogram": lambda: figures.histogram(ERRORS, 5.0, "title"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_sound_svg_and_the_same_each_time(name):
    figure = DRAWN[name]()
    assert isinstance(figure, Figure)
    svg = figures.to_svg(figure, name)
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == figures.to_svg(DRAWN[name](), name)
    assert figure.get_figwidth() <= 5  # readable when shrunk to the width of a phone


def test_ids_of_two_figures_on_a_page_differ():
    texts = [figures.to_svg(DRAWN["strip"](), name) for name in ("one", "two")]
    ids = [{element.get("id") for element in ET.fromstring(text).iter() if element.get("id")} for text in texts]
    assert not ids[0] & ids[1]
    for text, known in zip(texts, ids, strict=True):
        references = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        assert references == known


def test_compact_keeps_text_and_says_a_style_once():
    marks = "".join(f'<use href="#m" x="{x}.123456" y="7.5" style="fill: red"/>\n' for x in range(3))
    svg = figures.compact(f'<svg version="1.1">\n<text x="1.98765">0.123456</text>\n<g>\n{marks}</g>\n</svg>')
    assert svg.count("fill: red") == 1
    assert svg.count('x="1.12" y="7.5"') == 1
    assert '<text x="1.98">0.123456</text>' in svg
    assert "font-family" in ET.fromstring(svg).attrib


def test_what_cannot_be_trusted_or_is_missing_is_marked():
    svg = figures.to_svg(DRAWN["forest"](), "forest")
    assert "response: dead (!)" in svg
    assert "response: robust (!)" not in svg
    assert svg.count("not available") == 1
    assert figures.to_svg(DRAWN["strip"](), "strip").count("not available") == 1
    assert "(not in training)" in figures.to_svg(DRAWN["by-scanner"](), "x")


def test_colours_are_distinct_and_the_control_is_black():
    chosen = figures.colours(["a", "paired", "b", "c", "d", "e", "f"], "paired")
    assert chosen["paired"] == figures.BLACK
    assert len(set(chosen.values())) == 7
    assert "" not in figures.colours(["a"])
