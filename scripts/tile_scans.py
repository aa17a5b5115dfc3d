"""Lay one grid of tiles per specimen on its reference scan and carry it to the specimen's other scans.

    python scripts/tile_scans.py --checks results/status/checks/b0.tsv --tissue results/status/tissue/b0.tsv \
        --registrations results/status/registrations/b0.tsv --view '{"tile_px": 224, "mpp": 0.5}' \
        --settings '{"min_tissue": 0.5, "max_tiles": 0, "seed": 1}' \
        --results results/tiles/224px_0.5um --output results/status/tiles/224px_0.5um/b0.tsv

Writes {scan}.h5 into the results folder for every scan that has a tile. A scan that is not registered gets a grid of
its own, on its own tissue, and pairs with no other.
"""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from isoslide import cli, geojson, grid, keys, status

Row = Mapping[str, str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage")
    parser.add_argument("--tissue", required=True, type=Path, help="status table of the tissue stage")
    parser.add_argument("--registrations", required=True, type=Path, help="status table of the registrations stage")
    parser.add_argument("--view", required=True, type=cli.json_arg, help="tile_px (px) and mpp (µm/px), as JSON")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="the config's block tiles, as JSON")
    parser.add_argument("--results", required=True, type=Path, help="folder for the scans' files")
    parser.add_argument("--scans", nargs="+", metavar="ID", help="only these scans")
    parser.add_argument("--output", required=True, type=Path, help="status table to write")
    return parser.parse_args(argv)


@dataclass
class Batch:
    """What the stage knows of a batch: the rows of the earlier stages by scan, and the grids laid so far."""

    checks: dict[str, Row]
    tissue: dict[str, Row]
    registrations: dict[str, Row]
    view: grid.View
    settings: Mapping[str, Any]
    code: str
    grids: dict[str, tuple[np.ndarray, float]]  # reference scan -> tile ids, area of its largest tissue piece in µm²
    maps: dict[str, Mapping[str, Any]]  # registration file -> its content


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    batch = Batch(
        checks=_by_scan(args.checks),
        tissue=_by_scan(args.tissue),
        registrations=_by_scan(args.registrations),
        view=grid.View(**args.view),
        settings=args.settings,
        code=keys.code_hash(grid, geojson),
        grids={},
        maps={},
    )
    with cli.timed("tiles"):
        scans = [scan for scan in batch.checks if not args.scans or scan in args.scans]
        rows = [process(scan, batch, args.results) for scan in scans]
    status.write(args.output, rows)
    logging.info("%s", status.summary(status.read(args.output)))


def process(scan: str, batch: Batch, results: Path) -> dict[str, Any]:
    """Return the scan's row of the tiles table, after making its file if it is not there already."""
    check = batch.checks[scan]
    if check["status"] != status.OK:
        return status.carried(check)
    if scan not in batch.tissue:
        cli.fail(f"scan {scan!r} has no row in the tissue table: run the stage 'tissue' again")
    if batch.tissue[scan]["status"] != status.OK:
        return status.carried({**check, **batch.tissue[scan]})
    coarsest = max(_mpp(check))
    if coarsest > grid.TOO_COARSE * batch.view.mpp:
        reason = f"{coarsest:g} µm/px, more than {grid.TOO_COARSE:g} x the wanted {batch.view.mpp:g}"
        return status.failed(check, "too_coarse", reason)
    reference, affine, why_alone = _reference(scan, batch)
    path = results / f"{scan}.h5"
    key = keys.content_key(
        code=batch.code,
        view=[batch.view.tile_px, batch.view.mpp],
        settings=batch.settings,
        scan=check["key"],
        reference=[reference, batch.checks[reference]["key"], batch.tissue[reference]["key"]],
        affine=affine.tolist(),  # not the registration's key: a scan that joins the specimen moves no other
        paired=not why_alone,
    )
    in_bounds = _present(path, key)
    if in_bounds is None:
        ids, largest = _grid(reference, batch)
        tiles = _carry(scan, reference, ids, affine, batch, {"key": key, "paired": not why_alone})
        in_bounds = int((~tiles.out_of_bounds).sum())
        if in_bounds == 0:
            path.unlink(missing_ok=True)  # of an earlier run with other settings
            return status.failed(check, "zero_tiles", _why_none(len(ids), largest, batch))
        grid.write(path, tiles, (int(check["width"]), int(check["height"])))
    return {
        "scan": scan,
        "status": status.OK,
        "reason": why_alone,
        "n_tiles": in_bounds,
        "path": str(path),
        "key": key,
        "specimen": check["specimen"],
        "scanner": check["scanner"],
        "reference": reference,
        "paired": "no" if why_alone else "yes",
    }


