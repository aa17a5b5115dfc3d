"""Measure how fast tiles are read: ours, OpenSlide, other readers, and the JPEG decoder alone as the limit.

    python scripts/benchmark_reading.py --output reading.md

Makes SVS-like slides of real tissue (JPEG tiles, quality 80, 4:2:0) in a temporary folder and writes a Markdown table:
tiles of 256 px per second of one core's time, at full size and at half size. The best of several rounds counts; the
rounds of all readers alternate. Readers that are not installed are named and left out: pyvips, tiffslide, cucim and
hs2p are no dependencies.
"""

import argparse
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isoslide import cli

TILE_PX = 256
MPP = 0.25
BLOCK = 8  # tiles along the side of a block, for readers that are faster in blocks
RUN = 256  # tiles per call of ours, as extract_features.py has it
TISSUE = Path(__file__).resolve().parents[1] / "resources/CMU-1-Small-Region.svs"
RIVALS = ("pyvips", "tiffslide", "cucim", "hs2p")
Reader = Callable[[], None]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--side", type=int, default=12288, help="px along the side of the slides")
    parser.add_argument("--stored", type=int, nargs="+", default=[240, 512], help="px of the JPEG tiles, a slide each")
    parser.add_argument("--slides", type=Path, nargs="*", default=[], help="also these, at the µm/px of their level 0")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--output", required=True, help="Markdown file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    os.environ["VIPS_CONCURRENCY"] = "1"
    present = [name for name in RIVALS if importable(name)]
    columns = {}
    fidelity = {}
    with tempfile.TemporaryDirectory() as folder:
        for stored in args.stored:
            path = Path(folder, f"{stored}.svs")
            make_slide(path, stored, args.side)
            for scale in (1, 2):
                name = f"{stored} px, scale {scale}"
                logging.info("%s", name)
                columns[name] = measure(readers(path, scale, args.side, present), scale, args)
            fidelity[stored] = fidelities(path)
    given = {path.name: measure_slide(path, args.repeats) for path in args.slides}
    text = [table(columns), fidelity_table(fidelity), *([slides_table(given)] if given else [])]
    Path(args.output).write_text("\n".join(text))
    logging.info("wrote %s", args.output)


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError as error:
        logging.warning("%s is left out: %s", name, error)
        return False
    return True


