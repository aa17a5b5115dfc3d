"""Colour profiles: a profile whose red and blue are exchanged must exchange them in the image."""

import io
import struct
from pathlib import Path

import numpy as np
import openslide
import pytest
import stages
import tifffile
from PIL import ImageCms

from isoslide import grid, icc, slide, stains
from isoslide.slide import Reading, Slide, SlideError

ROOT = Path(__file__).resolve().parents[2]
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


def test_stain_normalisation_is_fitted_to_corrected_tiles_and_outlines_to_stored_ones(tmp_path):
    """A scan whose file says that red and blue are exchanged, and the same scan the right way round."""
    with openslide.OpenSlide(ROOT / "resources/CMU-1-Small-Region.svs") as source:
        image = np.asarray(source.read_region((300, 300), 0, (1600, 1600)).convert("RGB"))
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    options |= {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "right.tif", image, **options)
    tifffile.imwrite(tmp_path / "exchanged.tif", image[..., ::-1], iccprofile=profile_bytes(True), **options)
    names = ("right", "exchanged")
    run = stages.Stages(
        tmp_path, [{"scan": name, "path": str(tmp_path / f"{name}.tif"), "scanner": name} for name in names]
    )
    checks = run.checks()
    assert checks["icc"].to_dict() == {"right": "no", "exchanged": "yes"}
    colours = run.tissue().astype({"red_mean": float, "blue_mean": float})
    assert colours["red_mean"]["right"] == pytest.approx(colours["blue_mean"]["exchanged"], abs=1)  # as stored
    tiles = grid.read_tiles_file(run.tiles()["path"]["right"])
    found = {}
    for name in names:
        for reading in (Reading(), SRGB):
            scan = stains.NormalisedTiles("macenko", {"scan": name}, checks.loc[name], tiles, reading)
            found[name, reading.icc] = scan.read(0, 2).astype(int)
    assert np.abs(found["exchanged", "srgb"] - found["right", "srgb"]).mean() < 2
    assert np.abs(found["exchanged", "ignore"] - found["right", "ignore"]).mean() > 5


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
