"""What lies nearest to a tile, its class on another scanner or another class on its scanner: robustness index, MaRI and
CRoMa by the `croma` package, with intervals over patients.

The package gives the values. Their intervals take what the values are made of, tile by tile, and draw whole patients
with replacement as elsewhere; the neighbours of a tile stay as they are (as in the package's own bootstrap of medians).
"""

import warnings
from typing import Any

import croma
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoslide.embedding import Measured, Sample

Floats = NDArray[np.float64]
NEIGHBOURS = (5, 11, 25, 51)
MAX_TILES = 4000
"""Tiles that neighbours are looked for among, at most."""

CHUNK = 4_000_000
"""Weights at a time in a median."""

CALLS = {"robustness_index": croma.RI, "mari": croma.MaRI, "croma": croma.CRoMa}


def neighbours(sample: Sample, classes: pd.Series, weights: Floats, index: pd.Series) -> dict[str, Measured]:
    """Return robustness index, MaRI and CRoMa of a task's classes against the scanners.

    They look at the nearest tiles of other patients. Robustness index: of those that are of the same class on another
    scanner, or of another class on the same scanner, the share of the former, at the number of neighbours that tells
    the class best; MaRI weighs them by similarity. 0 to 1, 0.5 = the scanner counts as much as the class. CRoMa: the
    median over tiles of (d - e) / (d + e), e the mean cosine distance to the five nearest tiles of the former kind, d
    to those of the latter; -1 to 1, 0 = the same. Higher is better. Sources: the package; de Jong et al. 2025 for the
    index.

    Args:
        sample: tiles; those of scans without a class are left out.
        classes: class of each scan (index: scan).
        weights: (1 + resamples, patients), see `uncertainty.draw`.
        index: column of `weights` of each patient.
    """
    label = sample.tiles["scan"].map(classes).fillna("")
    used = np.flatnonzero((label != "").to_numpy())
    used = used[np.linspace(0, used.size - 1, min(used.size, MAX_TILES)).astype(int)] if used.size else used
    tiles = sample.tiles.iloc[used].reset_index(drop=True)
    manifest = pd.DataFrame(
        {
            "sample_id": [str(i) for i in range(len(tiles))],
            "image_path": "",
            "label": label.iloc[used].to_numpy(str),
            "scanner": tiles["scanner"],
            "group_id": tiles["patient"],
        }
    )
    features, columns = sample.features[used], tiles["patient"].map(index).to_numpy(dtype=int)
    found = {}
    for name, call in CALLS.items():
        values, reason = np.full(len(weights), np.nan), _missing(manifest)
        if not reason:
            values, reason = _values(call, features, manifest, weights, columns)
        found[name] = Measured(values, len(tiles), reason)
    return found


def evidence(
    features: NDArray[np.float32], manifest: pd.DataFrame, k: int, tau: float = np.nan
) -> tuple[Floats, Floats]:
    """Return what speaks for the class and for the scanner among the k nearest tiles of other patients of each tile.

    (n,) each: neighbours of the same class on another scanner, and of another class on the same scanner; with `tau`
    each counts exp(-cosine distance / tau). The index is the sum of the first over the sum of both.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    label, scanner, group = (pd.factorize(manifest[name])[0] for name in ("label", "scanner", "group_id"))
    same, other = np.zeros(len(unit)), np.zeros(len(unit))
    for rows in np.array_split(np.arange(len(unit)), max(1, len(unit) ** 2 // CHUNK)):
        distance = (1 - unit[rows] @ unit.T).astype(float)
        distance[group[rows][:, None] == group[None, :]] = np.inf
        near = np.argsort(distance, axis=1, kind="stable")[:, :k]
        distance = np.take_along_axis(distance, near, 1)
        weight = np.isfinite(distance) * (np.exp(-distance / tau) if np.isfinite(tau) else 1.0)
        of_class, on_scanner = label[near] == label[rows][:, None], scanner[near] == scanner[rows][:, None]
        same[rows] = np.sum(weight * (of_class & ~on_scanner), axis=1)
        other[rows] = np.sum(weight * (~of_class & on_scanner), axis=1)
    return same, other


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """Return the median (resamples,) of values (n,) that are each listed as often as weights (resamples, n) say."""
    order = np.argsort(values, kind="stable")
    values, result = values[order], np.full(len(weights), np.nan)
    for rows in np.array_split(np.arange(len(weights)), max(1, weights.size // CHUNK)):
        reached = np.cumsum(weights[rows][:, order], axis=1)
        total = reached[:, -1:]
        middle = [values[np.argmax(reached > (total + shift) // 2, axis=1)] for shift in (-1, 0)]
        result[rows] = np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)
    return result


def _missing(manifest: pd.DataFrame) -> str:
    if manifest["label"].nunique() < 2:
        return "only one class"
    return "only one scanner" if manifest["scanner"].nunique() < 2 else ""


def _values(
    call: Any, features: NDArray[np.float32], manifest: pd.DataFrame, weights: Floats, columns: NDArray[np.int64]
) -> tuple[Floats, str]:
    """Return the value on every row of weights, the first being the package's own, and a remark."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if call is croma.CRoMa:
                result = call.compute(features, manifest, confounder_column="scanner")
                values = weighted_median(np.asarray(result.sample_values_aligned, dtype=float), weights[:, columns])
                reason = f"{100 * result.f0:.0f} % of the tiles lie nearer to another class on their scanner"
                return np.append(float(result.value), values[1:]), reason
            candidates = [k for k in NEIGHBOURS if k < len(manifest)] or [1]
            result = call.compute(features, manifest, confounder_column="scanner", k_candidates=candidates)
        except RuntimeError as error:  # the package's word for too few neighbours
            return np.full(len(weights), np.nan), " ".join(str(error).split())[:200]
    same, other = evidence(features, manifest, result.k, result.tau)
    ours, both = (weights @ np.bincount(columns, part, weights.shape[1]) for part in (same, same + other))
    values = np.divide(ours, both, out=np.full(len(weights), np.nan), where=both > 0)
    reason = f"k = {result.k}, {100 * result.support:.0f} % of the tiles have such neighbours"
    return np.append(float(result.value), values[1:]), f"{reason}; {said[0].message}"[:200] if said else reason
