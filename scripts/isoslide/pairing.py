"""Which imported tiles of a specimen's scans show the same place: by the ids that files carry, or by coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from isoslide.registration_warp import Warp

OWN = 10**12  # ids of tiles that are nobody's counterpart lie above it, apart for each scan


@dataclass(frozen=True)
class Identity:
    """Names of the tiles of one scan.

    Attributes:
        tile_ids: (n,) int64; equal ids of two scans with one reference are the same place.
        reference: scan whose tiles the ids count.
        why_alone: why the scan cannot be one of a pair; empty where it can.
    """

    tile_ids: np.ndarray
    reference: str
    why_alone: str = ""


def alone(scan: str, n_tiles: int, reason: str) -> Identity:
    """Return the ids of a scan that is used, but never as one of a pair."""
    return Identity(np.arange(n_tiles, dtype=np.int64), scan, reason)


def by_coordinates(
    centres: Mapping[str, np.ndarray], reference: str, maps: Mapping[str, Warp | None], tolerance_um: float
) -> dict[str, Identity]:
    """Return the ids of each scan's tiles: those of the reference's tiles that they show, or ids of their own.

    Two tiles are one place if each is the other's nearest and their centres are at most `tolerance_um` apart.

    Args:
        centres: by scan (n, 2) µm of the scan; the reference must be among them.
        reference: its tiles are counted in their order.
        maps: by scan, from µm of the reference to µm of the scan; None where both have one frame.
        tolerance_um: largest distance.
    """
    places = centres[reference]
    found = {reference: Identity(np.arange(len(places), dtype=np.int64), reference)}
    for number, scan in enumerate(sorted(set(centres) - {reference}), start=1):
        warp = maps[scan]
        target = places if warp is None else warp.apply(places)
        distance, nearest = cKDTree(centres[scan]).query(target)
        _, back = cKDTree(target).query(centres[scan])
        same = (distance <= tolerance_um) & (back[nearest] == np.arange(len(target)))
        ids = OWN * number + np.arange(len(centres[scan]), dtype=np.int64)
        ids[nearest[same]] = np.flatnonzero(same)
        if same.any():
            found[scan] = Identity(ids, reference)
        else:
            reason = (
                f"no tile within {tolerance_um:g} µm of one of {reference}: {np.median(distance):.0f} µm in the median"
            )
            found[scan] = alone(scan, len(ids), reason)
    return found
