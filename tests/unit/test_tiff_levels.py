"""TIFF files that OpenSlide does not open, or not as the pyramid they are."""

import numpy as np
import pytest
import tifffile

from isoslide import jpeg_tiles, tiff_levels
from isoslide.slide import Slide, SlideError

MPP = 0.25


@pytest.fixture(scope="module")
def image():
    x, y = np.meshgrid(np.arange(700), np.arange(600))
    channels = [x * y // 50, 3 * x + y, 255 - x // 3]
    return np.stack([channel % 256 for channel in channels], axis=2).astype(np.uint8)


def write_ome(path, image, planar=False, levels=2, **options):
    """An OME-TIFF whose coarser levels are SubIFDs."""
    unit = {f"PhysicalSize{axis}": 250 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
    shape = {"planarconfig": "separate"} if planar else {"planarconfig": "contig"}
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            part = image[:: 2**level, :: 2**level]
            part = np.moveaxis(part, 2, 0) if planar else part
            more = {"subifds": levels - 1, "metadata": unit | {"axes": "CYX" if planar else "YXS"}}
            file.write(
                part,
                tile=(128, 256),
                photometric="rgb",
                **shape,
                **(more if not level else {"subfiletype": 1, "metadata": None}),
                **options,
            )
    return path


def whole(slide, step=1):
    affine = np.array([[MPP * step, 0, 0], [0, MPP * step, 0]])
    return slide.read(affine, (slide.size[0] // step, slide.size[1] // step))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg2000", None])
def test_ome_tiff_with_sub_resolutions(tmp_path, image, planar, compression):
    options = {"compressionargs": {"reversible": True}} if compression == "jpeg2000" else {}
    path = write_ome(tmp_path / "a.ome.tif", image, planar, compression=compression, **options)
    with Slide(path) as slide:
        assert slide.mpp == (MPP, MPP)
        assert [size for size, _ in slide.levels] == [(700, 600), (350, 300)]
        assert slide.properties["openslide.vendor"] == "ome-tiff"
        np.testing.assert_array_equal(whole(slide), image)
        np.testing.assert_array_equal(whole(slide, 2), image[::2, ::2])  # the level, not a mean
        outside = slide.read(np.array([[MPP, 0, -5], [0, MPP, -5]]), (30, 30))
        assert (outside[:20] == 255).all()
        np.testing.assert_array_equal(outside[20:, 20:], image[:10, :10])


def test_ome_tiff_in_jpeg_tiles_is_decoded_directly(tmp_path, image):
    path = write_ome(tmp_path / "a.ome.tif", image, compression="jpeg", compressionargs={"level": 95})
    with Slide(path) as slide:
        assert all(isinstance(level, jpeg_tiles.JpegLevel) for level in slide._stored.levels)
        np.testing.assert_array_equal(whole(slide), tifffile.imread(path))


@pytest.mark.parametrize("kind", ["strips", "one strip", "tiles", "grey"])
def test_flat_tiff(tmp_path, image, kind):
    source = image[..., 0] if kind == "grey" else image
    options = {"tiles": {"tile": (64, 64)}, "one strip": {"rowsperstrip": 600}}.get(kind, {"rowsperstrip": 37})
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        source,
        photometric="minisblack" if kind == "grey" else "rgb",
        compression="lzw",
        resolution=(1e4 / MPP, 1e4 / MPP),
        resolutionunit="CENTIMETER",
        **options,
    )
    with Slide(path) as slide:
        assert slide.mpp == pytest.approx((MPP, MPP))
        np.testing.assert_array_equal(whole(slide), np.broadcast_to(source.reshape(600, 700, -1), (600, 700, 3)))


def test_dots_per_inch_of_an_image_editor_are_no_scale(tmp_path, image):
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=50, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(SlideError, match="no_mpp"):
        Slide(tmp_path / "a.tif")
    with Slide(tmp_path / "a.tif", (MPP, MPP)) as slide:
        np.testing.assert_array_equal(whole(slide), image)


def test_what_is_not_read_is_named(tmp_path, image):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image.astype(np.uint16), photometric="rgb", rowsperstrip=50)
    with pytest.raises(SlideError, match="unsupported_codec: a TIFF of 16-bit RGB px"):
        Slide(path)
    tifffile.imwrite(path, np.moveaxis(image, 2, 0), photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(SlideError, match="3 grey planes, as of fluorescence"):
        Slide(path)
    tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=50)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["Compression"].valueoffset
    data[place : place + 2] = (34661).to_bytes(2, "little")  # JBIG
    path.write_bytes(data)
    with pytest.raises(SlideError, match="unsupported_codec: TIFF compression JBIG is not supported"):
        Slide(path)


def test_damage_in_a_compressed_strip_has_its_place(tmp_path, image):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=100, compression="zlib")
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[3]
    with open(path, "r+b") as file:
        file.seek(start + 20)
        file.write(bytes(40))
    with Slide(path, (MPP, MPP)) as slide:
        with pytest.raises(SlideError, match=r"compression ADOBE_DEFLATE at level 0, level-0 px \(0, 300\)") as error:
            whole(slide)
        assert error.value.status == "partly_unreadable"


def test_a_coarse_aperio_level_that_lacks_tiles_is_openslides(tmp_path, image):
    """OpenSlide fills them from the level below; a level that is whole is read directly."""
    import simplejpeg

    def streams(part, missing=None):
        for index in range(part.shape[0] // 128 * (part.shape[1] // 128)):
            row, column = divmod(index, part.shape[1] // 128)
            tile = part[row * 128 :, column * 128 :][:128, :128]
            yield b"" if index == missing else simplejpeg.encode_jpeg(np.ascontiguousarray(tile))

    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        for step, missing in ((1, None), (2, 1)):
            part = image[:512:step, :512:step]
            file.write(
                streams(part, missing),
                shape=part.shape,
                dtype=np.uint8,
                tile=(128, 128),
                photometric="ycbcr",
                subsampling=(1, 1),
                compression="jpeg",
                description="Aperio Image Library v12\r\n512x512 (128x128) JPEG/RGB Q=80|MPP = 0.25",
                metadata=None,
            )
    with Slide(path) as slide:
        assert len(slide.levels) == 2
        assert isinstance(slide._stored.levels[0], jpeg_tiles.JpegLevel)
        assert slide._stored.levels[1] is None
        assert whole(slide, 2).std() > 10


def test_ome_xml_without_a_scale():
    assert tiff_levels._ome_mpp(None) is None
    assert tiff_levels._ome_mpp("<broken") is None
    assert tiff_levels._ome_mpp('<OME xmlns="u"><Pixels PhysicalSizeX="1"/></OME>') is None


def test_jpeg_2000_of_a_scanner_equals_openslide(shared):
    with Slide(shared / "data/slides/tcga-cr-7395-01a-01-ts1.svs", (1.0, 1.0)) as slide:
        assert all(isinstance(level, tiff_levels.PlainLevel) for level in slide._stored.levels)
        found = {}
        for way in ("direct", "openslide"):
            found[way] = [
                slide.read(np.array([[1.0, 0, x], [0, 1.0, y]]), (300, 300)) for x, y in ((40, 900), (4300, 3400))
            ]
            slide.read_through_openslide()
    np.testing.assert_array_equal(found["direct"], found["openslide"])