def _by_scan(path: Path) -> dict[str, Row]:
    return {row["scan"]: row for row in status.read(path).to_dict("records")}


def _mpp(check: Row) -> tuple[float, float]:
    return float(check["mpp_x"]), float(check["mpp_y"])


def _size_um(check: Row) -> tuple[float, float]:
    return int(check["width"]) * float(check["mpp_x"]), int(check["height"]) * float(check["mpp_y"])


def _reference(scan: str, batch: Batch) -> tuple[str, np.ndarray, str]:
    """Return the reference scan, the affine from its µm to the scan's, and why the scan stands alone ("" if not)."""
    row = batch.registrations.get(scan)
    if row is None or row["status"] != status.OK:
        return scan, grid.IDENTITY, f"own grid: {row['reason'] or row['status'] if row else 'not registered'}"
    reference = row["reference"]
    for table in (batch.checks, batch.tissue):
        if reference not in table or table[reference]["status"] != status.OK:
            return scan, grid.IDENTITY, f"own grid: the reference scan {reference} has no tissue outline"
    if row["path"] not in batch.maps:
        batch.maps[row["path"]] = json.loads(Path(row["path"]).read_text(encoding="utf-8"))["scans"]
    return reference, np.array(batch.maps[row["path"]][scan]["affine"], float), ""


def _grid(reference: str, batch: Batch) -> tuple[np.ndarray, float]:
    """Return the tile ids of the reference scan's grid and the area of its largest piece of tissue in µm²."""
    if reference not in batch.grids:
        check = batch.checks[reference]
        polygons = geojson.scaled(geojson.read(batch.tissue[reference]["path"]).polygons, _mpp(check))
        tile_um, settings = batch.view.tile_um, batch.settings
        ids = grid.tissue_tiles(polygons, _size_um(check), tile_um, settings["min_tissue"])
        if settings["max_tiles"] and len(ids) > settings["max_tiles"]:
            # Tiles that the reference scan itself cannot show are the first to go.
            cut_off = grid.outside(grid.corners(ids, tile_um), tile_um, grid.IDENTITY, _size_um(check))
            ids = grid.sample(ids[~cut_off], settings["max_tiles"], np.random.default_rng(settings["seed"]))
        batch.grids[reference] = ids, max(map(geojson.area, polygons))
    return batch.grids[reference]


def _carry(
    scan: str, reference: str, ids: np.ndarray, affine: np.ndarray, batch: Batch, attrs: Mapping[str, Any]
) -> grid.Tiles:
    check, view = batch.checks[scan], batch.view
    corners_um = grid.corners(ids, view.tile_um)
    return grid.Tiles(
        coords=grid.level0_corners(corners_um, view.tile_um, affine, _mpp(check)),
        tile_ids=ids,
        out_of_bounds=grid.outside(corners_um, view.tile_um, affine, _size_um(check)),
        corners_um=corners_um,
        affine=affine,
        attrs={
            **attrs,
            "tile_px": view.tile_px,
            "mpp": view.mpp,
            "tile_um": view.tile_um,
            "reference": reference,
            "scan": scan,
            "specimen": check["specimen"],
            "scanner": check["scanner"],
            "slide": check["path"],
            "mpp_x": _mpp(check)[0],
            "mpp_y": _mpp(check)[1],
            "settings": json.dumps(batch.settings, sort_keys=True),
        },
    )


def _present(path: Path, key: str) -> int | None:
    """Return the number of in-bounds tiles of a file that carries the key, or None."""
    if not path.exists():
        return None
    with h5py.File(path, "r") as file:
        if file.attrs.get("key") != key:
            return None
        return int((~file["out_of_bounds"][()]).sum())


def _why_none(n_tiles: int, largest_um2: float, batch: Batch) -> str:
    tile_um2 = batch.view.tile_um**2
    if n_tiles:
        return f"all {n_tiles} tiles of the reference scan's tissue reach over the edge of this scan"
    if largest_um2 < tile_um2:
        return f"the largest tissue piece ({largest_um2:.3g} µm²) is smaller than a tile ({tile_um2:.3g} µm²)"
    return f"no tile of {batch.view.tile_um:g} µm has {batch.settings['min_tissue']:.0%} tissue"


if __name__ == "__main__":
    main()
