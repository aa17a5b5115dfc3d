"""Outline the tissue of a batch of scans.

    python scripts/segment_tissue.py --checks results/status/checks/b0.tsv --settings '{"um_per_px": 8, ...}' \
        --results results/tissue --output results/status/tissue/b0.tsv

Writes {scan}.geojson (polygons in level-0 px, for QuPath) and {scan}.jpg (the outline drawn) into the results folder.
A GeoJSON file that a person drew or changed is used as it is and never written over; delete it to have it made again.
With `"method": "trident:NAME"` a network of TRIDENT draws the outlines, in its environment (envs/trident.yaml).
"""

import argparse
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from isoslide import atomic, cli, device, geojson, keys, quality, segmenters, slide, status, tissue

COLOURS = ("red_mean", "green_mean", "blue_mean", "red_sd", "green_sd", "blue_sd")
NUMBERS = ("tissue_mm2", "sharpness", "ink_share", "black_share", "um_per_px", "black_places", "level_gap", *COLOURS)
EDITED = "edited by hand"
NO_TISSUE = "no region looks like stained tissue: see the picture; to force it, draw it in the GeoJSON file"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="the config's block tissue, as JSON")
    parser.add_argument("--results", required=True, type=Path, help="folder for the scans' files")
    parser.add_argument("--scans", nargs="+", metavar="ID", help="only these scans")
    parser.add_argument("--threads", type=int, default=1, help="scans at a time")
    parser.add_argument("--weights", default="resources/weights", help="folder of weights, for a method of TRIDENT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where such a method runs")
    parser.add_argument("--stains", type=cli.json_arg, default={}, help="stain of each scan, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    cv2.setNumThreads(1)  # the scans are what runs in parallel
    atomic.sweep(args.results)
    checks = status.read(args.checks)
    if args.scans:
        checks = checks[checks["scan"].isin(args.scans)]
    method = methods(args)

    def row_of(row: dict[str, str]) -> dict[str, Any]:
        return process(row, method(row["scan"]), args.results)

    with cli.timed("tissue"), ThreadPoolExecutor(args.threads) as pool:
        rows = list(pool.map(row_of, checks.to_dict("records")))
    status.write(args.output, rows)
    logging.info("%s", status.summary(status.read(args.output)))


@dataclass(frozen=True)
class Method:
    """How the outline of a scan is found.

    Attributes:
        settings: the config's block tissue.
        code: what else decides the outline.
        segmenter: a network; None: the classical method.
        note: why it is another than the config's.
    """

    settings: Mapping[str, Any]
    code: list[Any]
    segmenter: segmenters.Segmenter | None = None
    note: str = ""


def methods(args: argparse.Namespace) -> Callable[[str], Method]:
    """Return a function from a scan to its method."""
    name = args.settings["method"]
    plain = Method(args.settings, [keys.code_hash(tissue, quality, geojson), slide.code()])
    if name == "classical":
        return lambda scan: plain
    try:
        segmenter = segmenters.Segmenter(name, args.weights, device.claim(args.device))
    except (segmenters.SegmenterError, device.DeviceError) as error:
        cli.fail(str(error))
    code = [*plain.code, keys.code_hash(segmenters.Segmenter), segmenter.weights_hash]
    drawn = Method(args.settings, code, segmenter)

    def method(scan: str) -> Method:
        note = segmenters.fallback(name, args.stains.get(scan, ""))
        return replace(plain, note=note) if note else drawn

    return method


def process(row: dict[str, str], method: Method, results: Path) -> dict[str, Any]:
    """Return the scan's row of the tissue table, after making its files if they are not there already."""
    if row["status"] != status.OK:
        return status.carried(row)
    path = results / f"{row['scan']}.geojson"
    key = keys.content_key(checks=row["key"], settings=method.settings, code=method.code)
    try:
        present = geojson.read(path) if path.exists() else None
        if present and not present.edited and present.facts.get("key") == key and path.with_suffix(".jpg").exists():
            return _row(row, path, present, present.facts, method.settings, method.note)
        with slide.open_checked(row) as image:
            return _segment(row, image, method, path, key, present if present and present.edited else None)
    except slide.SlideError as error:
        return status.failed(row, error.status, error.reason)
    except geojson.GeoJSONError as error:
        return status.failed(row, "bad_geojson", f"{error}: mend or delete it")


def _segment(
    row: Mapping[str, str],
    image: slide.Slide,
    method: Method,
    path: Path,
    key: str,
    edited: geojson.Outlines | None,
) -> dict[str, Any]:
    um_per_px = tissue.overview_um_per_px(image, method.settings["um_per_px"])
    rgb = image.overview(um_per_px)
    found = tissue.segment(rgb, um_per_px, method.settings)
    if edited is None and method.segmenter is None:
        polygons = geojson.trace(found.tissue, (um_per_px / image.mpp[0], um_per_px / image.mpp[1]))
    else:
        polygons = edited.polygons if edited else method.segmenter.outline(image, method.settings)
        mask = geojson.rasterise(geojson.scaled(polygons, image.mpp), um_per_px, rgb.shape[:2])
        found = tissue.Segmentation(mask, found.ink & ~mask, found.black, um_per_px)
    numbers = _numbers(image, rgb, found, um_per_px)
    facts = {"key": key, **{name: float(f"{value:.6g}") for name, value in numbers.items()}}
    with atomic.output(path.with_suffix(".jpg")) as temporary:
        picture = tissue.overlay(rgb, polygons, um_per_px, image.mpp)
        # imwrite would say False and leave half a file on a full disk
        temporary.write_bytes(_jpeg(picture))
    if edited is None:
        geojson.write(path, polygons, facts)  # last: its key says that all files of the scan are there
    outlines = edited or geojson.Outlines(polygons, {})
    return _row(row, path, outlines, facts, method.settings, EDITED if edited else method.note)


def _jpeg(picture: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return encoded.tobytes()


def _numbers(image: slide.Slide, rgb: np.ndarray, found: tissue.Segmentation, um_per_px: float) -> dict[str, float]:
    # Black that is no frame may be tissue that the file has lost.
    places = quality.places(image, rgb, found.tissue | (quality.black_pixels(rgb) & ~found.black), um_per_px)
    return {
        "tissue_mm2": found.tissue_mm2,
        "sharpness": quality.sharpness(image, found.tissue, um_per_px),
        "ink_share": found.ink_share,
        "black_share": found.black_share,
        "um_per_px": um_per_px,
        "black_places": places.black,
        "level_gap": places.difference,
        **quality.colour(rgb, found.tissue),
    }


def _verdict(empty: bool, facts: Mapping[str, Any], settings: Mapping[str, Any], reason: str) -> tuple[str, str]:
    """Return status and reason of a scan whose files are made."""
    if empty:
        return "no_tissue", f"{reason}: no polygons" if reason else NO_TISSUE
    if facts["black_places"] > settings["max_black"]:
        return "suspicious_black", (
            f"{facts['black_places']:.0%} of places in the tissue are black at level 0: a part of the file is lost "
            f"(limit {settings['max_black']:.0%}: tissue.max_black)"
        )
    if facts["level_gap"] > quality.LEVELS_DIFFERENCE:
        return "levels_disagree", (
            f"the tissue's mean colour at level 0 and in the overview differ by {facts['level_gap']:.0f} grey levels: "
            "the file is damaged, or its colours are decoded wrongly"
        )
    return status.OK, reason


def _row(
    row: Mapping[str, str],
    path: Path,
    outlines: geojson.Outlines,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    reason: str = "",
) -> dict[str, Any]:
    state, reason = _verdict(not outlines.polygons, facts, settings, reason)
    return {
        "scan": row["scan"],
        "status": state,
        "reason": reason,
        "path": str(path),
        "key": geojson.geometry_hash(outlines.polygons),  # whoever drew them: later stages depend on the outlines alone
        "specimen": row["specimen"],
        "scanner": row["scanner"],
        **{name: facts[name] for name in NUMBERS},
    }


if __name__ == "__main__":
    main()