def make_slide(path: Path, stored: int, side: int) -> None:
    """Write tissue, mirrored to repeat without seams and with grain of its own, in levels of 1, 1/4 and 1/16."""
    import cv2
    import openslide
    import simplejpeg
    import tifffile

    with openslide.OpenSlide(TISSUE) as slide:
        tissue = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    tissue = np.concatenate([tissue, tissue[::-1]])
    tissue = np.concatenate([tissue, tissue[:, ::-1]], axis=1)
    image = cv2.repeat(tissue, side // tissue.shape[0] + 1, side // tissue.shape[1] + 1)[:side, :side]
    grain = np.random.default_rng(0).normal(0, 4, (1031, 1033, 3)).round().astype(np.int16)
    grain = cv2.repeat(grain, 1, side // grain.shape[1] + 1)[:, :side]
    for row in range(0, side, len(grain)):
        part = image[row : row + len(grain)]
        np.copyto(part, np.clip(part + grain[: len(part)], 0, 255).astype(np.uint8))

    def streams(level):
        level = np.pad(level, ((0, -level.shape[0] % stored), (0, -level.shape[1] % stored), (0, 0)), mode="edge")
        for y in range(0, level.shape[0], stored):
            for x in range(0, level.shape[1], stored):
                tile = np.ascontiguousarray(level[y : y + stored, x : x + stored])
                yield simplejpeg.encode_jpeg(tile, 80, colorsubsampling="420")

    text = f"Aperio Image Library v12\r\n{side}x{side} ({stored}x{stored}) JPEG/RGB Q=80|AppMag = 40|MPP = {MPP}"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in (1, 4, 16):
            level = cv2.resize(image, (side // factor, side // factor), interpolation=cv2.INTER_AREA)
            file.write(
                streams(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(stored, stored),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=text,
                metadata=None,
            )


def corners(scale: int, side: int, block: int) -> list[tuple[int, int]]:
    """Return the level-0 corners (x, y) of all tiles, block by block."""
    count = side // (TILE_PX * scale)
    places = [(y, x) for y in range(count) for x in range(count)]
    places.sort(key=lambda place: (place[0] // block, place[1] // block, place))
    return [(x * TILE_PX * scale, y * TILE_PX * scale) for y, x in places]


def readers(path: Path, scale: int, side: int, present: list[str]) -> dict[str, Reader]:
    """Return {name: function that reads all tiles of the slide once}."""
    import cv2

    cv2.setNumThreads(1)
    found = {"JPEG decoder alone (libjpeg-turbo)": bare(path, 1)}
    if scale > 1:
        found["JPEG decoder alone, shrinking by 2"] = bare(path, 2)
    found |= {
        "isoslide, fast": ours(path, scale, side, "fast"),
        "isoslide, exact": ours(path, scale, side, "exact"),
        "isoslide, through OpenSlide": ours(path, scale, side, "fast", direct=False),
        "OpenSlide, tile by tile, PIL": by_openslide(path, scale, side),
    }
    if "pyvips" in present:
        found["pyvips, tile by tile"] = by_pyvips(path, scale, side)
    for name, region in (("tiffslide", by_tiffslide), ("cucim", by_cucim), ("hs2p", by_hs2p)):
        if name in present:
            found[f"{name}, tile by tile"] = in_blocks(region(path), scale, side, 1)
            found[f"{name}, blocks of 8 x 8 tiles"] = in_blocks(region(path), scale, side, BLOCK)
    return found


def bare(path: Path, reduction: int) -> Reader:
    """Decode every stored tile of level 0 from memory into one buffer."""
    import simplejpeg

    from isoslide import slide, stored_tiles

    with slide.Slide(path) as opened:
        level = opened._stored.levels[0]
    with open(path, "rb") as file:
        count = range(len(level.layout.offsets))
        streams = [level.stream(stored_tiles.stored_bytes(file.fileno(), level.layout, index)) for index in count]
    side = level.layout.tile[0] // reduction
    buffer = np.empty((side, side, 3), np.uint8)

    def read() -> None:
        for stream in streams:
            simplejpeg.decode_jpeg(stream, "RGB", min_height=side, min_width=side, buffer=buffer)

    return read


def ours(path: Path, scale: int, side: int, downsampling: str, direct: bool = True) -> Reader:
    from isoslide import slide

    step = MPP * scale
    maps = np.array([[[step, 0, x * MPP], [0, step, y * MPP]] for x, y in corners(scale, side, 16)])
    out = np.empty((RUN, TILE_PX, TILE_PX, 3), np.uint8)

    def read() -> None:
        with slide.Slide(path, reading=slide.Reading(downsampling=downsampling)) as opened:
            if not direct:
                opened.read_through_openslide()
            for start in range(0, len(maps), RUN):
                run = maps[start : start + RUN]
                opened.read_tiles(run, TILE_PX, out[: len(run)])

    return read


def by_openslide(path: Path, scale: int, side: int) -> Reader:
    """As most pipelines read: a PIL image per tile, resized by PIL."""
    import openslide
    from PIL import Image

    def read() -> None:
        with openslide.OpenSlide(path) as opened:
            for corner in corners(scale, side, 16):
                image = opened.read_region(corner, 0, (TILE_PX * scale,) * 2).convert("RGB")
                np.asarray(image if scale == 1 else image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))

    return read


def by_pyvips(path: Path, scale: int, side: int) -> Reader:
    import pyvips

    def read() -> None:
        region = pyvips.Region.new(pyvips.Image.tiffload(str(path)))
        for x, y in corners(scale, side, 1_000_000):
            pixels = np.frombuffer(region.fetch(x, y, TILE_PX * scale, TILE_PX * scale), np.uint8)
            shrunk(pixels.reshape(TILE_PX * scale, TILE_PX * scale, 3), scale)

    return read


def by_tiffslide(path: Path) -> Callable[[tuple[int, int], int], np.ndarray]:
    import tiffslide

    opened = tiffslide.TiffSlide(path)
    return lambda corner, side: opened.read_region(corner, 0, (side, side), as_array=True)


def by_cucim(path: Path) -> Callable[[tuple[int, int], int], np.ndarray]:
    from cucim import CuImage

    opened = CuImage(str(path))
    return lambda corner, side: np.asarray(opened.read_region(corner, (side, side), 0))


def by_hs2p(path: Path) -> Callable[[tuple[int, int], int], np.ndarray]:
    from hs2p.wsi.reader import open_slide

    opened = open_slide(path)
    return lambda corner, side: opened.read_region(corner, 0, (side, side))


def in_blocks(region: Callable[[tuple[int, int], int], np.ndarray], scale: int, side: int, block: int) -> Reader:
    """Read blocks of tiles and cut them up."""
    step = TILE_PX * scale

    def read() -> None:
        for x in range(0, side - step + 1, step * block):
            for y in range(0, side - step + 1, step * block):
                pixels = region((x, y), min(step * block, side - max(x, y)) // step * step)
                for row in range(0, pixels.shape[0], step):
                    for column in range(0, pixels.shape[1], step):
                        shrunk(pixels[row : row + step, column : column + step], scale)

    return read


def shrunk(image: np.ndarray, scale: int) -> np.ndarray:
    """Return a tile of its own memory."""
    import cv2

    return image.copy() if scale == 1 else cv2.resize(image, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)


def measure(methods: dict[str, Reader], scale: int, args: argparse.Namespace) -> dict[str, float]:
    """Return {name: tiles per second of processor time}, the best of the rounds."""
    return best_rates(methods, (args.side // (TILE_PX * scale)) ** 2, args.repeats)


def best_rates(methods: dict[str, Reader], tiles: int, repeats: int) -> dict[str, float]:
    """Return {name: tiles per second of processor time}, the best of the rounds."""
    best = dict.fromkeys(methods, 0.0)
    for _ in range(repeats):
        for name, read in methods.items():
            start = time.process_time()
            read()
            best[name] = max(best[name], tiles / (time.process_time() - start))
    return best


def measure_slide(path: Path, repeats: int) -> dict[str, float]:
    """Return {reader: tiles per second of processor time} of a slide of any format at full size."""
    import openslide

    from isoslide import slide, slide_files

    with slide.Slide(path, mpp=(1.0, 1.0)) as opened:
        width, height = opened.size
    places = [(x, y) for y in range(0, height - 255, TILE_PX) for x in range(0, width - 255, TILE_PX)]
    maps = np.array([[[1.0, 0, x], [0, 1.0, y]] for x, y in places])

    def by_pil() -> None:
        with openslide.OpenSlide(slide_files.slide_file(path)) as handle:
            for place in places:
                np.asarray(handle.read_region(place, 0, (TILE_PX, TILE_PX)).convert("RGB"))

    out = np.empty((RUN, TILE_PX, TILE_PX, 3), np.uint8)

    def by_isoslide() -> None:
        with slide.Slide(path, mpp=(1.0, 1.0)) as opened:
            for start in range(0, len(maps), RUN):
                run = maps[start : start + RUN]
                opened.read_tiles(run, TILE_PX, out[: len(run)])

    return best_rates({"OpenSlide, tile by tile, PIL": by_pil, "isoslide": by_isoslide}, len(places), repeats)


def slides_table(found: dict[str, dict[str, float]]) -> str:
    """Return tiles per second of each slide, and in brackets how many times OpenSlide's."""
    names = next(iter(found.values()))
    lines = ["| slide | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for slide, rates in found.items():
        first = next(iter(rates.values()))
        lines.append(f"| {slide} | " + " | ".join(f"{rate:.0f} ({rate / first:.2f})" for rate in rates.values()) + " |")
    return "\n".join(lines) + "\n"


def fidelities(path: Path) -> dict[str, float]:
    """Return {way of halving: PSNR in dB against the exact area mean} over up to 64 tiles."""
    import openslide
    from PIL import Image

    from isoslide import slide

    found = {name: [] for name in ("isoslide, fast", "isoslide, exact", "PIL bicubic", "PIL bilinear")}
    with openslide.OpenSlide(path) as source, slide.Slide(path) as fast:
        exact = slide.Slide(path, reading=slide.Reading(downsampling="exact"))
        count = min(8, *(side // 512 for side in source.dimensions))
        for x, y in [(x, y) for x in range(count) for y in range(count)]:
            image = source.read_region((x * 512, y * 512), 0, (512, 512)).convert("RGB")
            mean = np.asarray(image, float).reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
            affine = np.array([[MPP * 2, 0, x * 512 * MPP], [0, MPP * 2, y * 512 * MPP]])
            tiles = [fast.read(affine, (256, 256)), exact.read(affine, (256, 256))]
            tiles += [image.resize((256, 256), way) for way in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)]
            for errors, tile in zip(found.values(), tiles, strict=True):
                errors.append(((np.asarray(tile) - mean) ** 2).mean())
        exact.close()
    return {name: 10 * np.log10(255**2 / np.mean(errors)) for name, errors in found.items()}


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return tiles per second, and in brackets the share of the decoder's."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = ["| reader | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        cells = []
        for column in columns.values():
            limit = next(iter(column.values()))
            cells.append(f"{column[name]:.0f} ({column[name] / limit:.2f})" if name in column else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fidelity_table(columns: dict[int, dict[str, float]]) -> str:
    """Return the PSNR of the ways of halving."""
    names = next(iter(columns.values()))
    lines = ["| half size by | " + " | ".join(f"{stored} px" for stored in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{column[name]:.1f} dB" for column in columns.values()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
