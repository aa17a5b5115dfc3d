from pathlib import Path

import cv2
import numpy as np
import pytest
import synth
from PIL import Image

from isoslide.slide import Reading, Slide, SlideError, open_checked

RESOURCE = Path(__file__).resolve().parents[2] / "resources/CMU-1-Small-Region.svs"
MPP = 0.499


def straight(slide, x, y, w, h):
    """Pixels of OpenSlide itself."""
    return np.asarray(slide._handle.read_region((x, y), 0, (w, h)).convert("RGB"))


def shift(x, y, scale=1.0):
    return np.array([[MPP * scale, 0, x * MPP], [0, MPP * scale, y * MPP]])


def test_scale_one_gives_the_files_own_pixels():
    with Slide(RESOURCE) as slide:
        assert slide.mpp == (MPP, MPP)
        np.testing.assert_array_equal(slide.read(shift(700, 900), (224, 200)), straight(slide, 700, 900, 224, 200))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_whole_factors_give_the_area_mean(factor):
    with Slide(RESOURCE, reading=Reading(downsampling="exact")) as slide:
        image = slide.read(shift(300, 500, factor), (64, 64))
        source = straight(slide, 300, 500, 64 * factor, 64 * factor)
        mean = source.reshape(64, factor, 64, factor, 3).mean(axis=(1, 3))
        assert np.abs(image - mean).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("turn", "flip"), [(turn, flip) for turn in range(4) for flip in (False, True)])
def test_turns_and_flips_are_exact(turn, flip):
    """The same square of tissue, looked at in all eight ways: columns of the affine are the directions of u and v."""
    with Slide(RESOURCE) as slide:
        expected = straight(slide, 400, 700, 128, 128)
        u, v, corner = np.array([1.0, 0]), np.array([0, 1.0]), np.array([400.0, 700])
        if flip:
            expected, u, corner = expected[:, ::-1], -u, corner + [128, 0]
        for _ in range(turn):  # np.rot90 turns u to where v pointed backwards
            expected = np.rot90(expected)
            u, v, corner = v, -u, corner + u * 128
        image = slide.read(np.column_stack([u, v, corner]) * MPP, (128, 128))
        np.testing.assert_array_equal(image, expected)


def test_a_turned_read_agrees_with_an_independent_rotation():
    with Slide(RESOURCE) as slide:
        angle = np.deg2rad(17)
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([700.0, 1500.0])
        affine = np.column_stack([linear * MPP, (centre - linear @ [100, 100]) * MPP])
        image = slide.read(affine, (200, 200))
        matrix = np.column_stack([linear, linear @ [0.5 - 100, 0.5 - 100] + centre - 0.5 - [400, 1200]])
        source = straight(slide, 400, 1200, 600, 600)
        expected = cv2.warpAffine(source, matrix, (200, 200), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        assert np.abs(image.astype(int) - expected).mean() < 0.5


def test_outside_is_background_never_black():
    with Slide(RESOURCE) as slide:
        image = slide.read(shift(-100, -100), (150, 150))
        assert (image[:98] == 255).all()
        assert (image[:, :98] == 255).all()
        np.testing.assert_array_equal(image[102:, 102:], straight(slide, 2, 2, 48, 48))
        assert (slide.read(shift(slide.size[0] + 500, 0), (20, 20)) == 255).all()
        corner = slide.read(shift(slide.size[0] - 10, slide.size[1] - 10), (20, 20))
        np.testing.assert_array_equal(corner[:8, :8], straight(slide, slide.size[0] - 10, slide.size[1] - 10, 8, 8))


def test_coarser_levels_are_used_and_lie_in_the_same_place(tmp_path):
    path = synth.slide(tmp_path / "a.tif", mpp=0.25, noise=0)
    with Slide(path) as slide:
        assert len(slide.levels) > 1
        affine = np.array([[2.0, 0, 300], [0, 2.0, 300]])
        coarse = slide.read(affine, (200, 200))[..., 1].astype(np.float32)
        slide.levels = slide.levels[:1]
        fine = slide.read(affine, (200, 200))[..., 1].astype(np.float32)
    shift_px, _ = cv2.phaseCorrelate(coarse, fine, cv2.createHanningWindow((200, 200), cv2.CV_32F))
    assert np.hypot(*shift_px) < 0.2  # the levels differ by JPEG; they are not moved
    assert np.abs(coarse.mean() - fine.mean()) < 0.5


def test_overview_of_a_flat_file_is_read_in_pieces(tmp_path, monkeypatch):
    path = synth.slide(tmp_path / "flat.tif", flat=True, noise=0)
    with Slide(path) as slide:
        whole = slide.overview(4)
        monkeypatch.setattr("isoslide.slide.MAX_CROP_PX", 500)
        pieces = slide.overview(4)
    assert whole.shape == (250, 300, 3)
    assert np.abs(whole.astype(int) - pieces).max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [("absent.svs", None, "missing"), ("text.svs", b"no slide", "unreadable"), ("empty.tif", b"", "unreadable")],
)
def test_what_is_no_slide_is_named(tmp_path, name, content, status):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError) as error:
        Slide(tmp_path / name)
    assert error.value.status == status


