"""Lay the scans of each specimen of a batch onto the specimen's reference scan.

    python scripts/register_scans.py --checks results/status/checks/b0.tsv --tissue results/status/tissue/b0.tsv \
        --settings '{"limit_um": 5, "um_per_px": 1.0, ...}' \
        --results results/registrations --output results/status/registrations/b0.tsv

Writes {specimen}.json (the maps from the reference's µm to each scan's µm, with their errors) and, where scans were
compared, {specimen}.jpg (checkerboards) into the results folder. The reference is the scan that the sheet names; else
the sharpest of those with most tissue.
A scan whose map is not to be trusted gets the status `not_registered`, the reason and no map: later stages use it
alone, on a grid of its own, and never in a pair.
"""

import argparse
import json
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from isoslide import (
    atomic,
    cli,
    geojson,
    keys,
    registration,
    registration_coarse,
    registration_quality,
    registration_specimen,
    registration_warp,
    slide,
    status,
)

MODULES = (
    registration,
    registration_coarse,
    registration_quality,
    registration_specimen,
    registration_warp,
    geojson,
)
Rows = Mapping[str, Mapping[str, str]]
KEPT = (status.OK, registration_specimen.NOT_REGISTERED)  # a file that could not be read is tried again


class BadScan(slide.SlideError):
    """A slide error that knows its scan."""

    def __init__(self, scan: str, error: slide.SlideError):
        super().__init__(error.status, error.reason)
        self.scan = scan


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage")
    parser.add_argument("--tissue", required=True, type=Path, help="status table of the tissue stage")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="the config's block registration, as JSON")
    parser.add_argument("--results", required=True, type=Path, help="folder for the specimens' files")
    parser.add_argument("--scans", nargs="+", metavar="ID", help="only these scans and the others of their specimens")
    parser.add_argument("--threads", type=int, default=1, help="specimens at a time")
    parser.add_argument("--output", required=True, type=Path, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    cv2.setNumThreads(1)  # the specimens are what runs in parallel
    atomic.sweep(args.results)
    checks = {row["scan"]: row for row in status.read(args.checks).to_dict("records")}
    tissue = status.read(args.tissue)
    if args.scans:
        tissue = tissue[tissue["specimen"].isin(tissue["specimen"][tissue["scan"].isin(args.scans)])]
    unchecked = set(tissue["scan"]) - set(checks)
    if unchecked:
        cli.fail(f"scan {min(unchecked)!r} has no row in {args.checks}: run the stage 'checks' again")
    code_of_maps = code()
    specimens = [{row["scan"]: row for row in rows.to_dict("records")} for _, rows in tissue.groupby("specimen")]

    def rows_of(scans: Rows) -> list[dict[str, Any]]:
        return process(scans, checks, args.settings, args.results, code_of_maps)

    with cli.timed("registrations"), ThreadPoolExecutor(args.threads) as pool:
        rows = [row for rows in pool.map(rows_of, specimens) for row in rows]
    status.write(args.output, rows)
    logging.info("%s", status.summary(status.read(args.output)))


def code() -> list[Any]:
    """Return what the code is that the maps depend on, pixels included."""
    return [keys.code_hash(*MODULES), slide.code()]


def process(
    tissue: Rows, checks: Rows, settings: Mapping[str, Any], results: Path, code_of_maps: list[Any]
) -> list[dict[str, Any]]:
    """Return the rows of a specimen's scans, after making its files if they are not there already."""
    rows = [status.carried(row) for row in tissue.values() if row["status"] != status.OK]
    usable = {scan: row for scan, row in tissue.items() if row["status"] == status.OK}
    if not usable:
        return rows
    path = results / f"{next(iter(usable.values()))['specimen']}.json"
    inputs = {scan: [checks[scan]["key"], row["key"]] for scan, row in usable.items()}
    preferred = _preferred(usable, usable, checks)
    key = keys.content_key(code=code_of_maps, settings=settings, scans=inputs, preferred=preferred)
    found = _present(path, key)
    if found is None:
        found = register(usable, checks, settings, path, key)
    return rows + [_row(usable[scan], entry, found, path) for scan, entry in found["scans"].items()]


def register(usable: Rows, checks: Rows, settings: Mapping[str, Any], path: Path, key: str) -> dict[str, Any]:
    """Register a specimen's scans, write its files, and return the JSON file's content."""
    bad: dict[str, Any] = {}
    with ExitStack() as stack:
        views: dict[str, registration.View] = {}
        for scan, row in usable.items():
            try:
                image = stack.enter_context(slide.open_checked(checks[scan]))
                polygons = geojson.scaled(geojson.read(row["path"]).polygons, image.mpp)
                views[scan] = registration.view(_reader(scan, image), image.size_um, polygons, settings)
            except slide.SlideError as error:
                bad[scan] = registration_specimen.entry(error.status, error.reason)
            except geojson.GeoJSONError as error:
                bad[scan] = registration_specimen.entry("bad_geojson", f"{error}: mend or delete it")
        reference, found, picture = _register_readable(views, usable, checks, settings, bad)
    scans = bad | (registration_specimen.record(reference, found) if reference else {})
    specimen = next(iter(usable.values()))["specimen"]
    content = {"specimen": specimen, "reference": reference, "key": key, "settings": dict(settings), "scans": scans}
    with_picture = path.with_suffix(".jpg")
    if picture is None:
        with_picture.unlink(missing_ok=True)
    else:
        with atomic.output(with_picture) as temporary:
            cv2.imwrite(str(temporary), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    atomic.write_json(path, content)  # last: its key vouches for the picture
    return content


def _register_readable(
    views: dict[str, registration.View],
    usable: Rows,
    checks: Rows,
    settings: Mapping[str, Any],
    bad: dict[str, Any],
) -> tuple[str, dict[str, registration_specimen.Registration], np.ndarray | None]:
    """Register the views; a scan that turns out unreadable moves from `views` to `bad`, and the others start again."""
    while views:
        try:
            preferred = _preferred(views, usable, checks)
            reference, found = registration_specimen.register_specimen(views, preferred, settings)
            others = {scan: (views[scan], one) for scan, one in found.items()}
            if not others:
                return reference, found, None
            board = registration_specimen.checkerboards(views[reference], others, settings["um_per_px"])
            return reference, found, board
        except BadScan as error:
            bad[error.scan] = registration_specimen.entry(error.status, error.reason)
            del views[error.scan]
    return "", {}, None


def _preferred(scans: Collection[str], usable: Rows, checks: Rows) -> list[str]:
    """Return those of the scans that may be the reference, best first."""
    numbers = ({scan: float(usable[scan][name]) for scan in scans} for name in ("tissue_mm2", "sharpness"))
    named = [scan for scan in scans if checks[scan].get("reference") == "yes"]
    return registration_specimen.preference(*numbers, named)


def _reader(scan: str, image: slide.Slide) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    def read(affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        try:
            return image.read(affine, size)
        except slide.SlideError as error:
            raise BadScan(scan, error) from error

    return read


def _present(path: Path, key: str) -> dict[str, Any] | None:
    """Return the content of a specimen's file that carries the key, or None."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        logging.warning("%s cannot be read and is made again: %s", path, error)
        return None
    states = [entry["status"] for entry in content["scans"].values()]
    if content["key"] != key or any(state not in KEPT for state in states):
        return None
    return content if len(states) == 1 or path.with_suffix(".jpg").exists() else None


def _row(row: Mapping[str, str], entry: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if entry["status"] not in KEPT:
        return status.failed(row, entry["status"], entry["reason"])
    return {
        **status.failed(row, entry["status"], entry["reason"]),
        "path": str(path),
        "key": content["key"],
        "reference": content["reference"],
        "error_um": entry["error_um"],
        "overlap": entry["overlap"],
    }


if __name__ == "__main__":
    main()
