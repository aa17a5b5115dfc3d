"""The tiles of a batch: a grid per specimen, its filters and cap, and its way to every scan with all counts kept."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isoslide import geojson, grid, keys, quality, registration_warp, slide, status, tile_filters, tissue
from isoslide.registration_warp import Warp, straight

Row = Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """The tiles of a specimen, after the filters and the cap of its reference scan."""

    ids: np.ndarray
    counts: Mapping[str, int]  # n_grid: tiles with enough tissue; the rest: those that did not come into `ids`, and why
    largest_um2: float  # largest piece of tissue


@dataclass
class Batch:
    """What the stage knows of a batch: the rows of the earlier stages by scan, and the grids laid so far."""

    checks: dict[str, Row]
    tissue: dict[str, Row]
    registrations: dict[str, Row]
    view: grid.View
    settings: Mapping[str, Any]
    grids: dict[str, Grid] = field(default_factory=dict)  # by reference scan
    maps: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # registration file -> its content

    @functools.cached_property
    def code(self) -> list[Any]:
        """What the code is that the tiles depend on; that of the filters only where one is on."""
        here = (_grid, _step_um, _carry, _failing)
        if not tile_filters.wanted(self.settings):
            return [keys.code_hash(grid, geojson, *here)]
        return [keys.code_hash(grid, geojson, *here, tile_filters, tissue, quality), slide.code()]


def process(scan: str, batch: Batch, results: Path) -> dict[str, Any]:
    """Return the scan's row of the tiles table, after making its file if it is not there already."""
    check = batch.checks[scan]
    if check["status"] != status.OK:
        return status.carried(check)
    if batch.tissue[scan]["status"] != status.OK:
        return status.carried({**check, **batch.tissue[scan]})
    coarsest = max(_mpp(check))
    if coarsest > grid.TOO_COARSE * batch.view.mpp:
        reason = f"{coarsest:g} µm/px, more than {grid.TOO_COARSE:g} x the wanted {batch.view.mpp:g}"
        return status.failed(check, "too_coarse", reason)
    try:
        return _tile(scan, batch, results / f"{scan}.h5")
    except slide.SlideError as error:  # only filters open slides
        return status.failed(check, error.status, error.reason)


def _tile(scan: str, batch: Batch, path: Path) -> dict[str, Any]:
    check = batch.checks[scan]
    reference, warp, why_alone = _reference(scan, batch)
    correction = {"correction": [warp.record(), keys.code_hash(registration_warp)]} if warp.bends else {}
    key = keys.content_key(
        code=batch.code,
        view=[batch.view.tile_px, batch.view.mpp],
        settings=batch.settings,
        scan=check["key"],
        reference=[reference, batch.checks[reference]["key"], batch.tissue[reference]["key"]],
        affine=warp.affine.tolist(),  # not the registration's key: a scan that joins the specimen moves no other
        paired=not why_alone,
        **correction,
    )
    tiles = _present(path, key)
    if tiles is None:
        laid = _grid(reference, batch)
        tiles, counts = _carry(scan, reference, laid, warp, batch, {"key": key, "paired": not why_alone})
        if counts["n_tiles"] == 0:
            path.unlink(missing_ok=True)  # of an earlier run with other settings
            return status.failed(check, *_why_none(counts, laid, batch)) | counts | {"n_tiles": ""}
        grid.write(path, tiles, (int(check["width"]), int(check["height"])))
    return {
        "scan": scan,
        "status": status.OK,
        "reason": why_alone,
        "path": str(path),
        "key": grid.row_key(check["key"], tiles),
        "specimen": check["specimen"],
        "scanner": check["scanner"],
        "reference": reference,
        "paired": "no" if why_alone else "yes",
        **json.loads(tiles.attrs["counts"]),
    }


def _mpp(check: Row) -> tuple[float, float]:
    return float(check["mpp_x"]), float(check["mpp_y"])


def _size_um(check: Row) -> tuple[float, float]:
    return int(check["width"]) * float(check["mpp_x"]), int(check["height"]) * float(check["mpp_y"])


def _reference(scan: str, batch: Batch) -> tuple[str, Warp, str]:
    """Return the reference scan, the map from its µm to the scan's, and why the scan stands alone ("" if not)."""
    row = batch.registrations.get(scan)
    if row is None or row["status"] != status.OK:
        return scan, straight(grid.IDENTITY), f"own grid: {row['reason'] or row['status'] if row else 'not registered'}"
    reference = row["reference"]
    for table in (batch.checks, batch.tissue):
        if reference not in table or table[reference]["status"] != status.OK:
            return scan, straight(grid.IDENTITY), f"own grid: the reference scan {reference} has no tissue outline"
    if row["path"] not in batch.maps:
        batch.maps[row["path"]] = json.loads(Path(row["path"]).read_text(encoding="utf-8"))["scans"]
    return reference, registration_warp.from_record(batch.maps[row["path"]][scan]), ""


