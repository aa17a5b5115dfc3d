from pathlib import Path

import numpy as np
import openslide
import pytest
from skimage import color

from isoslide import stains

SLIDE = Path(__file__).resolve().parents[2] / "resources/CMU-1-Small-Region.svs"
VECTORS = np.array([[0.65, 0.70, 0.29], [0.25, 0.90, 0.35]])
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def mixture(n=60_000, seed=0):
    """Pixels of known amounts (n, 2) of two known stains: many nearly pure, as nuclei and stroma are."""
    rng = np.random.default_rng(seed)
    share = np.clip(rng.beta(0.5, 0.5, n), 0, 1)
    amounts = rng.uniform(0.8, 1.8, n)[:, None] * np.column_stack([share, 1 - share])
    return np.clip(np.rint(240 * np.exp(-amounts @ VECTORS) - 1), 0, 255).astype(np.uint8), amounts


@pytest.fixture(scope="module")
def tissue():
    with openslide.OpenSlide(SLIDE) as slide:
        return np.array(slide.read_region((300, 600), 0, (896, 896)).convert("RGB"))


def rescanned(image, gain=(1.0, 0.93, 0.88), gamma=1.25):
    """The same glass on a scanner of other colours."""
    return np.rint(255 * (image / 255) ** gamma * gain).astype(np.uint8)


def test_known_stains_are_found():
    pixels, amounts = mixture()
    vectors, large = stains.stain_vectors(pixels)
    angles = np.degrees(np.arccos(np.clip((vectors * VECTORS).sum(1), -1, 1)))
    assert (angles < 1.5).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert large == pytest.approx(np.percentile(amounts, 99, axis=0), rel=0.05)


def test_macenko_is_amounts_scaled_and_shown_in_the_target_pixel_by_pixel(tissue):
    pixels = tissue.reshape(-1, 3)[::7]
    vectors, large = stains.stain_vectors(pixels)
    found = stains.macenko(pixels)(tissue[None, :64, :64])[0]
    for y, x in [(0, 0), (10, 50), (63, 63), (40, 7), (21, 33)]:
        od = [-np.log((int(value) + 1) / 240) for value in tissue[y, x]]
        amount, *_ = np.linalg.lstsq(vectors.T, od, rcond=None)
        shown = sum(amount[k] * stains.TARGET_AMOUNTS[k] / large[k] * stains.TARGET_VECTORS[k] for k in range(2))
        assert found[y, x].astype(float) == pytest.approx(np.clip(240 * np.exp(-shown), 0, 255), abs=0.51)


def test_reinhard_gives_stained_pixels_the_moments_of_the_target():
    pixels, _ = mixture()
    shown = stains.reinhard(pixels)(pixels.reshape(10, 60, 100, 3))
    mean, sd = color.rgb2lab(pixels[None])[0].mean(0), color.rgb2lab(pixels[None])[0].std(0)
    assert stains.lab_moments(pixels)[0] == pytest.approx(mean, abs=0.1)
    assert stains.lab_moments(pixels)[1] == pytest.approx(sd, rel=0.01)
    expected = (color.rgb2lab(pixels[None, :500]) - mean) / sd * stains.TARGET_SD + stains.TARGET_MEAN
    rgb = color.lab2rgb(expected)[0] * 255
    assert shown.reshape(-1, 3)[:500].astype(float) == pytest.approx(np.clip(rgb, 0, 255), abs=1.5)


@pytest.mark.parametrize("kind", list(stains.FITS))
def test_the_shift_of_a_scanner_becomes_smaller(tissue, kind):
    other = rescanned(tissue)
    before = np.abs(tissue.astype(int) - other).mean()
    shown = [stains.FITS[kind](image.reshape(-1, 3)[::7])(image[None])[0].astype(int) for image in (tissue, other)]
    stained = stains._is_stained(stains.density(tissue.reshape(-1, 3))).reshape(tissue.shape[:2])
    assert np.abs(shown[0] - shown[1])[stained].mean() < 0.5 * np.abs(tissue.astype(int) - other)[stained].mean()
    assert np.abs(shown[0] - shown[1]).mean() < before


@pytest.mark.parametrize("kind", list(stains.FITS))
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((50_000, 3), 250, np.uint8), "0 stained pixels in 32 tiles, at least 1000 are needed"),
        (np.full((50_000, 3), 100, np.uint8), "one stain only|amounts of its stains|one colour"),
    ],
)
def test_what_shows_no_stain_is_named(kind, pixels, message):
    with pytest.raises(stains.StainError, match=message):
        stains.FITS[kind](pixels)
