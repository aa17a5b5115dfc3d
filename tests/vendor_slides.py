"""The least that OpenSlide takes for a slide of a vendor: NDPI, MRXS, SCN, BIF, Philips and Trestle TIFF.

Each function writes an image (h, w, 3) uint8 of whole tiles in two levels, the second a quarter, at `mpp` µm per pixel.
"""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

TILE = 256
SCN = """<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection sizeX="{w}" sizeY="{h}"><image>
<creationDate>2026-01-01</creationDate><device model="SCN400" version="1"/>
<pixels sizeX="{px}" sizeY="{py}"><dimension sizeX="{px}" sizeY="{py}" ifd="0"/>
<dimension sizeX="{qx}" sizeY="{qy}" ifd="1"/></pixels>
<view sizeX="{iw}" sizeY="{ih}" offsetX="{ox}" offsetY="{oy}"/><scanSettings>
<objectiveSettings><objective>20</objective>
</objectiveSettings><illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image></collection></scn>"""
BIF = """<EncodeInfo><SlideStitchInfo><ImageInfo AOIScanned="1" Width="{t}" Height="{t}" NumRows="{rows}"
NumCols="{columns}" Pos-X="0" Pos-Y="0">{joints}</ImageInfo></SlideStitchInfo>
<AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>"""
JOINT = '<TileJointInfo Confidence="99" Direction="{}" Tile1="{}" Tile2="{}" OverlapX="{}" OverlapY="{}"/>'
PHILIPS = """<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>
<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>
<Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"</Attribute>
<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>{1}</Array></Attribute>
</DataObject></Array></Attribute></DataObject>"""
SPACING = """<DataObject ObjectType="PixelDataRepresentation">
<Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"</Attribute>
</DataObject>"""
SLIDEDAT = """[GENERAL]
SLIDE_ID = {id}
IMAGENUMBER_X = {columns}
IMAGENUMBER_Y = {rows}
OBJECTIVE_MAGNIFICATION = 20
[HIERARCHICAL]
HIER_COUNT = 1
NONHIER_COUNT = 0
INDEXFILE = Index.dat
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 2
HIER_0_VAL_0_SECTION = L0
HIER_0_VAL_1_SECTION = L1
[DATAFILE]
FILE_COUNT = 1
FILE_0 = Data0000.dat
"""
ZOOM = """[L{i}]
OVERLAP_X = 0
OVERLAP_Y = 0
MICROMETER_PER_PIXEL_X = {mpp}
MICROMETER_PER_PIXEL_Y = {mpp}
IMAGE_FORMAT = PNG
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {t}
DIGITIZER_HEIGHT = {t}
IMAGE_CONCAT_FACTOR = {concat}
"""


def quarter(image: np.ndarray) -> np.ndarray:
    """Return the image at a quarter of its size."""
    return cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def _tiff(path: Path, levels: list[np.ndarray], pages: list[dict], bigtiff: bool = False) -> None:
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for index, (level, page) in enumerate(zip(levels, pages, strict=True)):
            options = {"tile": (TILE, TILE), "compression": "jpeg", "compressionargs": {"level": 90}, "metadata": None}
            options |= {"photometric": "rgb", "subfiletype": 1 if index else 0}
            file.write(level, **(options | page))


