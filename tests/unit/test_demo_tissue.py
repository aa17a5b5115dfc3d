from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from isoslide import demo, demo_tissue

SLIDE = Path(__file__).resolve().parents[2] / "resources/CMU-1-Small-Region.svs"
TILE_UM2 = 112**2


@pytest.fixture(scope="module")
def source() -> demo_tissue.Source:
    return demo_tissue.read_source(SLIDE)


@pytest.fixture(scope="module")
def specimens() -> list[demo.Specimen]:
    return demo.specimens(demo.patients())


def test_source_patches_are_what_their_class_says(source: demo_tissue.Source) -> None:
    assert source.mpp == 0.499
    rng = np.random.default_rng(0)
    redness = {}
    for name, corners in source.corners.items():
        assert len(corners) > 50_000
        assert (corners >= 0).all()
        assert (corners + demo_tissue.PATCH <= source.rgb.shape[1::-1]).all()
        patches = np.stack(
            [
                source.rgb[y : y + demo_tissue.PATCH, x : x + demo_tissue.PATCH].reshape(-1, 3).mean(axis=0)
                for x, y in corners[rng.integers(len(corners), size=50)]
            ]
        )
        redness[name] = patches[:, 0] / patches[:, 2]
    # Eosin-pink stroma lets more red through than blue; nuclei and dense cytoplasm do not.
    assert redness["stroma"].min() > redness["epithelium"].max() - 0.1
    assert redness["stroma"].mean() > 1.1 > redness["epithelium"].mean()


def test_no_patches_on_glass() -> None:
    corners = demo_tissue.find_patches(np.full((300, 300, 3), 243, np.uint8))
    assert {name: len(found) for name, found in corners.items()} == {"epithelium": 0, "stroma": 0}


def test_outlines_have_equal_area_and_a_margin(specimens: list[demo.Specimen]) -> None:
    margin = int(demo_tissue.MARGIN_UM / demo_tissue.COARSE_UM) - 1
    for specimen in [*specimens[:8], *(specimen for specimen in specimens if specimen.pen)]:
        outline = demo_tissue.draw_outline(specimen, demo.SEED)
        tissue = outline.distance > 0
        area = tissue.sum() * demo_tissue.COARSE_UM**2
        assert area == pytest.approx(demo_tissue.AREA_UM2, rel=0.01)
        assert not tissue[:margin].any()
        assert not tissue[-margin:].any()
        assert not tissue[:, :margin].any()
        assert not tissue[:, -margin:].any()
        holes = cv2.connectedComponents((~tissue).astype(np.uint8))[0] - 2  # less the tissue and the surrounding glass
        assert 1 <= holes <= 6
        assert (outline.pen.max() > 0) == specimen.pen


def test_about_24_tiles_hold_tissue(specimens: list[demo.Specimen]) -> None:
    counts = []
    for specimen in specimens[::4]:
        tissue = (demo_tissue.draw_outline(specimen, demo.SEED).distance > 0).astype(np.float32)
        width, height = (int(size // 28) * 28 for size in tissue.shape[::-1])
        counts.append((tissue[:height, :width].reshape(height // 28, 28, width // 28, 28).mean((1, 3)) >= 0.5).sum())
    assert 22 <= np.mean(counts) <= 26
    assert min(counts) >= 20


@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_tissue_holds_the_share_of_epithelium(
    specimens: list[demo.Specimen], source: demo_tissue.Source, share: float
) -> None:
    specimen = replace(specimens[1], share=share)
    outline = demo_tissue.draw_outline(specimen, demo.SEED)
    shape = (round(outline.size_um[1] / source.mpp), round(outline.size_um[0] / source.mpp))
    opacity = demo_tissue._place_epithelium(share, outline, shape, np.random.default_rng(3))
    tissue = cv2.resize(outline.distance, shape[::-1]) > 0
    assert opacity[tissue].mean() == pytest.approx(share, abs=0.02)


def test_feathered_patches_add_up_to_one() -> None:
    density = np.zeros((700, 900, 3), np.float32)
    grey = np.full((200, 200, 3), 100, np.uint8)
    corners = np.array([[0, 0], [30, 20]])
    demo_tissue._add_mosaic(density, np.ones((700, 900), np.float32), grey, corners, np.random.default_rng(0))
    np.testing.assert_allclose(density, demo_tissue.DENSITY[100], rtol=1e-5)


def test_glass_is_clear_around_tissue_and_dark_under_ink(
    specimens: list[demo.Specimen], source: demo_tissue.Source
) -> None:
    specimen = next(specimen for specimen in specimens if specimen.pen)
    outline = demo_tissue.draw_outline(specimen, demo.SEED)
    glass = demo_tissue.lay_tissue(specimen, outline, source, demo.SEED)
    size = glass.shape[1::-1]
    distance, pen = (cv2.resize(image, size) for image in (outline.distance, outline.pen))
    assert glass.dtype == np.float32
    assert (glass[(distance < -25) & (pen < 0.001)] > 0.99).all()
    assert glass.min() > 0
    assert glass[pen > 0.6].mean() < 0.5
    clean = glass[(distance > 20) & (pen < 0.001)]
    assert 0.3 < clean.mean() < 0.8
    np.testing.assert_array_equal(glass, demo_tissue.lay_tissue(specimen, outline, source, demo.SEED))
