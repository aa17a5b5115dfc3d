"""TIFF files by tifffile: the stored tiles of levels that OpenSlide has found, and images that it does not open.

The second kind is OME-TIFF with sub-resolutions (SubIFDs) and flat TIFF in strips or tiles, 8-bit RGB or grey, of any
compression that imagecodecs knows.
"""

import io
import math
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile
from PIL import ImageCms
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, RESUNIT

from isoslide import jpeg_tiles, openslide_fast
from isoslide.stored_tiles import Layout, StoredLevel, TileError, stored_bytes

STORED_AS_IS = ("aperio", "generic-tiff", "philips")  # vendors whose tiles lie where TIFF says: no overlap, no layers
UNITS_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
SCANNED_MPP = (0.01, 20.0)  # µm/px; image editors write 72 dpi, which is 353, into files of any origin


class TiffError(Exception):
    """A TIFF file that is no slide we can read, and why."""


@dataclass(frozen=True)
class PlainLevel:
    """A level in tiles or strips of any compression, its colours together or in planes of their own."""

    layout: Layout
    page: tifffile.TiffPage
    planes: int
    reductions: tuple[int, ...] = (1,)
    shrinks: bool = False

    def decode(self, file: int, index: int, reduction: int, buffer: np.ndarray | None) -> np.ndarray:
        """Return a tile (h, w, 3) uint8 RGB; less of it at the right and lower edge. Raises TileError."""
        tables = {"jpegtables": self.page.jpegtables} if self.page.jpegtables else {}
        count = self.layout.columns * self.layout.rows
        try:
            parts = []
            for number in range(index, count * self.planes, count):
                data = stored_bytes(file, self.layout, number)
                parts.append(self.page.decode(data, number, **tables)[0][0])
        except (ValueError, RuntimeError, zlib.error) as error:
            name = COMPRESSION(self.page.compression).name
            raise TileError(index, f"a damaged tile, or a codec that is missing, of compression {name}") from error
        if any(part is None for part in parts):
            raise TileError(index, "a tile without content")
        image = np.concatenate(parts, axis=2)
        if image.shape[2] < 3:
            image = np.repeat(image[..., :1], 3, axis=2)
        return np.ascontiguousarray(image[..., :3])


class TiffImage:
    """An open TIFF file with the attributes of an OpenSlide handle that `Slide` uses; its pixels are in `levels`."""

    def __init__(self, levels: list[StoredLevel], properties: dict[str, str], profile: bytes | None):
        self.levels = levels
        self.level_dimensions = tuple(level.layout.size for level in levels)
        self.dimensions = width, height = self.level_dimensions[0]
        self.level_downsamples = tuple((width / w + height / h) / 2 for w, h in self.level_dimensions)
        self.properties = properties
        self._profile = profile

    @property
    def color_profile(self) -> ImageCms.ImageCmsProfile | None:
        """The file's colour profile."""
        return ImageCms.ImageCmsProfile(io.BytesIO(self._profile)) if self._profile else None

    def close(self) -> None:
        """Nothing is held open."""


def of_openslide(path: Path, handle: openslide.OpenSlide) -> list[StoredLevel | None]:
    """Return for each level of a slide how to decode its tiles directly, or None where OpenSlide must read it."""
    vendor = handle.properties.get(openslide.PROPERTY_NAME_VENDOR, "")
    nothing: list[StoredLevel | None] = [None] * handle.level_count
    if vendor not in STORED_AS_IS:
        return nothing
    try:
        with tifffile.TiffFile(path) as tiff:
            levels = [page and _direct(page, tiff) for page in _pages(tiff, vendor, handle.level_dimensions)]
            levels = [
                level and _cropped(level, size) for level, size in zip(levels, handle.level_dimensions, strict=True)
            ]
    except (tifffile.TiffFileError, ValueError, OSError):
        return nothing
    if vendor == "philips":  # of which we have seen no true file
        levels = [level and _checked(level, number, path, handle) for number, level in enumerate(levels)]
    # OpenSlide draws what a coarse Aperio level lacks from the level below
    keep = [vendor != "aperio" or not i or (level and all(level.layout.lengths)) for i, level in enumerate(levels)]
    return [level if kept else None for level, kept in zip(levels, keep, strict=True)]