def scn(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Leica: one area of a larger slide, so that most of it was never scanned."""
    h, w = image.shape[:2]
    nm = round(mpp * 1000)
    sizes = {"px": w, "py": h, "qx": w // 4, "qy": h // 4, "iw": w * nm, "ih": h * nm}
    place = {"w": 2 * w * nm, "h": 2 * h * nm, "ox": 128 * nm, "oy": 512 * nm}
    scale = [{"resolution": (1e4 / mpp / n, 1e4 / mpp / n), "resolutionunit": "CENTIMETER"} for n in (1, 4)]
    scale[0]["description"] = SCN.format(**sizes, **place)
    _tiff(path, [image, quarter(image)], scale, bigtiff=True)
    return path


def bif(path: Path, image: np.ndarray, mpp: float, overlap: int = 0) -> Path:
    """Ventana: tiles that overlap by so many pixels (0 or a multiple of 4)."""
    rows, columns = (n // TILE for n in image.shape[:2])
    numbers = np.arange(1, rows * columns + 1).reshape(rows, columns)[::-1].copy()  # from below, in a snake
    numbers[::-1][1::2] = numbers[::-1][1::2, ::-1].copy()
    joints = [JOINT.format("RIGHT", a, b, overlap, 0) for row in numbers for a, b in zip(row, row[1:], strict=False)]
    joints += [JOINT.format("UP", a, b, 0, overlap) for c in numbers.T for b, a in zip(c, c[1:], strict=False)]
    scan = f'<iScan Magnification="20" ScanRes="{mpp}"/>'.encode()
    tiles = BIF.format(t=TILE, rows=rows, columns=columns, joints="".join(joints)).encode()
    small = np.zeros((TILE, TILE, 3), np.uint8)
    pages = [
        {
            "description": "Label Image",
            "tile": None,
            "compression": None,
            "extratags": [(700, 1, len(scan), scan, True)],
        },
        {"description": "level=0 mag=20 quality=95", "extratags": [(700, 1, len(tiles), tiles, True)]},
        {"description": "level=1 mag=5 quality=95"},
    ]
    _tiff(path, [small, image, quarter(image)], pages)
    return path


def philips(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Philips TIFF: the second level is padded to whole tiles, with what is no picture."""
    text = PHILIPS.format(mpp / 1000, "".join(SPACING.format(mpp * n / 1000) for n in (1, 4)))
    small = quarter(image)
    pad = [(0, -n % TILE) for n in small.shape[:2]]
    small = np.pad(small, [*pad, (0, 0)], constant_values=90)
    _tiff(path, [image, small], [{"description": text, "software": "Philips DP v1.0"}, {}])
    return path


def trestle(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Trestle TIFF; µm per pixel stand in the resolution tags, and the background colour in the description."""
    text = "Background Color=E6DCF0;Objective Power=20"
    page = {"description": text, "software": "MedScan", "resolution": (mpp, mpp), "resolutionunit": "NONE"}
    _tiff(path, [image, quarter(image)], [page, {}])
    return path


def ndpi(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Hamamatsu: each level one JPEG with restart markers; values of tags have 4 bytes more behind the directory."""
    data, after = bytearray(b"II*\0" + bytes(8)), 4  # where the offset of the next directory goes
    for level, lens in ((image, 20.0), (quarter(image), 5.0)):
        buffer = io.BytesIO()
        Image.fromarray(level).save(buffer, "jpeg", quality=90, subsampling=0, restart_marker_blocks=TILE // 8)
        stream, jpeg = buffer.getvalue(), len(data)
        scan = stream.index(b"\xff\xda")
        start = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
        marks = [i + 2 for i in range(start, len(stream)) if stream[i] == 0xFF and 0xD0 <= stream[i + 1] <= 0xD7]
        data += stream + bytes(-len(stream) % 4)
        starts, resolution = len(data), len(data) + 4 * (1 + len(marks))
        data += struct.pack(f"<{1 + len(marks)}I", start, *marks) + struct.pack("<2I", round(1e4 / mpp * lens / 20), 1)
        h, w = level.shape[:2]
        tags = [(256, 4, 1, w), (257, 4, 1, h), (259, 3, 1, 7), (262, 3, 1, 6), (273, 4, 1, jpeg), (277, 3, 1, 3)]
        tags += [(279, 4, 1, len(stream)), (282, 5, 1, resolution), (283, 5, 1, resolution), (296, 3, 1, 3)]
        tags += [(65420, 4, 1, 1), (65421, 11, 1, struct.unpack("<I", struct.pack("<f", lens))[0])]
        tags += [(65424, 9, 1, 0), (65426, 4, 1 + len(marks), starts)]
        data[after : after + 8] = struct.pack("<Q", len(data))
        data += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        after = len(data)
        data += bytes(8 + 4 * len(tags))
    path.write_bytes(data)
    return path


def mrxs(path: Path, image: np.ndarray, mpp: float, missing: tuple[int, ...] = ()) -> Path:
    """3DHISTECH: an index of PNG pictures in a folder beside the file; those `missing` were never scanned."""
    folder, name = path.with_suffix(""), "0" * 32
    folder.mkdir()
    path.touch()
    rows, columns = (n // TILE for n in image.shape[:2])
    data, pages = bytearray(), []
    for level, step in ((image, 1), (quarter(image), 4)):
        records = []
        for y, x in np.ndindex(rows // step, columns // step):
            number = y * step * columns + x * step
            if step == 1 and number in missing:
                continue
            _, png = cv2.imencode(".png", level[y * TILE :, x * TILE :][:TILE, :TILE, ::-1])
            records.append((number, len(data), len(png), 0))
            data += png.tobytes()
        pages.append(records)
    index = bytearray(b"01.02" + name.encode() + bytes(8))
    struct.pack_into("<I", index, 37, len(index))
    root = len(index)
    index += bytes(8)  # a pointer for each level
    for i, records in enumerate(pages):
        struct.pack_into("<I", index, root + 4 * i, len(index))
        index += struct.pack("<4I", 0, len(index) + 8, len(records), 0)
        index += b"".join(struct.pack("<4I", *record) for record in records)
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(index)
    zooms = [ZOOM.format(i=i, mpp=mpp * n, t=TILE, concat=k) for i, (n, k) in enumerate(((1, 0), (4, 2)))]
    (folder / "Slidedat.ini").write_text(SLIDEDAT.format(id=name, rows=rows, columns=columns) + "".join(zooms))
    return path
