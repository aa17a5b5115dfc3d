import hashlib
from pathlib import Path

import numpy as np
import openslide
import pytest

from isoslide import demo_slides


def test_openslide_reads_what_was_written(tmp_path: Path) -> None:
    picture = np.full((640, 832, 3), (240, 230, 220), np.uint8)
    picture[100:300, 200:500] = (120, 60, 140)
    demo_slides.write_tiff(tmp_path / "a.tif", picture, 0.46, 80, "a description")
    with openslide.OpenSlide(tmp_path / "a.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((832, 640), (416, 320), (208, 160))
        for axis in "xy":
            assert float(slide.properties[f"openslide.mpp-{axis}"]) == pytest.approx(0.46, rel=1e-4)
        for level in range(3):
            read = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")).astype(
                int
            )
            difference = np.abs(read - picture[:: 2**level, :: 2**level])
            assert np.median(difference) <= 1
            assert difference.mean() < 2
    assert demo_slides.description_of(tmp_path / "a.tif") == "a description"


def test_equal_pictures_give_equal_bytes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (256, 320, 3), np.uint8)
    digests = set()
    for name in ("a.tif", "b.tif"):
        demo_slides.write_tiff(tmp_path / name, picture, 0.5, 75, "x")
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_description_of_what_is_no_tiff_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cut.tif").write_bytes(b"II")
    (tmp_path / "empty.tif").write_bytes(b"")
    for name in ("cut.tif", "empty.tif", "absent.tif"):
        assert demo_slides.description_of(tmp_path / name) == ""
