import json
import math
from functools import cache

import cv2
import numpy as np
import pytest
import stages
from synth import GLASS, PENS, render

from isoslide import geojson, tissue
from isoslide.slide import Slide

SETTINGS = json.loads(stages.settings("tissue"))
UM_PER_PX = 8.0


@cache
def level0(blobs, size_um, stain, mpp):
    return render((round(size_um[0] / mpp), round(size_um[1] / mpp)), mpp, blobs, stain)


def overview(blobs=((1200, 1200, 500),), size_um=(2400, 2400), stain="he", mpp=1.0, noise=2.0):
    """An overview at 8 µm/px made like a scanner's: rendered at level 0, then area-averaged."""
    size = (round(size_um[0] / UM_PER_PX), round(size_um[1] / UM_PER_PX))
    image = cv2.resize(level0(blobs, size_um, stain, mpp), size, interpolation=cv2.INTER_AREA)
    image += np.random.default_rng(0).normal(0, noise * mpp / UM_PER_PX, image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def plain():
    return overview()


def segment(rgb, um_per_px=UM_PER_PX, **settings):
    return tissue.segment(rgb, um_per_px, SETTINGS | settings)


DISC_MM2 = math.pi * 0.5**2


@pytest.mark.parametrize("stain", ["he", "pale", "ihc"])
def test_disc_has_its_area_in_every_stain(stain):
    found = segment(overview(stain=stain))
    assert found.tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)
    assert (found.ink_share, found.black_share) == (0, 0)


def test_blank_slide_has_no_tissue():
    found = segment(overview(blobs=(), noise=20))
    assert (found.tissue_mm2, found.ink_share, found.black_share) == (0, 0, 0)


@pytest.mark.parametrize("glass", [(255, 255, 255), (216, 216, 216), (228, 226, 237)])
def test_glass_of_any_tint_has_no_tissue(glass):
    rgb = np.full((300, 300, 3), glass, np.uint8)
    assert np.allclose(tissue.glass_colour(rgb, np.ones((300, 300), bool)), glass)
    assert segment(rgb).tissue_mm2 == 0


def test_white_filling_beside_tinted_glass_is_no_tissue(plain):
    tinted = np.clip(plain.astype(float) * [228 / 244, 226 / 243, 237 / 244], 0, 255).astype(np.uint8)
    tinted[:, 240:] = 255
    assert segment(tinted).tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)


@pytest.mark.parametrize("pen", sorted(PENS))
@pytest.mark.parametrize("stain", ["he", "ihc"])
def test_ink_on_glass_is_ink_and_not_tissue(pen, stain):
    rgb = overview(stain=stain)
    rgb[50:250, 250:280] = PENS[pen]
    found = segment(rgb)
    assert found.tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)
    assert found.ink_share == pytest.approx(0.384 / (0.384 + DISC_MM2), rel=0.15)
    assert not found.tissue[:, 246:].any()


@pytest.mark.parametrize("pen", sorted(PENS))
def test_ink_over_tissue_is_cut_out(pen):
    rgb = overview()
    ink = -np.log((np.array(PENS[pen]) + 1) / 256)
    rgb[140:160] = (rgb[140:160] * np.exp(-ink)).astype(np.uint8)  # what a pen leaves of the light
    found = segment(rgb)
    assert not found.tissue[142:158].any()
    assert found.tissue_mm2 == pytest.approx(DISC_MM2 - 1.0 * 0.16, rel=0.1)


@pytest.mark.parametrize("colour", [(130, 80, 180), (110, 50, 160), (70, 30, 120)], ids=str)
@pytest.mark.parametrize("soft_um", [0, 20, 40])
def test_violet_stroke_on_glass_is_ink(colour, soft_um):
    """Out of focus, as ink on the cover slip is."""
    stroke = np.zeros((300, 300), np.float32)
    stroke[50:250, 245:280] = 1
    if soft_um:
        stroke = cv2.GaussianBlur(stroke, (0, 0), soft_um / UM_PER_PX)
    taken = np.log((np.array(GLASS) + 1) / (np.array(colour) + 1)) * stroke[..., None]
    found = segment((overview() * np.exp(-taken)).round().astype(np.uint8))
    assert found.ink[55:245, 250:275].all()
    assert found.tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)
    assert not found.tissue[:, 225:].any()


