import cv2
import numpy as np
import pytest
from synth import render

from isoslide import quality
from isoslide.slide import Slide


class Fake(Slide):
    """A slide whose pixels are an array of 1 µm pixels."""

    def __init__(self, image):
        self.image, self.mpp, self.size_um = image, (1.0, 1.0), image.shape[1::-1]

    def read(self, affine, size):
        x, y = (round(value) for value in affine[:, 2])
        return self.image[y : y + size[1], x : x + size[0]]


def test_sharpness_falls_with_blur_and_not_with_stain():
    image = render((1200, 1200), 1.0, ((600, 600, 550),))
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    mask = cv2.resize(image, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)[..., 1] < 220
    pale = 244 - (244 - image) * 0.6
    sharp, blurred, weak = (
        quality.sharpness(Fake(np.clip(pixels, 0, 255).astype(np.uint8)), mask, 8.0)
        for pixels in (image, cv2.GaussianBlur(image, (0, 0), 2), pale)
    )
    assert blurred < 0.5 * sharp
    assert weak == pytest.approx(sharp, rel=0.1)
    assert quality.sharpness(Fake(image), np.zeros_like(mask), 8.0) == 0


def test_colour_statistics_by_hand():
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[0] = [[10, 20, 30], [20, 20, 50]]
    found = quality.colour(rgb, np.array([[True, True], [False, False]]))
    assert [found[f"{name}_mean"] for name in ("red", "green", "blue")] == [15, 20, 40]
    assert [found[f"{name}_sd"] for name in ("red", "green", "blue")] == [5, 0, 10]
    assert set(quality.colour(rgb, np.zeros((2, 2), bool)).values()) == {0}


@pytest.fixture(scope="module")
def tissue():
    image = np.clip(render((1600, 1600), 1.0, ((800, 800, 700),)), 0, 255).astype(np.uint8)
    overview = cv2.resize(image, (200, 200), interpolation=cv2.INTER_AREA)
    return image, overview, overview[..., 1] < 220


def test_places_of_a_sound_slide(tissue):
    image, overview, mask = tissue
    found = quality.places(Fake(image), overview, mask, 8.0)
    assert found.black == 0
    assert found.difference < 1


def test_places_find_what_level_0_has_lost(tissue):
    """Complaint G-A12: a tenth of level 0 is zero, the other levels are whole."""
    image, overview, mask = tissue
    image = image.copy()
    image[:, 600:720] = 0  # a tenth of the disc's area
    share = (mask & (np.arange(200) >= 75) & (np.arange(200) < 90)).sum() / mask.sum()
    assert quality.places(Fake(image), overview, mask, 8.0).black == pytest.approx(share, abs=0.06)


def test_places_find_other_colours(tissue):
    """Complaint G-A7: one level decoded in another colour space."""
    image, overview, mask = tissue
    assert quality.places(Fake(image[..., ::-1]), overview, mask, 8.0).difference > quality.LEVELS_DIFFERENCE


def test_places_without_tissue(tissue):
    assert quality.places(Fake(tissue[0]), tissue[1], np.zeros((200, 200), bool), 8.0) == quality.Places(0.0, 0.0)
