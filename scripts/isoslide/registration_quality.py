"""How good a registration is: error on held-out patches, agreement against chance, tissue covered, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoslide.registration import MIN_NCC, Matches, View, fit, raster
from isoslide.registration_warp import Warp, corrected

FOLDS = 5
MIN_PATCHES = 4  # fewer cannot tell a map from chance


@dataclass(frozen=True)
class Quality:
    """What is known about a map.

    Attributes:
        error_um: median distance between where a patch was found and where a map fitted without it puts it; NaN without
            patches above chance.
        error_p90_um: the 90th percentile of the same.
        ncc: median correlation of the patches.
        agreement: share of patches that correlate better than chance within the limit of where the map puts them.
        overlap: share of the reference's tissue that the other scan shows: the share that falls inside its image, times
            the share of patches there that correlate better than chance. The other scan's outline has no say: scanners'
            outlines differ, and what was not scanned is blank.
        n_patches: patches compared, those the map puts outside the other scan left out.
    """

    error_um: float
    error_p90_um: float
    ncc: float
    agreement: float
    overlap: float
    n_patches: int


def assess(reference: View, other: View, warp: Warp, matches: Matches, settings: Mapping[str, Any]) -> Quality:
    """Return the quality of a map from the patches of its last round."""
    n = len(matches.places)
    errors = held_out_errors(matches, warp, settings)
    sure = matches.ncc > chance_level(matches.null)
    if not sure.any():
        return Quality(float("nan"), float("nan"), 0.0, 0.0, 0.0, n)
    overlap = share_in_image(reference, other, warp) * float(sure.mean())
    median, p90 = np.percentile(errors[sure], (50, 90))
    agreement = float((sure & (errors <= settings["limit_um"])).mean())
    return Quality(float(median), float(p90), float(np.median(matches.ncc)), agreement, overlap, n)


def chance_level(null: np.ndarray) -> float:
    """Return the correlation that one in twenty patches reaches at a wrong place, `MIN_NCC` at least."""
    return max(MIN_NCC, float(np.percentile(null, 95))) if len(null) else 1.0


def follow(matches: Matches, kept: np.ndarray, start: Warp, settings: Mapping[str, Any]) -> Warp:
    """Return the map that the kept patches (n,) bool ask for: an affine near the start's, corrected where it helps."""
    sure = kept & (matches.ncc > chance_level(matches.null))
    places, found = matches.places[sure], matches.found[sure]
    fitted = fit(places, found, start.affine, settings["limit_um"])
    return corrected(fitted, start, places, found, settings["limit_um"], settings["max_correction_um"])


def held_out_errors(matches: Matches, start: Warp, settings: Mapping[str, Any]) -> np.ndarray:
    """Return (n,) µm: each patch against the map, correction included, made from the other four fifths."""
    errors = np.zeros(len(matches.places))
    fold = np.arange(len(errors)) % FOLDS
    for held_out in range(FOLDS):
        rest = fold != held_out
        difference = follow(matches, rest, start, settings).apply(matches.places[~rest]) - matches.found[~rest]
        errors[~rest] = np.hypot(*difference.T)
    return errors


def share_in_image(reference: View, other: View, warp: Warp) -> float:
    """Return the share of the reference's tissue that the map puts inside the other scan."""
    extent = np.array(reference.picture.shape[1::-1]) * reference.um_per_px
    step = max(8.0, float(extent.max()) / 500)
    width, height = (int(n) for n in np.ceil(extent / step))
    rows, cols = np.nonzero(raster(reference.tissue, reference.origin, step, (width, height)))
    if not len(rows):
        return 0.0
    points = warp.apply(np.column_stack([cols + 0.5, rows + 0.5]) * step + reference.origin)
    return float(((points >= 0) & (points <= other.size_um)).all(axis=1).mean())


def verdict(quality: Quality, settings: Mapping[str, Any]) -> str:
    """Return why the map must not be used, or an empty string."""
    if quality.n_patches < MIN_PATCHES:
        return f"too little tissue: {quality.n_patches} patches to compare, {MIN_PATCHES} are needed"
    if quality.agreement < settings["min_agreement"]:
        return (
            f"{quality.agreement:.0%} of {quality.n_patches} patches lie within {settings['limit_um']:g} µm of it, "
            f"below min_agreement {settings['min_agreement']:.0%}: another glass, another section, or distorted"
        )
    if quality.ncc < settings["min_ncc"]:
        return (
            f"patches correlate {quality.ncc:.2f} with the reference's, below min_ncc {settings['min_ncc']:g}: "
            "another section, another stain, or out of focus"
        )
    if quality.error_um > settings["limit_um"]:
        return f"error {quality.error_um:.1f} µm, above limit_um {settings['limit_um']:g}"
    if quality.overlap < settings["min_overlap"]:
        return f"shows {quality.overlap:.0%} of the reference's tissue, below min_overlap {settings['min_overlap']:.0%}"
    return ""