def real_he(shared):
    """Overviews of real H&E at 4 and 8 µm/px."""
    slides = {"slides/CMU-1-Small-Region.svs": 0.499, "slides/tcga-cr-7395-01a-01-ts1.svs": 0.5}
    slides["scanner-pairs/os2-ki67-2-scanners/OS-1.hamamatsu-he.tiff"] = 0.5
    for um_per_px in (4, 8):
        for name, mpp in slides.items():
            with Slide(shared / "data" / name, (mpp, mpp)) as slide:
                yield slide.overview(um_per_px), um_per_px
        for name, mpp in (("prostate-he-2500.jpeg", 0.5), ("tcga-green-pen.png", 2.5)):
            image = cv2.imread(str(shared / "data/qc-images" / name))[..., ::-1]
            yield (
                cv2.resize(image, None, fx=mpp / um_per_px, fy=mpp / um_per_px, interpolation=cv2.INTER_AREA),
                um_per_px,
            )


@pytest.mark.parametrize(
    ("density", "sigma_um"), [(1, 0), (1.5, 0), (2, 0), (1, 8), (1, 16), (1, 32), (1.25, 16), (1.25, 32)]
)
def test_no_real_tissue_is_violet_ink(shared, density, sigma_um):
    """As it is, in thicker or darker sections, and out of focus."""
    for rgb, um_per_px in real_he(shared):
        glass = tissue.glass_colour(rgb, np.ones(rgb.shape[:2], bool))
        dense = np.exp(-density * tissue.optical_density(rgb.astype(np.float32), glass)) * (glass + 1) - 1
        dense = np.clip(dense, 0, 255).astype(np.uint8)
        if sigma_um:
            dense = cv2.GaussianBlur(dense, (0, 0), sigma_um / um_per_px)
        smooth = tissue._smooth_density(dense, np.ones(rgb.shape[:2], bool), 8 / um_per_px)
        assert not tissue._violet_ink(dense, *cv2.split(smooth), um_per_px).any()


@pytest.mark.parametrize(
    ("ratios", "least"), [((0.9, 1.6, 0.5), 0.85), ((1.0, 1.5, 0.5), 0.85), ((0.8, 1.4, 0.8), 0.6)]
)
def test_a_real_stroke_over_tissue_made_violet(shared, ratios, least):
    """A green stroke keeps its density and texture and gets another hue: OD of red, green and blue over their mean."""
    rgb = cv2.imread(str(shared / "data/qc-images/tcga-green-pen.png"))[..., ::-1]
    rgb = cv2.resize(rgb, None, fx=2.5 / 8, fy=2.5 / 8, interpolation=cv2.INTER_AREA)
    stroke = segment(rgb).ink
    wide = tissue._dilate(stroke, 2)
    glass = tissue.glass_colour(rgb, np.ones(rgb.shape[:2], bool))
    density = tissue.optical_density(rgb.astype(np.float32), glass)
    density[wide] = density[wide].mean(axis=-1, keepdims=True) * np.float32(ratios)
    found = segment(np.clip(np.exp(-density) * (glass + 1) - 1, 0, 255).astype(np.uint8))
    assert (found.ink & stroke).sum() > least * stroke.sum()
    assert (found.ink & ~wide).sum() < 0.01 * (~wide).sum()


def test_green_ink_over_dense_tissue_does_not_spread_as_black_ink():
    """Ink over dull epithelium is nearly black, and the epithelium looks like the pale margin of a black stroke."""
    rgb = np.full((300, 300, 3), (222, 226, 231), np.uint8)
    cv2.circle(rgb, (150, 150), 62, (100, 75, 110), -1)
    rgb[140:160, 60:240] = rgb[140:160, 60:240] * (np.array([50, 120, 70]) / 255)
    found = segment(rgb)
    assert found.ink[142:158, 70:230].all()
    assert found.tissue_mm2 == pytest.approx(math.pi * 0.496**2 - 0.16 * 0.99, rel=0.12)


@pytest.mark.parametrize(("sigma_um", "halo"), [(16, 0.1), (32, 0.18)])
def test_tissue_out_of_focus_is_found(sigma_um, halo):
    blurred = cv2.GaussianBlur(overview(), (0, 0), sigma_um / UM_PER_PX)
    assert segment(blurred).tissue_mm2 == pytest.approx(DISC_MM2, rel=halo)


def test_fat_counts_as_tissue():
    """Fat cells of 60 µm between septa of 6 µm, about as pale on average as glass."""
    y, x = np.mgrid[0:2400, 0:2400]
    septa = ((x % 60 < 6) | (y % 60 < 6)) & ((x - 1200) ** 2 + (y - 1200) ** 2 < 500**2)
    image = np.where(septa[..., None], np.float32((225, 150, 195)), np.float32(GLASS))
    rgb = cv2.resize(image, (300, 300), interpolation=cv2.INTER_AREA).round().astype(np.uint8)
    assert segment(rgb).tissue_mm2 == pytest.approx(DISC_MM2, rel=0.1)


