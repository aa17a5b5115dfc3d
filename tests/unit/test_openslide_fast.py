"""OpenSlide's regions without PIL, against its own Python path."""

import numpy as np
import openslide
import pytest
import synth

from isoslide import openslide_fast
from isoslide.slide import Slide

WHITE = (255, 255, 255)


def by_pil(handle, location, level, size, background):
    """What the Python path gives, laid over the background in floating point."""
    rgba = np.asarray(handle.read_region(location, level, size)).astype(float)
    weight = rgba[..., 3:] / 255
    return np.round(rgba[..., :3] * weight + np.array(background) * (1 - weight))


@pytest.fixture
def handles(tmp_path):
    with openslide.OpenSlide(synth.slide(tmp_path / "a.tif")) as handle:
        yield handle


@pytest.mark.parametrize(
    ("location", "level"),
    [((100, 200), 0), ((-30, -50), 0), ((101, 203), 1), ((2300, 1900), 1), ((-5000, 0), 0)],
    ids=["inside", "corner", "between pixels of a level", "lower edge", "outside"],
)
@pytest.mark.parametrize("background", [WHITE, (200, 220, 240)])
def test_pixels_are_those_of_the_python_path(handles, location, level, background):
    out = np.zeros((150, 130, 3), np.uint8)
    openslide_fast.read(handles, location, level, (130, 150), background, out)
    np.testing.assert_array_equal(out, by_pil(handles, location, level, (130, 150), background))


def test_partly_transparent_pixels(monkeypatch):
    """Premultiplied pixels of C, as OpenSlide gives them at blurred edges, become what PIL would see."""
    words = np.array([[0xFF102030, 0x80402010, 0x00000000, 0x01010000]], np.uint32)

    def fill(_, pointer, *more):
        for index, word in enumerate(words[0].tolist()):
            pointer[index] = word

    handle = openslide.OpenSlide.__new__(openslide.OpenSlide)
    monkeypatch.setattr(handle, "_osr", None, raising=False)
    monkeypatch.setattr(openslide_fast.lowlevel, "_read_region", fill)
    out = np.zeros((1, 4, 3), np.uint8)
    openslide_fast.read(handle, (0, 0), 0, (4, 1), WHITE, out)
    straight = [[16, 32, 48], [255 * 0x40 // 128, 255 * 0x20 // 128, 255 * 0x10 // 128], [0, 0, 0], [255, 0, 0]]
    alpha = np.array([[255], [128], [0], [1]]) / 255
    np.testing.assert_array_equal(out[0], np.round(np.array(straight) * alpha + 255 * (1 - alpha)))


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.dicom", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_files_through_openslide(shared, name):
    with Slide(shared / "data/slides" / name, (0.5, 0.5)) as slide:
        slide.read_through_openslide()
        for x, y, size in [(500, 600, 256), (-20, -20, 100), (slide.size[0] - 60, slide.size[1] - 60, 100)]:
            affine = np.array([[0.5, 0, x * 0.5], [0, 0.5, y * 0.5]])
            expected = by_pil(slide._handle, (x, y), 0, (size, size), slide.background)
            np.testing.assert_array_equal(slide.read(affine, (size, size)), expected)