def _grid(reference: str, batch: Batch) -> Grid:
    """Return the grid laid on a reference scan."""
    if reference not in batch.grids:
        check, tile_um, settings = batch.checks[reference], batch.view.tile_um, batch.settings
        polygons = geojson.scaled(geojson.read(batch.tissue[reference]["path"]).polygons, _mpp(check))
        all_ids = grid.tissue_tiles(polygons, _size_um(check), tile_um, settings["min_tissue"], settings["overlap"])
        corners_um = grid.corners(all_ids, _step_um(batch))
        failing = _failing(check, corners_um, grid.IDENTITY, batch)
        ids = all_ids[failing == ""]
        n_before = len(ids)
        if settings["max_tiles"] and len(ids) > settings["max_tiles"]:
            # Tiles that the reference scan itself cannot show are the first to go.
            cut_off = grid.outside(corners_um[failing == ""], tile_um, grid.IDENTITY, _size_um(check))
            ids = grid.sample(ids[~cut_off], settings["max_tiles"], np.random.default_rng(settings["seed"]))
        counts = {"n_grid": len(all_ids), "n_capped": n_before - len(ids), **_counts(failing)}
        batch.grids[reference] = Grid(ids, counts, max(map(geojson.area, polygons)))
    return batch.grids[reference]


def _step_um(batch: Batch) -> float:
    return grid.step_um(batch.view.tile_um, batch.settings["overlap"])


def _failing(check: Row, corners_um: np.ndarray, affine: np.ndarray, batch: Batch) -> np.ndarray:
    """Return the filter that each tile (n,) fails in a scan, empty where none."""
    if not tile_filters.wanted(batch.settings) or not len(corners_um):
        return np.full(len(corners_um), "", dtype="U8")
    maps = grid.tile_affines(corners_um, batch.view.tile_um, batch.view.tile_px, affine)
    with slide.open_checked(check) as image:
        return tile_filters.failing(image, maps, batch.view.tile_px, batch.settings)


def _counts(failing: np.ndarray) -> dict[str, int]:
    return {f"n_{name}": int((failing == name).sum()) for name in tile_filters.NAMES}


def _carry(
    scan: str, reference: str, laid: Grid, warp: Warp, batch: Batch, attrs: Mapping[str, Any]
) -> tuple[grid.Tiles, dict[str, int]]:
    """Return the tiles of the grid as they lie in the scan, without those that its filters drop, and the counts."""
    check, view = batch.checks[scan], batch.view
    corners_um = grid.corners(laid.ids, _step_um(batch))
    maps = warp.local(corners_um + view.tile_um / 2, view.tile_um)
    out = grid.outside(corners_um, view.tile_um, maps, _size_um(check))
    failing = np.full(len(out), "", dtype="U8")
    if scan != reference:  # the reference's own tiles have passed
        failing[~out] = _failing(check, corners_um[~out], maps[~out], batch)
    counts = {**laid.counts, "n_outside": int(out.sum())}
    for name, n in _counts(failing).items():
        counts[name] += n
    counts["n_tiles"] = int((~out & (failing == "")).sum())
    kept = failing == ""
    corners_um, maps = corners_um[kept], maps[kept]
    tiles = grid.Tiles(
        coords=grid.level0_corners(corners_um, view.tile_um, maps, _mpp(check)),
        tile_ids=laid.ids[kept],
        out_of_bounds=out[kept],
        corners_um=corners_um,
        affine=warp.affine,
        local=maps if warp.bends else None,
        attrs={
            **attrs,
            "tile_px": view.tile_px,
            "mpp": view.mpp,
            "tile_um": view.tile_um,
            "step_um": _step_um(batch),
            "reference": reference,
            "scan": scan,
            "specimen": check["specimen"],
            "scanner": check["scanner"],
            "slide": check["path"],
            "mpp_x": _mpp(check)[0],
            "mpp_y": _mpp(check)[1],
            "settings": json.dumps(batch.settings, sort_keys=True),
            "counts": json.dumps(counts),
        },
    )
    return tiles, counts


def _present(path: Path, key: str) -> grid.Tiles | None:
    """Return the tiles of a file that carries the key, or None: also where it is no whole file."""
    try:
        tiles = grid.read_tiles_file(path)
    except (OSError, KeyError):  # absent, cut short, or of another origin
        return None
    return tiles if tiles.attrs.get("key") == key else None


def _why_none(counts: Mapping[str, int], laid: Grid, batch: Batch) -> tuple[str, str]:
    """Return status and reason of a scan without a tile."""
    tile_um2 = batch.view.tile_um**2
    dropped = {name: counts[f"n_{name}"] for name in tile_filters.NAMES if counts[f"n_{name}"]}
    if dropped:
        named = ", ".join(f"{n} {name}" for name, n in dropped.items())
        return "qc_removed_all", f"the filters of tiles left none of {counts['n_grid']}: {named}; see config tiles"
    if counts["n_grid"]:
        return "zero_tiles", f"all {counts['n_grid']} tiles of the reference scan's tissue reach over this scan's edge"
    if laid.largest_um2 < tile_um2:
        reason = f"the largest tissue piece ({laid.largest_um2:.3g} µm²) is smaller than a tile ({tile_um2:.3g} µm²)"
        return "zero_tiles", reason
    return "zero_tiles", f"no tile of {batch.view.tile_um:g} µm has {batch.settings['min_tissue']:.0%} tissue"
