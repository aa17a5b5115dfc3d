"""A map between two scans that an affine does not describe to the end: the affine, and a smooth correction of it.

A scanner's stage distorts smoothly, and neighbouring strips are stitched with small offsets, by some micrometres. The
correction is a smoothing thin-plate spline (scipy) through the patches' remaining shifts. It is kept only where it puts
patches that it was not fitted to closer than the affine does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import RBFInterpolator

SMOOTHINGS = (0.001, 0.01, 0.1)  # of places scaled to a box of side 1; larger is stiffer
FEWEST = 16  # patches; fewer cannot tell a bend from chance
NEIGHBOURS = 6  # a patch must move like the median of so many around it, or it is a false match
FOLDS = 4
MIN_GAIN = 0.85  # held-out error over the affine's must be below it
REACH = 0.15
MIN_GAIN_UM = 0.05  # ... and lower by as much: less does not matter to any tile

Affine = np.ndarray  # (2, 3)


@dataclass(frozen=True)
class Warp:
    """From the reference scan's µm to another scan's µm.

    Attributes:
        affine: (2, 3), the map without its correction.
        places: (n, 2) µm of the reference where the correction was measured; none for an affine map.
        shifts: (n, 2) µm of the other scan, to be added there.
        smoothing: of the spline.
    """

    affine: Affine
    places: np.ndarray
    shifts: np.ndarray
    smoothing: float

    @property
    def bends(self) -> bool:
        """Whether there is a correction."""
        return len(self.places) > 0

    @cached_property
    def _spline(self) -> RBFInterpolator:
        return _spline(self.places, self.shifts, self.smoothing, self._frame)

    @cached_property
    def _frame(self) -> tuple[np.ndarray, float]:
        low, high = self.places.min(axis=0), self.places.max(axis=0)
        return low, float((high - low).max())

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Return the points (n, 2) in the other scan."""
        found = points @ self.affine[:, :2].T + self.affine[:, 2]
        return found + self.correction(points) if self.bends and len(points) else found

    def correction(self, points: np.ndarray) -> np.ndarray:
        """Return what is added to the affine's points, (n, 2) µm of the other scan.

        It is extrapolated by `REACH` of the patches' box and the same from there on: nothing was measured there.
        """
        low, side = self._frame
        high = (self.places.max(axis=0) - low) / side
        return self._spline(np.clip((points - low) / side, -REACH, high + REACH))

    def local(self, centres: np.ndarray, side_um: float) -> np.ndarray:
        """Return for squares of `side_um` about the centres (n, 2) the affine (n, 2, 3) that is right in each."""
        if not self.bends or not len(centres):
            return np.broadcast_to(self.affine, (len(centres), 2, 3))
        half = side_um / 2
        maps = np.empty((len(centres), 2, 3))
        for axis in range(2):
            step = np.zeros(2)
            step[axis] = half
            maps[:, :, axis] = (self.apply(centres + step) - self.apply(centres - step)) / side_um
        maps[:, :, 2] = self.apply(centres) - np.einsum("nij,nj->ni", maps[:, :, :2], centres)
        return maps

    def record(self) -> dict[str, Any] | None:
        """Return the correction as the specimen's file holds it, rounded to 0.001 µm; None for an affine map."""
        if not self.bends:
            return None
        lists = {name: np.round(getattr(self, name), 3).tolist() for name in ("places", "shifts")}
        largest = float(np.hypot(*self.correction(self.places).T).max())
        return {**lists, "smoothing": self.smoothing, "largest_um": round(largest, 3)}


def straight(affine: Affine) -> Warp:
    """Return the map that is the affine alone."""
    return Warp(np.asarray(affine, float), np.empty((0, 2)), np.empty((0, 2)), 0.0)


def from_record(entry: Mapping[str, Any]) -> Warp:
    """Return the map of a scan's part of the specimen's file."""
    kept = entry.get("correction")
    if not kept:
        return straight(entry["affine"])
    arrays = (np.array(value, float) for value in (entry["affine"], kept["places"], kept["shifts"]))
    return Warp(*arrays, smoothing=kept["smoothing"])


def corrected(
    affine: Affine, start: Warp, places: np.ndarray, found: np.ndarray, limit_um: float, most_um: float
) -> Warp:
    """Return the affine with the correction that the patches ask for, or without one.

    Args:
        affine: fitted to the patches.
        start: a map near the right one; where it bends already, patches that bend with it are no outliers.
        places: (n, 2) µm in the reference, of patches that correlate better than chance.
        found: (n, 2) µm in the other scan.
        limit_um: a patch farther from what its neighbours say is a false match.
        most_um: a correction larger than this anywhere is none: scanners do not bend that much, sections do.
    """
    plain = straight(affine)
    kept = _like_neighbours(places, found - start.apply(places), limit_um)
    if kept.sum() < FEWEST or not most_um:
        return plain
    places, found = places[kept], found[kept]
    linear = np.linalg.lstsq(_with_one(places), found, rcond=None)[0].T
    shifts = found - straight(linear).apply(places)
    errors = {smoothing: _held_out(places, shifts, smoothing) for smoothing in (None, *SMOOTHINGS)}
    best = min(SMOOTHINGS, key=errors.__getitem__)
    if errors[best] > min(MIN_GAIN * errors[None], errors[None] - MIN_GAIN_UM):
        return plain
    warp = Warp(linear, places, shifts, best)
    return warp if np.hypot(*warp.correction(places).T).max() <= most_um else plain


def _spline(
    places: np.ndarray, shifts: np.ndarray, smoothing: float, frame: tuple[np.ndarray, float]
) -> RBFInterpolator:
    return RBFInterpolator((places - frame[0]) / frame[1], shifts, kernel="thin_plate_spline", smoothing=smoothing)


def _like_neighbours(places: np.ndarray, shifts: np.ndarray, limit_um: float) -> np.ndarray:
    if len(places) <= NEIGHBOURS:
        return np.zeros(len(places), bool)
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    around = np.argsort(distance, axis=1, kind="stable")[:, 1 : NEIGHBOURS + 1]
    return np.hypot(*(shifts - np.median(shifts[around], axis=1)).T) <= limit_um


def _held_out(places: np.ndarray, shifts: np.ndarray, smoothing: float | None) -> float:
    """Return the mean distance in µm of held-out patches from a spline, or from an affine (None) of the others."""
    low, high = places.min(axis=0), places.max(axis=0)
    frame = low, max(1e-6, float((high - low).max()))
    fold = np.arange(len(places)) % FOLDS
    errors = np.empty(len(places))
    for out in range(FOLDS):
        rest, held = fold != out, fold == out
        if smoothing is None:
            guess = _with_one(places[held]) @ np.linalg.lstsq(_with_one(places[rest]), shifts[rest], rcond=None)[0]
        else:
            guess = _spline(places[rest], shifts[rest], smoothing, frame)((places[held] - low) / frame[1])
        errors[held] = np.hypot(*(guess - shifts[held]).T)
    return float(errors.mean())


def _with_one(places: np.ndarray) -> np.ndarray:
    return np.column_stack([places, np.ones(len(places))])
