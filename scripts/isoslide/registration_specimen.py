"""All scans of a specimen onto one of them: the choice of the reference, the record, and a picture to check it by."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from isoslide import registration_coarse, status
from isoslide.registration import IDENTITY, SMALL_PX, Affine, View, compose, fine, measure, spread
from isoslide.registration_coarse import Features
from isoslide.registration_quality import Quality, assess, follow, verdict
from isoslide.registration_warp import Warp, straight

NOT_REGISTERED = "not_registered"
NOTHING_IN_COMMON = "no structure in common with the reference's overview: another glass, or hardly any tissue"
PANEL_PX = 320
BEND_ROUNDS = 3  # of measuring and fitting a correction
RESIDUE_UM = 0.3  # error of an affine map above which a correction is tried; at 0.5 µm/px it is half a pixel
TISSUE_TIE = 0.05  # outlines of one tissue on two scanners differ by some percent
SQUARES = 8  # of the checkerboard along a panel


@dataclass(frozen=True)
class Registration:
    """A scan on a reference: the best map found, its quality, and why it must not be used ("" if it may)."""

    warp: Warp | None
    quality: Quality | None
    reason: str


def register_specimen(
    views: Mapping[str, View], preferred: Sequence[str], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Registration]]:
    """Return the reference scan and the other scans' registrations on it.

    The reference is the first of the preferred scans. Where no other scan can be laid onto it (it may be of another
    glass) and three or more are preferred, the next is tried.
    """
    features = {scan: registration_coarse.find(views[scan]) for scan in sorted(views)} if len(views) > 1 else {}

    def onto(reference: str, scan: str) -> Registration:
        return register((views[reference], features[reference]), (views[scan], features[scan]), settings)

    attempts = []
    for reference in preferred[: max(1, len(preferred) - 1)] if len(views) > 1 else ():
        found = {scan: onto(reference, scan) for scan in sorted(views) if scan != reference}
        attempts.append((reference, found))
        if any(not registration.reason for registration in found.values()):
            return attempts[-1]
    return attempts[0] if attempts else (preferred[0], {})


def preference(tissue_mm2: Mapping[str, float], sharpness: Mapping[str, float], named: Collection[str]) -> list[str]:
    """Return the scans that may be the reference, best first: the named one alone, else all.

    Scans with nearly as much tissue as the one with most come first, the sharpest first; equals by name.
    """
    most = max(tissue_mm2.values())
    close = {scan: area >= (1 - TISSUE_TIE) * most for scan, area in tissue_mm2.items()}
    by_rule = sorted(
        tissue_mm2,
        key=lambda scan: (not close[scan], 0 if close[scan] else -tissue_mm2[scan], -sharpness[scan], scan),
    )
    return [scan for scan in by_rule if scan in named] or by_rule


def register(
    reference: tuple[View, Features], other: tuple[View, Features], settings: Mapping[str, Any]
) -> Registration:
    """Lay one scan onto another; of several candidates the first good one, else the one on which most patches agree."""
    best = Registration(None, None, NOTHING_IN_COMMON)
    rigid = {**settings, "max_correction_um": 0}
    for candidate in registration_coarse.candidates(reference[1], other[1], settings["scale_tolerance"]):
        affine, matches = fine(reference[0], other[0], candidate, settings)
        warp, quality = straight(affine), assess(reference[0], other[0], straight(affine), matches, rigid)
        if not quality.error_um <= RESIDUE_UM and settings["max_correction_um"]:  # also where there is no error
            warp, quality = bend(reference[0], other[0], affine, settings) or (warp, quality)
        registration = Registration(warp, quality, verdict(quality, settings))
        if not registration.reason:
            return registration
        if best.quality is None or quality.agreement > best.quality.agreement:
            best = registration
    return best


def bend(reference: View, other: View, affine: Affine, settings: Mapping[str, Any]) -> tuple[Warp, Quality] | None:
    """Return a map with a smooth correction and its quality, or None where a correction makes nothing better.

    It takes patches of half the side: they are more, and a bend blurs them less. Patches that lay out of reach are
    sought again where the first correction puts them.
    """
    dense = {**settings, "patch_px": max(SMALL_PX, settings["patch_px"] // 2)}
    warp = straight(affine)
    for _ in range(BEND_ROUNDS):
        matches = measure(reference, other, warp, settings["um_per_px"], dense, null=True)
        warp = follow(matches, np.ones(len(matches.places), bool), warp, settings)
        if not warp.bends:
            return None
    return warp, assess(reference, other, warp, matches, settings)


def record(reference: str, registrations: Mapping[str, Registration]) -> dict[str, dict[str, Any]]:
    """Return what the specimen's file says of each scan, rounded (maps to 0.001 µm), so equal runs give equal bytes."""
    scans = {reference: entry(status.OK, "", straight(IDENTITY), Quality(0.0, 0.0, 1.0, 1.0, 1.0, 0))}
    for scan, found in registrations.items():
        state = NOT_REGISTERED if found.reason else status.OK
        scans[scan] = entry(state, found.reason, None if found.reason else found.warp, found.quality)
    return scans


