"""Features made elsewhere: read, checked, given tile ids that pair the scans of a specimen, and written as our own."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoslide import features_file, foreign_features, imports, keys, pairing, registration_warp, status
from isoslide.foreign_features import FeaturesError, Found
from isoslide.pairing import Identity

Row = Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """The features of a scan as they were found.

    Attributes:
        found: as the file has them.
        digest: of the bytes of its files.
        um_per_unit: (2,) µm per unit of the coordinates in x and y, or None where it is not known.
        tile_um: side of a tile in µm; 0 where it is not known.
    """

    found: Found
    digest: str
    um_per_unit: np.ndarray | None
    tile_um: float

    @property
    def centres(self) -> np.ndarray | None:
        """Centres of the tiles (n, 2) in µm of the scan, or None where that is not known."""
        if self.found.coords is None or self.um_per_unit is None:
            return None
        return self.found.coords * self.um_per_unit + self.tile_um / 2


def read_scan(row: Row, settings: Mapping[str, Any], mpp: tuple[float, float] | None) -> Source:
    """Read and check the features of a scan.

    Args:
        row: of the sheet.
        settings: the block of the configuration.
        mpp: µm per pixel of level 0 in x and y, where it is known.

    Raises:
        FeaturesError: with the scan's status.
    """
    paths = [imports.file_of(settings[key], row) for key in ("path", "coords") if settings[key]]
    found = foreign_features.read(*paths)
    if settings["unit"] != "auto":
        found.unit = settings["unit"]
    tile_um = settings["tile_um"] or found.number("tile_size_um", "tile_um") or _side_um(found, mpp)
    return Source(found, foreign_features.digest(*paths), _um_per_unit(found, tile_um, mpp), tile_um)


def _side_um(found: Found, mpp: tuple[float, float] | None) -> float:
    """Return the side of a tile as files of STAMP 2.0, Isoslide and TRIDENT imply it; 0 where it is not known."""
    if found.unit == "um":
        return found.number("tile_size")
    own = found.number("tile_px") * found.number("mpp")
    return own or (found.number("patch_size_level0") * sum(mpp) / 2 if mpp else 0.0)


def _um_per_unit(found: Found, tile_um: float, mpp: tuple[float, float] | None) -> np.ndarray | None:
    if found.unit == "um":
        return np.ones(2)
    if found.coords is None:
        return None
    if found.unit == "tile_px":
        steps = np.concatenate([np.diff(np.unique(found.coords[:, axis])) for axis in range(2)])
        return np.full(2, tile_um / steps.min()) if tile_um and len(steps) else None
    if mpp is not None:
        return np.array(mpp)
    if found.number("mpp_x") and found.number("mpp_y"):
        return np.array([found.number("mpp_x"), found.number("mpp_y")])
    side_px = found.number("patch_size_level0")
    return np.full(2, tile_um / side_px) if tile_um and side_px else None


def identify(sources: Mapping[str, Source], reference: str, record: Row | None, how: str, tolerance_um: float) -> dict:
    """Return the `Identity` of the tiles of each scan of a specimen.

    Args:
        sources: by scan.
        reference: the scan that the sheet names, or the first of the specimen.
        record: the specimen's registrations; None where there are none.
        how: setting `pairing`.
        tolerance_um: setting `tolerance_um`.
    """
    sizes = {scan: len(source.found.features) for scan, source in sources.items()}
    if how == "none":
        return {scan: pairing.alone(scan, n, "pairing is off") for scan, n in sizes.items()}
    if how == "tile_ids":
        return {scan: _by_ids(scan, source.found, reference) for scan, source in sources.items()}
    reasons = {scan: _no_place(source, how) for scan, source in sources.items()}
    if how == "registered":
        reference = str(record["reference"]) if record else ""
        reasons |= {scan: reasons[scan] or _not_registered(scan, record) for scan in sources}
    elif reasons.get(reference, "absent"):
        reference = next((scan for scan in sorted(sources) if not reasons[scan]), "")
    if reasons.get(reference, "absent"):
        gone = (
            f"the reference scan {reference} has no usable features"
            if reference
            else "no scan of the specimen has places"
        )
        return {scan: pairing.alone(scan, n, reasons[scan] or gone) for scan, n in sizes.items()}
    usable = [scan for scan in sources if not reasons[scan]]
    maps = {
        scan: registration_warp.from_record(record["scans"][scan]) if how == "registered" else None for scan in usable
    }
    centres = {scan: sources[scan].centres for scan in usable}
    found = pairing.by_coordinates(centres, reference, maps, tolerance_um)
    return found | {scan: pairing.alone(scan, sizes[scan], reason) for scan, reason in reasons.items() if reason}


def _by_ids(scan: str, found: Found, reference: str) -> Identity:
    if found.tile_ids is None:
        return pairing.alone(scan, len(found.features), "the file has no tile ids")
    ids = found.tile_ids.astype(np.int64)
    if found.kind != "isoslide" or "paired" not in found.attrs:
        return Identity(ids, reference)
    why = "" if found.attrs["paired"] else "its file says that it is not registered"
    return Identity(ids, str(found.attrs.get("reference", reference)), why)


def _no_place(source: Source, how: str) -> str:
    if source.found.coords is None:
        return "no coordinates"
    if source.um_per_unit is None:
        return "µm of the coordinates not known: give the sheet's mpp, or tile_um in the config"
    if how == "registered" and not source.tile_um:
        return "side of a tile not known: give tile_um in the config"
    return ""


def _not_registered(scan: str, record: Row | None) -> str:
    entry = record["scans"].get(scan) if record else None
    if entry is None:
        return "not in the registrations"
    return "" if entry["status"] == status.OK else f"not registered: {entry['reason']}"


def import_specimen(
    rows: list[Row],
    name: str,
    settings: Mapping[str, Any],
    mpps: Mapping[str, tuple[float, float]],
    record: Row | None,
    results: Path,
) -> list[dict[str, Any]]:
    """Import the features of all scans of a specimen.

    Args:
        rows: of the sheet.
        name: of the set of features.
        settings: its block of the configuration.
        mpps: µm per pixel by scan, where they are known.
        record: the specimen's registrations; None where there are none.
        results: folder of the features files.

    Returns:
        Rows of the status table, with `fingerprint` of the file, `n_paired`, the tiles that another scan of the
        specimen has too, and `why_alone`.
    """
    sources, done = {}, []
    for row in rows:
        try:
            sources[row["scan"]] = read_scan(row, settings, mpps.get(row["scan"]))
        except FeaturesError as error:
            done.append(status.failed(row, error.status, error.reason))
    named = [row["scan"] for row in rows if row["reference"] == "yes"] + sorted(row["scan"] for row in rows)
    names = identify(sources, named[0], record, settings["pairing"], settings["tolerance_um"])
    shared = _shared(names)
    for row in rows:
        if row["scan"] in sources:
            path = results / f"{row['scan']}.h5"
            key = _write(path, name, sources[row["scan"]], names[row["scan"]])
            known = {"specimen": row["specimen"], "scanner": row["scanner"]}
            line = {"scan": row["scan"], "status": status.OK, "path": path, "key": key} | known
            line |= {"n_tiles": len(sources[row["scan"]].found.features), "fingerprint": sources[row["scan"]].digest}
            done.append(line | {"n_paired": shared[row["scan"]], "why_alone": names[row["scan"]].why_alone})
    return done


def _shared(names: Mapping[str, Identity]) -> dict[str, int]:
    """Return by scan how many of its tiles another scan with the same reference has."""
    counts = {
        reference: Counter(
            int(tile)
            for one in names.values()
            if one.reference == reference and not one.why_alone
            for tile in one.tile_ids
        )
        for reference in {one.reference for one in names.values()}
    }
    return {
        scan: 0 if one.why_alone else sum(counts[one.reference][int(tile)] > 1 for tile in one.tile_ids)
        for scan, one in names.items()
    }


def _write(path: Path, name: str, source: Source, identity: Identity) -> str:
    """Write a features file unless it stands, and return its content key."""
    found, order = source.found, np.argsort(identity.tile_ids, kind="stable")
    scale = None if source.um_per_unit is None else source.um_per_unit.tolist()
    attrs = {
        "encoder": name,
        "source": found.kind,
        "source_sha256": source.digest,
        "source_dtype": str(found.features.dtype),
        "reference": identity.reference,
        "paired": not identity.why_alone,
        "n_out_of_bounds": 0,
    }
    for key in ("weights_sha256", "precision"):
        attrs |= {key: found.attrs[key]} if key in found.attrs else {}
    attrs |= {"um_per_unit_x": scale[0], "um_per_unit_y": scale[1]} if scale else {}
    attrs |= {"tile_um": source.tile_um} if source.tile_um else {}
    ids = identity.tile_ids[order]
    where = {"ids": hashlib.sha256(ids.tobytes()).hexdigest(), "unit": found.unit}
    key = keys.content_key(attrs=attrs, code=keys.code_hash(foreign_features), **where)
    if features_file.stored_key(path) != key:
        coords = None if found.coords is None else found.coords[order]
        values = found.features[order].astype(np.float16)
        kept = {name: found.attrs[name] for name in COORDS_ATTRS if name in found.attrs}
        kept |= {"unit": foreign_features.UNIT_NAMES[found.unit]}
        features_file.write(path, values, ids, coords, attrs | {"key": key}, kept)
    return key


COORDS_ATTRS = ("patch_size", "patch_size_level0", "overlap", "level0_width", "level0_height")


def read_record(folder: str, specimen: str) -> dict[str, Any] | None:
    """Return the registrations of a specimen; None where there is no file."""
    path = Path(folder, f"{specimen}.json")
    return json.loads(path.read_text(encoding="utf-8")) if folder and path.exists() else None
