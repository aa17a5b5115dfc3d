"""After registration of a real pair of scanners, the encoder finds a tile again on the other scanner."""

from pathlib import Path

import numpy as np
import pytest
from test_registration import SETTINGS, apply, compose, register

from isoslide import grid, registration, registry
from isoslide.registration import IDENTITY
from isoslide.slide import Slide

ROOT = Path(__file__).parents[2]
FIELD_UM = 500.0
TILE_UM = 112.0
STEP_UM = 56.0  # half a tile: neighbours share half of their pixels, so an error of some µm costs matches
TURN = np.radians(17.0)


class Turned:
    """A scan seen on a turned canvas: reads like a slide."""

    def __init__(self, slide, to_slide, side_um):
        self.slide, self.to_slide, self.size_um = slide, to_slide, (side_um, side_um)

    def read(self, affine, size):
        return self.slide.read(compose(self.to_slide, np.asarray(affine)), size)


def features(encoder, scan, affine):
    """Features (n, dim) of the tiles of the field, carried to a scan; less the scan's mean, of unit length."""
    import torch

    at = np.arange(40.0, FIELD_UM - TILE_UM - 40, STEP_UM)  # 40 µm from the field's edge
    corners = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    maps = grid.tile_affines(corners, TILE_UM, 224, affine)
    tiles = np.stack([scan.read(one, (224, 224)) for one in maps])
    found = encoder(torch.from_numpy(tiles)).numpy()
    found -= found.mean(axis=0)  # what all tiles of a scanner share says nothing of the place
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def top_1(first, second):
    """Share of tiles whose nearest on the other scanner is the same place; both directions."""
    similarity = first @ second.T
    places = np.arange(len(first))
    return float(np.mean([(similarity.argmax(axis=axis) == places).mean() for axis in (0, 1)]))


@pytest.fixture(scope="module")
def pair(shared):
    folder = shared / "data" / "scanner-pairs" / "os2-ki67-2-scanners"
    with Slide(folder / "OS-2.hamamatsu.tiff") as first, Slide(folder / "OS-2.olympus.tiff") as second:
        yield first, second


def seen(scan, affine=IDENTITY):
    ring = apply(affine, np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * FIELD_UM)
    return registration.view(scan.read, scan.size_um, [[np.clip(ring, 0, scan.size_um)]], SETTINGS)


def test_top_1_is_no_worse_than_with_the_crops_own_alignment(pair):
    tile_encoder = pytest.importorskip("isoslide.tile_encoder")
    entry = registry.load(ROOT / "resources/encoders.yaml")["efficientnet_lite0"]
    encoder = tile_encoder.TileEncoder(entry, ROOT / "resources/weights")
    first, second = pair
    middle = np.full(2, FIELD_UM / 2)
    linear = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
    to_canvas = np.column_stack([linear, 320 - linear @ middle])
    to_slide = np.column_stack([linear.T, middle - linear.T @ np.full(2, 320.0)])
    turned = Turned(second, to_slide, 640.0)
    straight_on, on_canvas = register(seen(first), seen(second)), register(seen(first), seen(turned, to_canvas))
    for found in (straight_on, on_canvas):
        assert found.reason == ""
        assert found.quality.error_um < 1
    points = registration.spread(seen(first), 60, 100)
    there, turned_there = (
        apply(straight_on.warp.affine, points),
        apply(to_slide, apply(on_canvas.warp.affine, points)),
    )
    assert np.median(np.hypot(*(there - turned_there).T)) < 0.5  # two registrations of one pair agree
    reference = features(encoder, first, IDENTITY)
    own = top_1(reference, features(encoder, second, IDENTITY))
    registered = top_1(reference, features(encoder, second, straight_on.warp.affine))
    after_a_turn = top_1(reference, features(encoder, turned, on_canvas.warp.affine))
    assert own > 0.5
    assert registered >= own
    assert after_a_turn >= own - 1.5 / (2 * len(reference))  # one query: a turned read interpolates every pixel
