"""Colour profiles: a profile whose red and blue are exchanged must exchange them in the image."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from isoslide import icc, slide
from isoslide.slide import Reading, Slide, SlideError

SRGB = Reading(icc="srgb")


def profile_bytes(exchanged):
    """The sRGB profile, or one that says the first channel is blue and the third is red."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack(">I", data[128:132])[0] if exchanged else 0):
        place = 132 + 12 * index
        name = bytes(data[place : place + 4])
        data[place : place + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    return bytes(data)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)


@pytest.mark.parametrize("exchanged", [False, True])
def test_known_profiles(image, exchanged):
    transform = icc.to_srgb(ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes(exchanged))))
    expected = image[..., ::-1] if exchanged else image
    assert np.abs(transform(image).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["tiles", "strips"])
def test_the_setting_decides(tmp_path, image, kind):
    path = tmp_path / "a.tif"
    layout = {"tile": (128, 128)} if kind == "tiles" else {"rowsperstrip": 50}
    tifffile.imwrite(path, image, photometric="rgb", compression="zlib", iccprofile=profile_bytes(True), **layout)
    affine = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    with Slide(path, (1.0, 1.0)) as stored, Slide(path, (1.0, 1.0), SRGB) as corrected:
        assert "openslide.icc-size" in stored.properties
        np.testing.assert_array_equal(stored.read(affine, (280, 300)), image)
        changed = corrected.read(affine, (280, 300)).astype(int)
        assert np.abs(changed - image[..., ::-1]).max() <= 2
        np.testing.assert_array_equal(corrected.read_tiles(affine[None], 280)[0], changed[:280])


def test_a_file_without_profile_stays_as_it_is(tmp_path, image):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128))
    with Slide(path, (1.0, 1.0), SRGB) as opened:
        np.testing.assert_array_equal(opened.read(np.eye(2, 3), (280, 300)), image)


def test_a_damaged_profile_is_named(tmp_path, image):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), iccprofile=b"no profile" * 20)
    with Slide(path, (1.0, 1.0), SRGB) as opened, pytest.raises(SlideError, match="colour profile cannot be used"):
        opened.read(np.eye(2, 3), (280, 300))


def test_settings_are_part_of_the_content_key():
    keys = [slide.code(reading) for reading in (Reading(), SRGB, Reading(downsampling="exact"))]
    assert keys[0] == slide.code()
    assert len({str(key) for key in keys}) == 3