def _pages(tiff: tifffile.TiffFile, vendor: str, sizes: Sequence[tuple[int, int]]) -> list[tifffile.TiffPage | None]:
    """Return the page of each level: by its size; of Philips, whose pages are padded to whole tiles, by its place."""
    tiled = [page for page in tiff.pages if page.is_tiled]
    if vendor == "philips":
        return list(tiled) if len(tiled) == len(sizes) else [None] * len(sizes)
    pages = {(page.imagewidth, page.imagelength): page for page in reversed(tiled)}
    return [pages.get(size) for size in sizes]


def _cropped(level: StoredLevel, size: tuple[int, int]) -> StoredLevel | None:
    """Return a level without the padding of its page beyond `size`."""
    layout = level.layout
    if layout.size == size:
        return level
    if size[0] > layout.size[0] or size[1] > layout.size[1] or not isinstance(level, jpeg_tiles.JpegLevel):
        return None
    inside = Layout(size, layout.tile, (), ())
    kept = [row * layout.columns + column for row in range(inside.rows) for column in range(inside.columns)]
    offsets, lengths = (tuple(values[i] for i in kept) for values in (layout.offsets, layout.lengths))
    level.layout = replace(inside, offsets=offsets, lengths=lengths)
    return level


def _checked(level: StoredLevel, number: int, path: Path, handle: openslide.OpenSlide) -> StoredLevel | None:
    """Return the level if its middle tile has OpenSlide's pixels."""
    layout = level.layout
    stored = [index for index, length in enumerate(layout.lengths) if length]
    if not stored:
        return None
    row, column = divmod(stored[len(stored) // 2], layout.columns)
    x, y = column * layout.tile[0], row * layout.tile[1]
    seen = np.empty((min(layout.tile[1], layout.size[1] - y), min(layout.tile[0], layout.size[0] - x), 3), np.uint8)
    ratio = handle.level_downsamples[number]
    try:
        with open(path, "rb") as file:
            tile = level.decode(file.fileno(), row * layout.columns + column, 1, None)
        place = (round(x * ratio), round(y * ratio))
        openslide_fast.read(handle, place, number, (seen.shape[1], seen.shape[0]), (255, 255, 255), seen)
    except (TileError, openslide.OpenSlideError):
        return None
    return level if np.array_equal(tile[: seen.shape[0], : seen.shape[1]], seen) else None


def _direct(page: tifffile.TiffPage, tiff: tifffile.TiffFile) -> StoredLevel | None:
    """Return a level whose pixels are OpenSlide's, decoded faster; None where that is not known."""
    if page.compression == COMPRESSION.APERIO_JP2000_RGB and page.dtype == np.uint8 and page.samplesperpixel == 3:
        return _plain(page)
    return _jpeg(page, tiff)


def has_sub_resolutions(path: Path) -> bool:
    """Return whether the first image of a TIFF file keeps its coarser levels in SubIFDs."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.subifds)
    except (tifffile.TiffFileError, ValueError, OSError):
        return False


def open_image(path: Path) -> TiffImage:
    """Open what OpenSlide does not.

    Raises:
        TiffError: no TIFF, or of a kind that is not read here.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first
            _check_readable(first, tiff)
            others = first.pages or [page for page in tiff.pages[1:] if page.is_reduced]
            pages = [first, *(page for page in others if _is_reduction(page, first))]
            pages.sort(key=lambda page: -page.imagewidth)
            levels = [_jpeg(page, tiff) or _plain(page) for page in pages]
            mpp = _ome_mpp(tiff.ome_metadata) if tiff.is_ome else _tag_mpp(first)
            icc = first.tags.valueof("InterColorProfile")
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise TiffError(f"no TIFF file that can be read ({error})") from error
    properties = {openslide.PROPERTY_NAME_VENDOR: "ome-tiff" if tiff.is_ome else "tiff"}
    if mpp:
        properties |= {openslide.PROPERTY_NAME_MPP_X: repr(mpp[0]), openslide.PROPERTY_NAME_MPP_Y: repr(mpp[1])}
    if icc:
        properties["openslide.icc-size"] = str(len(icc))
    return TiffImage(levels, properties, icc)


def _jpeg(page: tifffile.TiffPage, tiff: tifffile.TiffFile) -> jpeg_tiles.JpegLevel | None:
    """Return the level of a page in JPEG tiles that libjpeg-turbo can decode alone, else None."""
    usual = (
        page.is_tiled
        and page.compression == COMPRESSION.JPEG
        and page.planarconfig == PLANARCONFIG.CONTIG
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
    )
    if not usual:
        return None
    layout = _layout(page)
    if len(layout.lengths) != layout.columns * layout.rows:
        return None
    level = jpeg_tiles.JpegLevel(layout, page.jpegtables or b"", page.photometric == PHOTOMETRIC.RGB)
    first = next((i for i, length in enumerate(layout.lengths) if length), None)
    if first is not None:  # a look at one header: sampling that the decoder does not know is OpenSlide's
        tiff.filehandle.seek(layout.offsets[first])
        simplejpeg.decode_jpeg_header(level.stream(tiff.filehandle.read(layout.lengths[first])))
    return level


def _plain(page: tifffile.TiffPage) -> PlainLevel:
    planes = page.samplesperpixel if page.planarconfig == PLANARCONFIG.SEPARATE else 1
    return PlainLevel(_layout(page), page, planes)


def _layout(page: tifffile.TiffPage) -> Layout:
    size = (page.imagewidth, page.imagelength)
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else (size[0], min(page.rowsperstrip, size[1]))
    return Layout(size, tile, tuple(page.dataoffsets), tuple(page.databytecounts))


def _check_readable(page: tifffile.TiffPage, tiff: tifffile.TiffFile) -> None:
    kind = f"{page.bitspersample}-bit {PHOTOMETRIC(page.photometric).name}"
    if page.dtype != np.uint8 or page.photometric not in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.MINISBLACK):
        raise TiffError(f"a TIFF of {kind} px: only 8-bit RGB or grey images are read")
    if page.samplesperpixel == 1 and len(tiff.pages) > 1 and tiff.is_ome:
        raise TiffError(f"an OME-TIFF of {len(tiff.pages)} grey planes, as of fluorescence: only RGB images are read")
    if COMPRESSION(page.compression) not in tifffile.TIFF.DECOMPRESSORS:
        raise TiffError(f"TIFF compression {COMPRESSION(page.compression).name} is not supported")


def _is_reduction(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    ratio = first.imagewidth / page.imagewidth
    alike = page.dtype == first.dtype and page.samplesperpixel == first.samplesperpixel
    return alike and ratio > 1 and abs(first.imagelength / ratio - page.imagelength) <= 2


def _ome_mpp(text: str | None) -> tuple[float, float] | None:
    """Return the µm/px of the first image of an OME-XML text."""
    try:
        root = ElementTree.fromstring(text or "")
    except ElementTree.ParseError:
        return None
    pixels = next((item for item in root.iter() if item.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    factors = [UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan) for axis in "XY"]
    sizes = [float(pixels.get(f"PhysicalSize{axis}", "nan")) for axis in "XY"]
    mpp = (sizes[0] * factors[0], sizes[1] * factors[1])
    return mpp if all(math.isfinite(value) for value in mpp) else None


def _tag_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    if page.resolutionunit not in (RESUNIT.CENTIMETER, RESUNIT.INCH) or "XResolution" not in page.tags:
        return None
    per_um = page.get_resolution(RESUNIT.MICROMETER)
    if not all(per_um):
        return None
    mpp = (1 / per_um[0], 1 / per_um[1])
    return mpp if all(SCANNED_MPP[0] <= value <= SCANNED_MPP[1] for value in mpp) else None
