"""An edit of any function that a result depends on changes the result's content key, so that no stale result stands."""

import importlib
import inspect
import json
from pathlib import Path

import pytest
import stages

import extract_features
import register_scans
from isoslide import encoders, grid, registry, slide, tiling

ROOT = Path(__file__).resolve().parents[2]
ENCODER = registry.load(ROOT / "resources/encoders.yaml")["efficientnet_lite0"]
FILTERS = {"max_ink": 0.1}


def tiles_code(**changes):
    settings = json.loads(stages.settings("tiles", **changes))
    return tiling.Batch({}, {}, {}, grid.View(224, 0.5), settings).code


CODES = {
    "registrations": register_scans.code,
    "tiles": tiles_code,
    "filtered": lambda: tiles_code(**FILTERS),
    "features": lambda: extract_features.reader_code(slide.Reading(), ""),
    "stained": lambda: extract_features.reader_code(slide.Reading(), "macenko"),
    "encoder": lambda: encoders.code(ENCODER),
}
PIXELS = ("stored_tiles.StoredTiles", "jpeg_tiles.JpegLevel", "tiff_levels.PlainLevel", "dicom_levels._fragments")
DEPENDS = [
    *(("registrations", name) for name in (*PIXELS, "slide.Slide", "geojson.rasterise", "registration.fit")),
    *(("tiles", name) for name in ("tiling._grid", "tiling._carry", "grid.outside", "geojson.rasterise")),
    *(("filtered", name) for name in (*PIXELS, "tiling._failing", "tile_filters.shares", "tissue.artefacts")),
    *(("features", name) for name in (*PIXELS, "grid.tile_affines", "grid.carry", "extraction._finish")),
    *(("stained", name) for name in ("stains.macenko", "extraction._reading_order")),
    *(("encoder", name) for name in ("networks.read_weights", "networks._fill", "networks.timm_network")),
]


@pytest.mark.parametrize(("result", "name"), DEPENDS)
def test_an_edit_changes_the_key(monkeypatch, result, name):
    module, _, part = name.partition(".")
    text = inspect.getsource(getattr(importlib.import_module(f"isoslide.{module}"), part))
    before = CODES[result]()
    monkeypatch.setattr(inspect, "getsource", lambda one, real=inspect.getsource: edited(real(one), text))
    assert CODES[result]() != before


def edited(source, text):
    """A source in which one function has another last line."""
    return source.replace(text, text + "    added = 1\n")


def test_code_that_decides_no_number_changes_no_key(monkeypatch):
    before = {result: code() for result, code in CODES.items()}
    text = inspect.getsource(importlib.import_module("isoslide.pace"))
    monkeypatch.setattr(inspect, "getsource", lambda one, real=inspect.getsource: edited(real(one), text))
    assert {result: code() for result, code in CODES.items()} == before
