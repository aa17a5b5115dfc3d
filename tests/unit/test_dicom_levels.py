import shutil

import numpy as np
import openslide
import pytest

from isoslide import dicom_levels, jpeg_tiles
from isoslide.slide import Slide, SlideError

FIRST = "level-0-frames-0-30.dcm"


@pytest.fixture
def folder(tmp_path, shared):
    """A copy of the real DICOM slide (12 levels of JPEG frames, the largest 2220 x 2967 px), to damage."""
    return shutil.copytree(
        shared / "data/slides/CMU-1-Small-Region.dicom", tmp_path / "slide", copy_function=shutil.copyfile
    )


def levels(folder):
    with openslide.OpenSlide(folder / FIRST) as handle:
        return dicom_levels.of_openslide(folder / FIRST, handle)


def whole(slide, level):
    size, ratio = slide.levels[level]
    affine = np.array([[ratio * slide.mpp[0], 0, 0], [0, ratio * slide.mpp[1], 0]])
    return slide.read(affine, size)


def test_pixels_are_those_of_openslide(folder):
    with Slide(folder) as slide, openslide.OpenSlide(folder / FIRST) as handle:
        assert all(isinstance(level, jpeg_tiles.JpegLevel) for level in slide._stored.levels)
        for corner in ((0, 0), (480, 490), (1700, 2400)):  # the last reaches the right and lower edge
            affine = np.array(
                [[slide.mpp[0], 0, corner[0] * slide.mpp[0]], [0, slide.mpp[1], corner[1] * slide.mpp[1]]]
            )
            expected = np.asarray(handle.read_region(corner, 0, (520, 567)).convert("RGB"))
            np.testing.assert_array_equal(slide.read(affine, (520, 567)), expected)


def test_every_level_equals_openslides(folder):
    with Slide(folder) as direct, Slide(folder) as other:
        other.read_through_openslide()
        for level in range(1, 6):
            np.testing.assert_array_equal(whole(direct, level), whole(other, level))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"TILED_FULL", b"TILED_SPAR"),
        (b"YBR_FULL_422", b"RGB         "),
        (b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90"),  # JPEG 2000
        (b"ORIGINAL\\PRIMARY\\VOLUME", b"ORIGINAL\\PRIMARY\\LABEL "),
    ],
)
def test_what_is_not_plain_is_left_to_openslide(folder, old, new):
    data = (folder / FIRST).read_bytes()
    if old not in data:
        old, new = old.replace(b"ORIGINAL", b"DERIVED"), new.replace(b"ORIGINAL", b"DERIVED")
    assert old in data
    before = levels(folder)
    with openslide.OpenSlide(folder / FIRST) as handle:
        (folder / FIRST).write_bytes(data.replace(old, new))
        after = dicom_levels.of_openslide(folder / FIRST, handle)
    assert before[0] is not None
    assert after[0] is None
    assert after[1] is not None


def test_a_file_that_ends_too_soon_is_left_to_openslide(folder):
    data = (folder / FIRST).read_bytes()
    with openslide.OpenSlide(folder / FIRST) as handle:
        for length in (100, 4000, len(data) - 500):
            (folder / FIRST).write_bytes(data[:length])
            assert dicom_levels.of_openslide(folder / FIRST, handle)[0] is None


def test_a_file_of_another_series_is_no_level(folder):
    """Two slides in one folder: OpenSlide tells them apart by their series, and so do we."""
    with openslide.OpenSlide(folder / FIRST) as handle:
        series = handle.properties["dicom.SeriesInstanceUID"].encode()
        data = (folder / FIRST).read_bytes()
        (folder / FIRST).write_bytes(data.replace(series, series[:-1] + b"%d" % ((int(series[-1:]) + 1) % 10)))
        assert dicom_levels.of_openslide(folder / FIRST, handle)[0] is None


def test_damage_is_reported_with_its_place(folder):
    with Slide(folder) as slide:
        offset, length = (getattr(slide._stored.levels[0].layout, name)[7] for name in ("offsets", "lengths"))
    data = bytearray((folder / FIRST).read_bytes())
    data[offset + length // 2 : offset + length // 2 + 200] = bytes(200)
    (folder / FIRST).write_bytes(data)
    with Slide(folder) as slide, pytest.raises(SlideError, match=r"partly_unreadable.*level-0 px \(1000, 500\)"):
        whole(slide, 0)
