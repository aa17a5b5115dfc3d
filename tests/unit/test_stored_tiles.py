"""Direct reading of stored JPEG tiles, against OpenSlide's reading of the same files."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile

from isoslide import jpeg_tiles
from isoslide.slide import Reading, Slide, SlideError

RESOURCE = Path(__file__).resolve().parents[2] / "resources/CMU-1-Small-Region.svs"
MPP = 0.5
EXACT = Reading(downsampling="exact")


@pytest.fixture(scope="module")
def tissue():
    """Real tissue, 1,330 x 1,170 px: no multiple of any tile size."""
    with openslide.OpenSlide(RESOURCE) as slide:
        return np.asarray(slide.read_region((300, 800), 0, (1330, 1170)).convert("RGB"))


def encode(image, tile=256, subsampling="420"):
    """Return the JPEG streams of the tiles of an image, row by row; those at the edge are filled up."""
    h, w = image.shape[:2]
    image = np.pad(image, ((0, -h % tile), (0, -w % tile), (0, 0)), mode="edge")
    corners = [(y, x) for y in range(0, h, tile) for x in range(0, w, tile)]
    parts = [np.ascontiguousarray(image[y : y + tile, x : x + tile]) for y, x in corners]
    return [simplejpeg.encode_jpeg(part, 80, colorsubsampling=subsampling) for part in parts]


def write(path, image, tile=256, subsampling="420", aperio=False):
    """A tiled JPEG TIFF of one level, as an Aperio file if asked."""
    return write_streams(path, encode(image, tile, subsampling), image.shape[1::-1], tile, subsampling, aperio)


def write_streams(path, streams, size, tile=256, subsampling="420", aperio=False):
    """A tiled TIFF of given JPEG streams, row by row; empty where no tile is stored."""
    name = f"Aperio Image Library v12\r\n{size[0]}x{size[1]} ({tile}x{tile}) JPEG/RGB Q=80|MPP = {MPP}"
    tifffile.imwrite(
        path,
        iter(streams),
        shape=(size[1], size[0], 3),
        dtype=np.uint8,
        tile=(tile, tile),
        photometric="ycbcr",
        subsampling={"420": (2, 2), "422": (2, 1), "444": (1, 1)}[subsampling],
        compression="jpeg",
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        description=name if aperio else None,
        metadata=None,
    )
    return path


def whole(slide):
    affine = np.array([[slide.mpp[0], 0, 0], [0, slide.mpp[1], 0]])
    return slide.read(affine, slide.size)


def by_openslide(path):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def grid(side_um, columns, rows, tile_px=256):
    scale = side_um / tile_px
    return np.array([[[scale, 0, x * side_um], [0, scale, y * side_um]] for y in range(rows) for x in range(columns)])


@pytest.mark.parametrize("tile", [240, 256, 512])
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize("aperio", [False, True])
def test_pixels_are_openslides(tmp_path, tissue, tile, subsampling, aperio):
    path = write(tmp_path / "a.tif", tissue, tile, subsampling, aperio)
    with Slide(path) as slide:
        assert slide.properties["openslide.vendor"] == ("aperio" if aperio else "generic-tiff")
        assert isinstance(slide._stored.levels[0], jpeg_tiles.JpegLevel)
        np.testing.assert_array_equal(whole(slide), by_openslide(path))


def test_pixels_of_a_real_file_are_openslides():
    """Its tables are apart, its components are RGB, and nothing in the JPEG streams says so."""
    with Slide(RESOURCE) as slide:
        assert isinstance(slide._stored.levels[0], jpeg_tiles.JpegLevel)
        np.testing.assert_array_equal(whole(slide), by_openslide(RESOURCE))


def test_real_pyramids(shared):
    for path in sorted((shared / "data/scanner-pairs/os2-ki67-2-scanners").glob("*.tiff")):
        with Slide(path) as slide, openslide.OpenSlide(path) as other:
            for level, (size, _) in enumerate(slide.levels):
                image = np.empty((size[1], size[0], 3), np.uint8)
                slide._stored.read(level, 1, np.zeros((1, 2), int), [image], (255, 255, 255))
                expected = np.asarray(other.read_region((0, 0), level, size).convert("RGB"))
                np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("factor", "least"), [(2, 44), (4, 45), (8, 45)])
@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
def test_the_decoders_reduction_is_near_the_area_mean(tmp_path, tissue, factor, least, subsampling):
    path = write(tmp_path / "a.tif", tissue, subsampling=subsampling)
    affine, size = np.array([[MPP * factor, 0, 0], [0, MPP * factor, 0]]), (1024 // factor, 1024 // factor)
    with Slide(path) as fast, Slide(path, reading=EXACT) as exact:
        mean = by_openslide(path)[:1024, :1024].reshape(size[1], factor, size[0], factor, 3).mean(axis=(1, 3))
        assert np.abs(exact.read(affine, size) - mean).max() <= 0.5 + 1e-9
        error = fast.read(affine, size) - mean
        assert 10 * np.log10(255**2 / (error**2).mean()) > least


def test_off_the_pixel_grid_each_output_pixel_keeps_two_samples(tmp_path, tissue):
    """A reduction and a bilinear step after it would blur the tiles of registered scans and not those of others."""
    path = write(tmp_path / "a.tif", tissue)
    affine = np.array([[MPP * 2, 0, 10.1], [0, MPP * 2, 20.2]])
    with Slide(path) as fast, Slide(path, reading=EXACT) as exact:
        np.testing.assert_array_equal(fast.read(affine, (200, 200)), exact.read(affine, (200, 200)))


@pytest.mark.parametrize("reading", [Reading(), EXACT])
@pytest.mark.parametrize("step", [1, 2])
def test_each_stored_tile_is_decoded_once(tmp_path, tissue, monkeypatch, step, reading):
    path = write(tmp_path / "a.tif", tissue, tile=240)
    count, decode = [], jpeg_tiles.JpegLevel.decode
    monkeypatch.setattr(jpeg_tiles.JpegLevel, "decode", lambda self, *a: count.append(a[1]) or decode(self, *a))
    affines = grid(128 * MPP * step, 10 // step, 9 // step, tile_px=128)
    with Slide(path, reading=reading) as slide:
        first, rest = slide.read_tiles(affines[:7], 128), slide.read_tiles(affines[7:], 128)
        assert sorted(count) == sorted(set(count))
        assert len(count) == 6 * 5
        one_by_one = [slide.read(affine, (128, 128)) for affine in affines]
    np.testing.assert_array_equal(np.concatenate([first, rest]), one_by_one)


def test_a_small_cache_only_costs_time(tmp_path, tissue, monkeypatch):
    path = write(tmp_path / "a.tif", tissue)
    affines = grid(100 * MPP, 13, 11, tile_px=100)
    with Slide(path) as slide:
        expected = slide.read_tiles(affines, 100)
        monkeypatch.setattr("isoslide.stored_tiles.CACHE_BYTES", 1)
        slide._stored._cache.__init__()
        np.testing.assert_array_equal([slide.read(affine, (100, 100)) for affine in affines], expected)
        assert len(slide._stored._cache._arrays) == 1


def test_threads_read_the_same(tmp_path, tissue):
    path = write(tmp_path / "a.tif", tissue)
    affines = np.tile(grid(100 * MPP, 13, 11, tile_px=100), (3, 1, 1))
    with Slide(path) as slide, ThreadPoolExecutor(4) as pool:
        expected = slide.read_tiles(affines[:143], 100)
        images = list(pool.map(lambda affine: slide.read(affine, (100, 100)), affines))
    np.testing.assert_array_equal(images, np.tile(expected, (3, 1, 1, 1)))


def test_a_tile_that_is_not_stored_shows_the_background(tmp_path, tissue):
    parts = encode(tissue[:512, :768])
    parts[1] = b""
    path = write_streams(tmp_path / "a.tif", parts, (768, 512))
    with Slide(path) as slide, openslide.OpenSlide(path) as other:
        assert 0 in slide._stored.levels[0].layout.lengths
        image = whole(slide)
        region = np.asarray(other.read_region((0, 0), 0, (768, 512)))
        assert (image[:256, 256:512] == 255).all()
        assert (region[:256, 256:512, 3] == 0).all()
        opaque = region[..., 3] == 255
        np.testing.assert_array_equal(image[opaque], region[opaque, :3])


def zero_middle(stream):
    return stream[: len(stream) // 2] + bytes(500) + stream[len(stream) // 2 + 500 :]


def noise_middle(stream):
    noise = np.random.default_rng(3).integers(0, 256, 300, np.uint8).tobytes()
    return stream[: len(stream) // 2] + noise + stream[len(stream) // 2 + 300 :]


@pytest.mark.parametrize(
    "damage",
    [
        zero_middle,
        noise_middle,
        lambda stream: bytes(len(stream)),
        lambda stream: stream[: len(stream) * 2 // 3],
        lambda stream: stream[:100],
        lambda stream: b"\xff\xd8\xff\xd9",
        lambda stream: simplejpeg.encode_jpeg(np.zeros((512, 512, 3), np.uint8)),
        lambda stream: simplejpeg.encode_jpeg(np.zeros((256, 256, 1), np.uint8), colorspace="GRAY")[:-40],
    ],
    ids=["zeros", "noise", "all zero", "cut off", "header only", "empty", "other size", "grey, cut off"],
)
@pytest.mark.parametrize("step", [1, 2])
def test_a_damaged_tile_is_an_error_with_its_place(tmp_path, tissue, damage, step):
    parts = encode(tissue[:512, :768])
    parts[4] = damage(parts[4])
    path = write_streams(tmp_path / "a.tif", parts, (768, 512))
    with Slide(path) as slide:
        with pytest.raises(SlideError, match=r"level 0, level-0 px \(256, 256\), 256 x 256 px") as error:
            slide.read(np.array([[MPP * step, 0, 0], [0, MPP * step, 0]]), (768 // step, 512 // step))
        assert error.value.status == "partly_unreadable"
        affine = np.array([[MPP, 0, 0], [0, MPP, 0]])
        np.testing.assert_array_equal(slide.read(affine, (256, 512)), tissue_of(parts, 0, 3))


def tissue_of(parts, *indices):
    return np.concatenate([simplejpeg.decode_jpeg(parts[index]) for index in indices])


def test_a_truncated_file_is_an_error_where_its_bytes_end(tmp_path, tissue):
    path = write_streams(tmp_path / "a.tif", encode(tissue[:512, :768]), (768, 512))
    with Slide(path) as slide:
        os.truncate(path, slide._stored.levels[0].layout.offsets[5] + 10)
        with pytest.raises(SlideError, match=r"the file ends .* level-0 px \(512, 256\)"):
            whole(slide)


def test_a_tile_without_end_marker_is_whole(tmp_path, tissue):
    parts = encode(tissue[:512, :768])
    path = write_streams(tmp_path / "a.tif", [*parts[:2], parts[2][:-2], *parts[3:]], (768, 512))
    with Slide(path) as slide:
        np.testing.assert_array_equal(whole(slide)[:256, 512:], simplejpeg.decode_jpeg(parts[2]))


def test_what_the_stream_says_of_colour_does_not_count():
    """TIFF's tag decides, as in OpenSlide: JFIF and Adobe segments go."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    stream = simplejpeg.encode_jpeg(image, 90, colorsubsampling="444")
    assert stream[2:4] == b"\xff\xe0"
    found = jpeg_tiles.header(stream)
    assert found.size == (64, 64)
    assert stream[found.length : found.length + 2] == b"\xff\xda"
    assert b"JFIF" not in found.kept
    with pytest.raises(ValueError, match="start marker"):
        jpeg_tiles.header(b"II*\0")
