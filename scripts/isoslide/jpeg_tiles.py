"""Tiles stored as JPEG in a TIFF file, decoded by libjpeg-turbo straight from the file's bytes.

TIFF keeps the tables that all tiles share apart from the tiles, and says in its own tag whether the three components
are RGB or YCbCr. Both are put into each tile's stream before it is decoded.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg

from isoslide.stored_tiles import Layout, TileError, stored_bytes

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN, JFIF, ADOBE = 0xDA, 0xE0, 0xEE
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: the segments that say the image's size
TABLES = 0xC4  # segment of Huffman tables
HOLE = bytes(64)  # with usual tables more than a block whose coefficients are all -1, which no picture has
REDUCTIONS = (1, 2, 4, 8)  # what libjpeg decodes to by leaving out high frequencies, each pixel near its area mean


class JpegLevel:
    """A level of three 8-bit components in JPEG tiles.

    Args:
        layout: of its tiles.
        tables: the TIFF tag JPEGTables; may be empty.
        is_rgb: whether the TIFF tag PhotometricInterpretation says RGB, else YCbCr; it alone decides.
    """

    def __init__(self, layout: Layout, tables: bytes, is_rgb: bool):
        self.layout = layout
        self.reductions = tuple(n for n in REDUCTIONS if layout.tile[0] % n == 0 and layout.tile[1] % n == 0)
        # An Adobe segment of version 100 without flags, whose last byte is the transform: 0 none, 1 YCbCr
        colour = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if is_rgb else b"\x01")
        shared = header(tables).kept if tables else b""
        self._start = START + colour + shared
        self.shrinks = True  # not in 4:2:2: colour shrunk unevenly is 38 dB from the area mean, instead of 45 to 55
        # of the tile before, as stored and as decoded: tiles of one encoder share it
        self._header = (START, b"", False)

    def stream(self, data: bytes) -> bytes:
        """Return a stored tile as a JPEG file of its own.

        A missing end marker is added: some writers leave it out, and libjpeg would call the tile damaged. A tile that
        is cut off stays damaged.

        Raises:
            ValueError: not a JPEG stream, not of the level's tile size, or with a hole of zeros, which libjpeg may
                take for picture.
        """
        stored, decoded, is_plain = self._header
        if not decoded or not data.startswith(stored):
            found = header(data)
            if found.size != self.layout.tile:
                raise ValueError(f"its size is {found.size}, not {self.layout.tile}")
            decoded = self._start + found.kept
            self.shrinks = found.is_even
            stored, is_plain = data[: found.length], zeros_are_plain(decoded)
            self._header = stored, decoded, is_plain
        if not is_plain and HOLE in data.rstrip(b"\0"):
            raise ValueError("a hole of zero bytes")
        return b"".join((decoded, data[len(stored) :], b"" if data.endswith(END) else END))

    def decode(self, file: int, index: int, reduction: int, buffer: np.ndarray | None) -> np.ndarray:
        """Return a tile (h, w, 3) uint8 RGB, its sides divided by `reduction`, in the memory of `buffer` if given.

        Raises:
            TileError: damaged, cut off, or not of the level's size. What libjpeg only warns of is damage too.
        """
        data = stored_bytes(file, self.layout, index)
        width, height = self.layout.tile[0] // reduction, self.layout.tile[1] // reduction
        try:
            stream = self.stream(data)
            # The smallest of libjpeg's sizes that is not below this one: as the reduction divides the sides, this one
            return simplejpeg.decode_jpeg(stream, "RGB", min_height=height, min_width=width, buffer=buffer, strict=True)
        except ValueError as error:
            raise TileError(index, f"a damaged JPEG tile ({error})") from error


@dataclass(frozen=True)
class Header:
    """What comes before the scan of a JPEG stream.

    Attributes:
        length: in bytes, as stored.
        kept: the segments but for those on colour space, without start marker.
        size: (w, h), or None in a stream of tables only.
        is_even: whether colour is sampled alike along both sides (4:4:4, 4:2:0).
    """

    length: int
    kept: bytes
    size: tuple[int, int] | None
    is_even: bool


def header(stream: bytes) -> Header:
    """Return the header of a JPEG stream.

    Raises:
        ValueError: not a JPEG stream.
    """
    if stream[:2] != START:
        raise ValueError("no JPEG start marker")
    parts, place, size, is_even = [], 2, None, True
    while place + 4 <= len(stream) and stream[place + 1] not in (SCAN, END[1]):
        if stream[place] != 0xFF:
            raise ValueError("no JPEG marker where one must be")
        marker, following = stream[place + 1], place + 2 + int.from_bytes(stream[place + 2 : place + 4])
        if marker in FRAMES:
            size = (int.from_bytes(stream[place + 7 : place + 9]), int.from_bytes(stream[place + 5 : place + 7]))
            is_even = stream[place + 11] >> 4 == stream[place + 11] & 15
        if marker not in (JFIF, ADOBE):
            parts.append(stream[place:following])
        place = following
    return Header(place, b"".join(parts), size, is_even)


def zeros_are_plain(head: bytes) -> bool:
    """Return whether zero bits mean an even area by the Huffman tables, and so may come in long runs.

    The code of zeros is that of a table's first symbol; symbol 0 of an AC table ends a block.
    """
    place, firsts = 2, []
    while place + 4 <= len(head):
        following = place + 2 + int.from_bytes(head[place + 2 : place + 4])
        table = place + 4
        while head[place + 1] == TABLES and table + 17 < following:
            if head[table] >> 4 == 1:  # AC
                firsts.append(head[table + 17])
            table += 17 + sum(head[table + 1 : table + 17])
        place = following
    return not any(firsts)