def test_warm_shadow_of_the_edge_is_no_tissue(plain):
    rgb = plain.astype(float)
    rgb[-20:] *= 1 - np.linspace(0, 1, 20)[:, None, None] ** 2 * np.array([0.32, 0.33, 0.36])
    assert not segment(rgb.astype(np.uint8)).tissue[-20:].any()


def test_ink_stays_when_asked(plain):
    rgb = plain.copy()
    rgb[50:250, 250:280] = PENS["blue"]
    assert segment(rgb, remove_ink=False).tissue_mm2 > DISC_MM2 + 0.3


def test_black_frame_is_counted_and_no_tissue(plain):
    rgb = plain.copy()
    rgb[:20] = rgb[:, :20] = 5
    found = segment(rgb)
    assert found.black_share == pytest.approx(1 - (280 / 300) ** 2, abs=0.002)
    assert found.tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)


def test_grey_shadow_of_the_edge_and_cover_slip_line_are_no_tissue(plain):
    rgb = plain.astype(float)
    rgb[-30:] *= np.linspace(1, 0.6, 30)[:, None, None]
    rgb[:, 60:62] = 120
    assert segment(rgb.astype(np.uint8)).tissue_mm2 == pytest.approx(DISC_MM2, rel=0.04)


@pytest.mark.parametrize(("radius", "kept"), [(200, True), (30, False)])
def test_hole_is_kept_above_the_limit(plain, radius, kept):
    rgb = plain.copy()
    cv2.circle(rgb, (150, 150), round(radius / UM_PER_PX), GLASS, -1)
    assert segment(rgb).tissue[150, 150] != kept


def test_dust_is_dropped(plain):
    rgb = plain.copy()
    rgb[30:38, 30:38] = (180, 90, 150)  # 64 x 64 µm
    assert not segment(rgb).tissue[:60, :60].any()


def test_same_decision_at_both_resolutions():
    """Complaint G-C2: limits are areas, not pixels."""
    blobs = ((500, 500, 300), (950, 900, 60))
    areas = [segment(overview(blobs, (1200, 1200), mpp=mpp)).tissue_mm2 for mpp in (0.5, 1.0)]
    assert areas[0] == pytest.approx(areas[1], rel=0.01)


class Fake(Slide):
    """A slide whose pixels are an array of 1 µm pixels."""

    def __init__(self, image):
        self.image, self.mpp, self.size_um = image, (1.0, 1.0), image.shape[1::-1]

    def read(self, affine, size):
        x, y = (round(value) for value in affine[:, 2])
        return self.image[y : y + size[1], x : x + size[0]]


def test_overlay_is_small_and_shows_the_outline(plain):
    found = segment(plain)
    polygons = geojson.trace(found.tissue, (16, 16))  # level 0 at 0.5 µm/px
    big = cv2.resize(plain, (1200, 1200))
    picture = tissue.overlay(big, polygons, 2.0, (0.5, 0.5))
    assert picture.shape == (600, 600, 3)
    assert (np.abs(picture[300].astype(int) - tissue.OUTLINE_COLOUR).sum(axis=1) < 60).sum() >= 2


def test_small_slides_are_segmented_finer():
    for extent, expected in ((20000, 8), (1200, 4), (90, 0.5)):
        fake = Fake(np.zeros((1, 1, 3)))
        fake.size_um, fake.mpp = (extent, extent / 2), (0.5, 0.5)
        assert tissue.overview_um_per_px(fake, 8) == expected


def test_two_real_scanners_agree(shared):
    found = []
    for name in ("hamamatsu", "olympus"):
        with Slide(shared / f"data/scanner-pairs/os2-ki67-2-scanners/OS-2.{name}.tiff") as slide:
            um_per_px = tissue.overview_um_per_px(slide, 8)
            found.append(segment(slide.overview(um_per_px), um_per_px).tissue)
    a, b = found
    assert (a & b).sum() / (a | b).sum() > 0.9


@pytest.mark.parametrize(
    ("name", "um_per_px", "ink"),
    [("diagnostic-slide-thumb-rgb.png", 40, 0.34), ("tcga-green-pen.png", 2.5, 0.21), ("wsi-blue-pen.png", 40, 0.07)],
)
def test_ink_on_real_slides(shared, name, um_per_px, ink):
    image = cv2.imread(str(shared / "data/qc-images" / name), cv2.IMREAD_UNCHANGED)
    rgb = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    if image.shape[-1] == 4:
        rgb = np.where(image[..., 3:] == 0, 255, rgb).astype(np.uint8)
    assert segment(rgb, um_per_px).ink_share == pytest.approx(ink, abs=0.05)
