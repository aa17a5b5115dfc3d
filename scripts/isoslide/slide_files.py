"""Opening slide files: by OpenSlide, as TIFF that OpenSlide leaves out, or as a picture; what is wrong is named."""

import os
from pathlib import Path

import openslide
from openslide import OpenSlideError, OpenSlideUnsupportedFormatError
from PIL import Image, UnidentifiedImageError

from isoslide import dicom_levels, stored_tiles, tiff_levels

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CODEC_WORDS = ("compression", "transfer syntax", "photometric", "8-bit")
OPENSLIDE_CACHE = 128 * 2**20  # bytes; its own 32 MB hold less than a row of tiles of a wide slide


class SlideError(Exception):
    """A slide, or a part of it, cannot be used. The one error that batch jobs turn into a status row."""

    def __init__(self, status: str, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


def slide_file(path: Path) -> Path:
    """Return the file to open: the path itself, or of a DICOM folder the largest file, which is of level 0."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.dcm"), key=lambda file: (-file.stat().st_size, file.name))
    if not files:
        raise SlideError("unreadable", "a folder without .dcm files: name the slide's file")
    return files[0]


def open_file(path: Path) -> openslide.AbstractSlide | tiff_levels.TiffImage:
    """Open a slide file, or a folder of DICOM files.

    Raises:
        SlideError: `missing`, `unreadable` or `unsupported_codec`.
    """
    if not os.path.exists(path):  # also where a folder may not be entered
        raise SlideError("missing", f"no file {path}")
    companion = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not companion.is_dir():
        raise SlideError("unreadable", f"a .mrxs file needs the folder {companion.name} beside it: copy that too")
    file = slide_file(path)
    if not os.access(file, os.R_OK):
        raise SlideError("unreadable", f"no right to read {file}")
    try:
        handle = openslide.OpenSlide(file)
    except OpenSlideUnsupportedFormatError:
        return _open_image(file)
    except OpenSlideError as error:
        if "TIFF compression" in str(error):
            return _open_image(file)
        raise SlideError(_status(str(error)), str(error)) from error
    generic = handle.properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff"
    if generic and tiff_levels.has_sub_resolutions(file):  # which OpenSlide would not use
        handle.close()
        return _open_image(file)
    handle.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE))
    return handle


def _open_image(path: Path) -> openslide.ImageSlide | tiff_levels.TiffImage:
    """Open a file that is no slide of OpenSlide's."""
    with open(path, "rb") as file:
        is_tiff = file.read(4) in TIFF_STARTS
    try:
        if is_tiff:
            return tiff_levels.open_image(path)
        image = Image.open(path)
    except tiff_levels.TiffError as error:
        raise SlideError(_status(str(error)), str(error)) from error
    except UnidentifiedImageError as error:
        raise SlideError("unreadable", "a format that OpenSlide does not know, or a damaged header") from error
    except Image.DecompressionBombError as error:
        reason = "an image of this size must be a tiled TIFF: convert it"
        raise SlideError("unreadable", f"{error}: {reason}") from error
    try:
        image.load()  # once, before threads come
    except (OSError, SyntaxError) as error:  # PIL's word for a broken PNG
        image.close()
        raise SlideError("unreadable", str(error)) from error
    return _Picture(image)


class _Picture(openslide.ImageSlide):
    """An image that PIL has decoded, and closes with the slide."""

    def __init__(self, image: Image.Image):
        super().__init__(image)
        self._close = True


def _status(message: str) -> str:
    """Name what a reader has refused: a codec is another matter than damage."""
    return "unsupported_codec" if any(word in message.lower() for word in CODEC_WORDS) else "unreadable"


def stored_levels(
    path: Path, handle: openslide.AbstractSlide | tiff_levels.TiffImage
) -> list[stored_tiles.StoredLevel | None]:
    """Return for each level how its tiles are decoded straight from the file, or None where the handle reads it."""
    if isinstance(handle, tiff_levels.TiffImage):
        return handle.levels
    if isinstance(handle, openslide.OpenSlide):
        module = dicom_levels if handle.properties.get(openslide.PROPERTY_NAME_VENDOR) == "dicom" else tiff_levels
        return module.of_openslide(slide_file(path), handle)
    return [None]
