"""Formats of which no slide is at hand, made as OpenSlide wants them: NDPI, MRXS, SCN, BIF, Philips, Trestle."""

import numpy as np
import openslide
import pytest
import stages
import vendor_slides

from isoslide import openslide_fast
from isoslide.slide import Slide

MPP = 0.25
SIDE = 1024
KINDS = {
    "ndpi": vendor_slides.ndpi,
    "mrxs": vendor_slides.mrxs,
    "scn": vendor_slides.scn,
    "bif": vendor_slides.bif,
    "philips.tiff": vendor_slides.philips,
    "trestle.tif": vendor_slides.trestle,
}
VENDORS = {"ndpi": "hamamatsu", "mrxs": "mirax", "scn": "leica", "bif": "ventana"}
ORIGIN = {"scn": (128, 512)}  # where the image begins in the slide, px


@pytest.fixture(scope="module")
def tissue(request):
    with openslide.OpenSlide(request.config.rootpath / "resources/CMU-1-Small-Region.svs") as slide:
        return np.asarray(slide.read_region((300, 300), 0, (SIDE, SIDE)).convert("RGB"))


@pytest.fixture(params=KINDS)
def made(request, tmp_path, tissue):
    return request.param, KINDS[request.param](tmp_path / f"slide.{request.param}", tissue, MPP)


