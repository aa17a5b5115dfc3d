"""Levels of a DICOM slide in JPEG frames: where each frame lies in its file, so that it is decoded without OpenSlide.

A DICOM slide is a folder; each level is a file of its own. Read here: one optical path and focal plane, frames in the
order of the grid (TILED_FULL), each frame one fragment of 8-bit baseline JPEG in YCbCr. All else is left to OpenSlide.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import openslide
import pydicom
import simplejpeg
from pydicom.errors import InvalidDicomError
from pydicom.uid import JPEGBaseline8Bit

from isoslide.jpeg_tiles import JpegLevel
from isoslide.stored_tiles import Layout, StoredLevel

ITEM, DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # tags as little-endian words: of a fragment, and of the end of all
UNKNOWN_LENGTH = 0xFFFFFFFF


def of_openslide(path: Path, handle: openslide.OpenSlide) -> list[StoredLevel | None]:
    """Return for each level of a DICOM slide how to decode its frames directly, or None where OpenSlide must read it.

    Args:
        path: one of the slide's files.
        handle: the slide as OpenSlide has opened it.
    """
    levels: dict[tuple[int, int], StoredLevel] = {}
    series = handle.properties.get("dicom.SeriesInstanceUID")
    for name in sorted(path.parent.iterdir()):
        try:
            level = _level(name, series)
        except (InvalidDicomError, OSError, ValueError, struct.error):  # no DICOM file, or none that is whole
            continue
        if level is not None:
            levels[level.layout.size] = level
    return [levels.get(size) for size in handle.level_dimensions]


def _level(path: Path, series: str | None) -> StoredLevel | None:
    with open(path, "rb") as file:
        head = pydicom.dcmread(file, stop_before_pixels=True)
        if head.get("SeriesInstanceUID") != series or not _is_plain(head):
            return None
        size = (head.TotalPixelMatrixColumns, head.TotalPixelMatrixRows)
        frames = _fragments(file)
        layout = Layout(size, (head.Columns, head.Rows), *zip(*frames, strict=True), path)
        if len(frames) != layout.columns * layout.rows or len(frames) != int(head.NumberOfFrames):
            return None
        level = JpegLevel(layout, b"", is_rgb=False)
        file.seek(layout.offsets[0])
        simplejpeg.decode_jpeg_header(level.stream(file.read(layout.lengths[0])))
    return level


def _is_plain(head: pydicom.Dataset) -> bool:
    """Return whether a file holds one whole level of the kind that is read here."""
    return (
        head.file_meta.get("TransferSyntaxUID") == JPEGBaseline8Bit
        and "VOLUME" in head.get("ImageType", ())
        and head.get("DimensionOrganizationType") == "TILED_FULL"
        and str(head.get("PhotometricInterpretation")).startswith("YBR_FULL")
        and head.get("SamplesPerPixel") == 3
        and head.get("BitsAllocated") == 8
        and int(head.get("NumberOfOpticalPaths", 1)) == 1
        and int(head.get("TotalPixelMatrixFocalPlanes", 1)) == 1
        and "ConcatenationUID" not in head
    )


def _fragments(file: BinaryIO) -> list[tuple[int, int]]:
    """Return offset and length of every fragment of the pixel data, which the file stands before.

    Raises:
        ValueError: the pixel data are not in fragments.
        struct.error: the file ends before they do.
    """
    _, _, length = struct.unpack("<I4sI", file.read(12))
    tag, table = struct.unpack("<II", file.read(8))
    if length != UNKNOWN_LENGTH or tag != ITEM:
        raise ValueError("pixel data without fragments")
    place = file.tell() + table  # behind the table of offsets, which may be empty
    found = []
    while True:
        file.seek(place)
        tag, length = struct.unpack("<II", file.read(8))
        if tag == DELIMITER:
            return found
        if tag != ITEM:
            raise ValueError("a fragment does not end where it says")
        found.append((place + 8, length))
        place += 8 + length