def entry(state: str, reason: str, warp: Warp | None = None, quality: Quality | None = None) -> dict[str, Any]:
    """Return one scan's part of the record; what is not known is None."""
    facts = dict.fromkeys(Quality.__dataclass_fields__)
    if quality is not None:
        facts = {name: _rounded(getattr(quality, name)) for name in facts}
    matrix, correction = None, None
    if warp is not None:  # 1e-8 of 100 mm is 0.001 µm
        matrix = [[round(float(a), 8), round(float(b), 8), round(float(shift), 3)] for a, b, shift in warp.affine]
        correction = warp.record()
    return {"status": state, "reason": reason, "affine": matrix, "correction": correction, **facts}


def checkerboards(reference: View, others: Mapping[str, tuple[View, Registration]], um_per_px: float) -> np.ndarray:
    """Return a (rows, cols, 3) uint8 picture: one row a scan, left its tissue, right a place at `um_per_px`.

    Squares show the reference and the scan in turn: where the map is right, tissue and cells go on across the edges.
    """
    extent = np.array(reference.picture.shape[1::-1]) * reference.um_per_px
    whole = float(extent.max()) / PANEL_PX
    corner = reference.origin - (PANEL_PX * whole - extent) / 2
    centre = spread(reference, 200.0, 1)
    middle = centre[0] if len(centre) else reference.origin + extent / 2
    boxes = [
        np.column_stack([np.eye(2) * whole, corner]),
        np.column_stack([np.eye(2) * um_per_px, middle - PANEL_PX * um_per_px / 2]),
    ]
    # the picture, however fine, is enough for the left panel: reading the slide again would cost more than it shows
    here = [_small(reference, boxes[0], IDENTITY), reference.rgb(boxes[1], (PANEL_PX, PANEL_PX))]
    rows = []
    for scan in sorted(others):
        other, found = others[scan]
        panels = [here[0], here[1]]
        if found.warp is not None:
            local = found.warp.local(middle[None], PANEL_PX * um_per_px)[0]
            there = other.rgb(compose(local, boxes[1]), (PANEL_PX, PANEL_PX))
            panels = [_mixed(here[0], _small(other, boxes[0], found.warp.affine)), _mixed(here[1], there)]
        rows.append(np.vstack([_caption(scan, found), np.hstack(panels)]))
    return np.vstack(rows)


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _small(view: View, box: Affine, affine: Affine) -> np.ndarray:
    """Return the view's picture under a map from panel pixels to the reference's µm, by area where it shrinks."""
    to_scan = compose(affine, box)
    shrink = max(1.0, float(np.hypot(*to_scan[:, 0])) / view.um_per_px)
    small = cv2.resize(view.picture, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    step = np.array(view.picture.shape[1::-1]) * view.um_per_px / small.shape[1::-1]
    to_small = np.column_stack([to_scan[:, :2], to_scan[:, 2] - view.origin]) / step[:, None]
    to_small[:, 2] += to_small[:, :2].sum(axis=1) * 0.5 - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(small, to_small, (PANEL_PX, PANEL_PX), flags=flags, borderValue=(255, 255, 255))


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    square = np.arange(PANEL_PX) * SQUARES // PANEL_PX
    return np.where(((square[:, None] + square) % 2 == 0)[..., None], first, second)


def _caption(scan: str, found: Registration) -> np.ndarray:
    strip = np.full((24, 2 * PANEL_PX, 3), 255, np.uint8)
    error = f"{found.quality.error_um:.2f} um" if found.quality else "no map"
    name = scan.encode("ascii", "replace").decode()  # OpenCV's letters are ASCII
    text = f"{name}  {error}" + (f"  {NOT_REGISTERED}" if found.reason else "")
    return cv2.putText(strip, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