def by_openslide(path, place, side):
    """What OpenSlide's own Python path gives, laid over white or the slide's background."""
    with openslide.OpenSlide(path) as handle:
        colour = bytes.fromhex(handle.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff"))
        rgba = np.asarray(handle.read_region(place, 0, (side, side))).astype(float)
    weight = rgba[..., 3:] / 255
    return np.round(rgba[..., :3] * weight + np.frombuffer(colour, np.uint8) * (1 - weight))


def test_scale_and_size_are_those_of_the_file(made):
    kind, path = made
    with Slide(path) as slide:
        assert slide.mpp == pytest.approx((MPP, MPP))
        assert slide.properties[openslide.PROPERTY_NAME_VENDOR] == VENDORS.get(kind, kind.partition(".")[0])
        assert slide.size == ((2 * SIDE,) * 2 if kind == "scn" else (SIDE, SIDE))


@pytest.mark.parametrize("place", [(0, 0), (301, 499), (-40, -60), (900, 950)], ids=str)
def test_pixels_are_openslides(made, place):
    kind, path = made
    x, y = np.add(place, ORIGIN.get(kind, (0, 0)))
    with Slide(path) as slide:
        tile = slide.read(np.array([[MPP, 0, x * MPP], [0, MPP, y * MPP]]), (200, 200))
    np.testing.assert_array_equal(tile, by_openslide(path, (int(x), int(y)), 200))


def test_pixels_are_those_that_were_written(made, tissue):
    """In their place, and in the right colours; JPEG of quality 90 is off by 1 to 3 grey levels in the mean."""
    kind, path = made
    x, y = ORIGIN.get(kind, (0, 0))
    with Slide(path) as slide:
        image = slide.read(np.array([[MPP, 0, x * MPP], [0, MPP, y * MPP]]), (SIDE, SIDE)).astype(float)
        half = slide.read(np.array([[2 * MPP, 0, x * MPP], [0, 2 * MPP, y * MPP]]), (SIDE // 2,) * 2)
        overview = slide.overview(4 * MPP)
    limit = 0 if kind == "mrxs" else 3.5
    assert np.abs(image - tissue).mean() <= limit
    mean = tissue.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - mean).mean() <= max(limit, 0.5)
    seen = overview[y // 4 :, x // 4 :][: SIDE // 4, : SIDE // 4]
    assert np.abs(seen.astype(float) - vendor_slides.quarter(tissue)).mean() <= 5


def test_what_was_never_scanned_is_background(tmp_path, tissue):
    scn = vendor_slides.scn(tmp_path / "a.scn", tissue, MPP)
    mrxs = vendor_slides.mrxs(tmp_path / "b.mrxs", tissue, MPP, missing=(5,))
    for path, (x, y) in ((scn, (0, 0)), (scn, (1400, 600)), (mrxs, (256, 256))):
        with Slide(path) as slide:
            assert (slide.read(np.array([[MPP, 0, x * MPP], [0, MPP, y * MPP]]), (100, 100)) == 255).all()


def test_overlapping_tiles_of_bif_are_put_together(tmp_path, tissue):
    """Tiles that hold the same 16 px of tissue give the picture that they were cut from."""
    step, n = vendor_slides.TILE - 16, 4
    cut = [
        [tissue[y * step :, x * step :][: vendor_slides.TILE, : vendor_slides.TILE] for x in range(n)] for y in range(n)
    ]
    image = np.concatenate([np.concatenate(row, axis=1) for row in cut])
    with Slide(vendor_slides.bif(tmp_path / "a.bif", image, MPP, overlap=16)) as slide:
        side = 3 * step + vendor_slides.TILE
        assert slide.size == (side, side)
        found = slide.overview(MPP)
    assert np.abs(found.astype(float) - tissue[:side, :side]).mean() < 3.5


def test_philips_is_read_straight_and_without_its_padding(tmp_path, tissue):
    """The second level of 1,536 px is 384 px in two tiles, of which 128 px are padding."""
    image = np.tile(tissue, (2, 2, 1))[:1536, :1536]
    path = vendor_slides.philips(tmp_path / "a.tiff", image, MPP)
    affine = np.array([[4 * MPP, 0, 200 * MPP * 4], [0, 4 * MPP, 100 * MPP * 4]])
    with Slide(path) as slide, Slide(path) as other:
        other.read_through_openslide()
        assert all(level is not None for level in slide._stored.levels)
        assert slide._stored.levels[1].layout.size == (384, 384)
        np.testing.assert_array_equal(slide.read(affine, (184, 284)), other.read(affine, (184, 284)))
        assert (slide.read(affine, (300, 300))[:, 184:] == 255).all()
        np.testing.assert_array_equal(slide.overview(MPP), other.overview(MPP))


def test_philips_is_left_to_openslide_where_a_tile_has_other_pixels(tmp_path, tissue, monkeypatch):
    path = vendor_slides.philips(tmp_path / "a.tiff", tissue, MPP)
    read = openslide_fast.read

    def other(handle, place, level, size, background, out):
        read(handle, place, level, size, background, out)
        if level == 0:
            out[-1, -1, -1] ^= 1

    monkeypatch.setattr(openslide_fast, "read", other)
    with Slide(path) as slide:
        assert [level is None for level in slide._stored.levels] == [True, False]


def test_every_kind_goes_from_the_sheet_to_tiles(tmp_path, tissue):
    """Complaint G-B2: who reads a format follows from the file; nothing is to be set, for no kind."""
    rows = []
    for kind, write in KINDS.items():
        path = write(tmp_path / f"slide.{kind}", tissue, MPP)
        rows.append({"scan": kind, "path": str(path), "scanner": kind})
    run = stages.Stages(tmp_path, rows)
    assert (run.checks()["status"] == "ok").all()
    assert (run.tissue()["status"] == "ok").all()
    tiles = run.tiles(view={"tile_px": 128, "mpp": 0.5})
    counts = tiles["n_tiles"].astype(int)
    assert (counts >= 6).all()
    assert counts.max() - counts.min() <= 2  # the same 256 x 256 µm, on grids that begin elsewhere


def test_a_mrxs_that_lacks_data_is_told_from_one_that_lacks_its_scale(tmp_path, tissue):
    """Complaint G-B1."""
    good, broken, unscaled = (vendor_slides.mrxs(tmp_path / f"{name}.mrxs", tissue, MPP) for name in "abc")
    (broken.with_suffix("") / "Data0000.dat").unlink()
    settings = unscaled.with_suffix("") / "Slidedat.ini"
    settings.write_text(settings.read_text().replace(f"= {MPP}\n", "= 0\n"))
    run = stages.Stages(
        tmp_path, [{"scan": path.stem, "path": str(path), "scanner": "A"} for path in (good, broken, unscaled)]
    )
    checks = run.checks()
    assert checks["status"].to_dict() == {"a": "ok", "b": "unreadable", "c": "no_mpp"}
    assert "Data0000.dat" in checks["reason"]["b"]
