import numpy as np
import pytest

from isoslide import known_slide, openslide_fast

PATH = "resources/CMU-1-Small-Region.svs"


@pytest.fixture(autouse=True)
def at_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_the_installed_libraries_read_it_right():
    known_slide.check(PATH)


def test_wrong_pixels_are_refused(monkeypatch):
    """Complaint G-A9: a native library that draws black boxes into good slides."""
    read = openslide_fast.read

    def with_a_box(handle, location, level, size, background, out):
        read(handle, location, level, size, background, out)
        out[:64, :64] = 0

    monkeypatch.setattr(openslide_fast, "read", with_a_box)
    with pytest.raises(known_slide.ReaderError, match="through OpenSlide is .* install the versions of envs/base.yaml"):
        known_slide.check(PATH)


def test_other_values_are_refused(monkeypatch):
    monkeypatch.setattr(known_slide, "GREEN", np.array(known_slide.GREEN) + 5)
    with pytest.raises(known_slide.ReaderError, match="through JPEG tiles is [56] grey levels off"):
        known_slide.check(PATH)