def test_folders(tmp_path, shared):
    with pytest.raises(SlideError, match="without .dcm files"):
        Slide(tmp_path)
    with Slide(shared / "data/slides/CMU-1-Small-Region.dicom") as slide:
        assert slide.size == (2220, 2967)


def test_no_mpp_is_refused_and_can_be_given(tmp_path):
    path = synth.slide(tmp_path / "a.tif", with_mpp=False)
    with pytest.raises(SlideError) as error:
        Slide(path)
    assert error.value.status == "no_mpp"
    with Slide(path, mpp=(0.5, 0.5)) as slide:
        assert slide.size_um == (1200, 1000)


def test_damage_in_the_middle_is_reported_with_its_place(tmp_path):
    path = tmp_path / "bad.svs"
    data = bytearray(RESOURCE.read_bytes())
    data[400_000:460_000] = bytes(60_000)
    path.write_bytes(data)
    with Slide(path) as slide, pytest.raises(SlideError, match=r"level 0, level-0 px") as error:
        slide.read(shift(0, 0), slide.size)
    assert error.value.status == "partly_unreadable"


def test_a_slide_that_changed_since_its_check_is_refused(tmp_path):
    path = synth.slide(tmp_path / "a.tif")
    row = {"path": str(path), "mpp_x": "0.5", "mpp_y": "0.5", "width": "2400", "height": "2000"}
    open_checked(row).close()
    with pytest.raises(SlideError, match=r"but 999 x 2000 px when it was checked"):
        open_checked(row | {"width": "999"})


def test_transparent_pixels_show_the_background():
    from isoslide.openslide_fast import on_background

    rgba = np.array([[[10, 20, 30, 255], [0, 0, 0, 0], [100, 100, 100, 128]]], np.uint8)
    out = np.empty((1, 3, 3), np.uint8)
    on_background(rgba, (255, 255, 255), out)
    assert out.tolist() == [[[10, 20, 30], [255, 255, 255], [177, 177, 177]]]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_with_a_scale_from_the_sheet(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path)
    with pytest.raises(SlideError, match="no_mpp"):
        Slide(path)
    with Slide(path, (0.5, 0.5)) as slide:
        assert slide.size_um == (60, 45)
        found = slide.read(np.array([[0.5, 0, -5], [0, 0.5, 0]]), (130, 90))
        assert (found[:, :10] == 255).all()
        np.testing.assert_array_equal(found[:, 10:], np.asarray(Image.open(path)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SlideError, match="unreadable"):
        Slide(path, (0.5, 0.5))


def test_a_picture_too_large_for_pil_is_named(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SlideError, match="must be a tiled TIFF: convert it"):
        Slide(tmp_path / "a.png", (0.5, 0.5))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SlideError, match="unreadable: no right to read"):
        Slide(RESOURCE)


def test_a_mrxs_file_without_its_folder_is_named(tmp_path):
    (tmp_path / "case 1.mrxs").write_bytes(b"x")
    with pytest.raises(SlideError, match=r"needs the folder case 1 beside it"):
        Slide(tmp_path / "case 1.mrxs")


@pytest.mark.parametrize("edge", [(-40, -40), (-40, 0), (0, -3)])
def test_a_region_over_the_first_edge_lies_where_it_should(tmp_path, edge):
    """OpenSlide misplaces by a pixel what begins before 0 on a level whose downsample is no whole number."""
    path = synth.slide(tmp_path / "odd.tif", size_px=(2405, 2003), blobs=((300, 250, 260),), noise=0)
    with Slide(path) as slide:
        slide._stored.levels = [None] * len(slide.levels)  # as for a format that only OpenSlide reads
        assert slide.levels[1][1] not in (2, 2.0)
        step = slide.levels[1][1] * 0.5  # µm a pixel of level 1
        over = slide.read(np.array([[step, 0, edge[0] * step], [0, step, edge[1] * step]]), (600, 500))
        inside = slide.read(np.array([[step, 0, 100 * step], [0, step, 100 * step]]), (256, 256))
    x, y = 100 - edge[0], 100 - edge[1]
    same = over[y : y + 256, x : x + 256, 1].astype(np.float32)
    shift_px, _ = cv2.phaseCorrelate(
        same, inside[..., 1].astype(np.float32), cv2.createHanningWindow((256, 256), cv2.CV_32F)
    )
    assert np.hypot(*shift_px) < 0.1
    assert (over[: max(0, -edge[1] - 2)] == 255).all()
