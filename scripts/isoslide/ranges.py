"""Where the scans of a training cohort lie, and whether a new scan lies outside: scanner, µm/px, colours, features.

Everything is of training scans alone. Colours are mean and SD of red, green and blue over a scan's tissue, as the
tissue stage measures them. Of the features, the mean over a scan's tiles is compared: the distance of two scans is

    sqrt(mean over the features of ((a - b) / s)^2),    s: SD of the training scans' means,

and a scan's distance to the cohort is that to the nearest training scan. What distances are usual is told by the
training scans themselves, each against the nearest scan of another patient.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from isoslide import atomic
from isoslide.summaries import Summaries

COLOURS = ("red_mean", "green_mean", "blue_mean", "red_sd", "green_sd", "blue_sd")
SLIDE_COLUMNS = ("mpp_x", "mpp_y", *COLOURS)  # of the status tables of checks and tissue
WORDS = {"mean": "{colour} in the mean", "sd": "SD of {colour}"}
MPP_TOLERANCE = 0.02  # relative; what files of one scanner differ by
COLOUR_TAILS = (0.005, 0.995)  # quantiles of the training scans; of fewer than 200 nearly the smallest and the largest
DISTANCE_QUANTILE = 0.99
MOST_SCANS = 2000  # training scans, at most, whose means are kept: 12 MB of 1,536 features


@dataclass(frozen=True)
class Range:
    """Where the training scans lie.

    Attributes:
        scanners: number of training scans of each scanner.
        mpp: (2,) smallest and largest µm/px; NaN where no slide was opened.
        colours: (2, 6) low and high quantile of each of `COLOURS`; NaN where no slide was opened.
        mean: (dim,) of the features, over scans.
        sd: (dim,) of the tiles' features about that mean, every scan weighing the same.
        scale: (dim,) SD of the scans' means; 1 where they are all the same.
        references: (r, dim) means of training scans.
        distances: (d,) of training scans to the nearest scan of another patient, sorted; empty with one patient.
    """

    scanners: Mapping[str, int]
    mpp: np.ndarray
    colours: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray
    references: np.ndarray
    distances: np.ndarray

    @property
    def limit(self) -> float:
        """Distance that 99 % of the training scans do not exceed; infinite where there is none."""
        return float(np.quantile(self.distances, DISTANCE_QUANTILE)) if len(self.distances) else float("inf")


TENSORS = ("mpp", "colours", "mean", "sd", "scale", "references", "distances")


def build(scans: pd.DataFrame, features: Summaries) -> Range:
    """Return the range of training scans.

    Args:
        scans: a row per training scan: scan, patient, scanner, and where slides were opened mpp_x, mpp_y and `COLOURS`.
        features: of these scans, in the same order.
    """
    means = features.means.astype(np.float64)
    centre = means.mean(0)
    within = features.variances.astype(np.float64)
    between = means.std(0)
    scale = np.where(between > 0, between, 1.0)
    kept = _sample(scans["scan"].tolist())
    patients = scans["patient"].to_numpy(str)[kept]
    references = means[kept]
    return Range(
        scanners={str(name): int(n) for name, n in scans["scanner"].value_counts().sort_index().items()},
        mpp=_mpp(scans),
        colours=_colours(scans),
        mean=centre.astype(np.float32),
        sd=np.sqrt((within + np.square(means - centre)).mean(0)).astype(np.float32),
        scale=scale.astype(np.float32),
        references=references.astype(np.float32),
        distances=np.sort(_apart(references, patients, scale)).astype(np.float32),
    )


def distances(points: np.ndarray, found: Range) -> np.ndarray:
    """Return the distance (n,) of scans' mean features (n, dim) to the nearest training scan."""
    return np.array([_distance(point, found.references, found.scale).min() for point in points])


def reasons(scan: Mapping[str, str], distance: float, found: Range) -> list[str]:
    """Return in words, one by one, what puts a scan outside the range; nothing where it is inside.

    Args:
        scan: scanner, and where the slide was opened mpp_x, mpp_y and `COLOURS`, as text.
        distance: of its features to the nearest training scan.
        found: the range.
    """
    words = []
    if scan["scanner"] not in found.scanners:
        words.append(f"scanner {scan['scanner']!r} did not train, only {', '.join(map(repr, found.scanners))}")
    low, high = found.mpp
    for value in sorted({float(scan[name]) for name in ("mpp_x", "mpp_y") if scan.get(name)}):
        if not low * (1 - MPP_TOLERANCE) <= value <= high * (1 + MPP_TOLERANCE) and np.isfinite(low):
            words.append(f"{value:.4g} µm/px, training scans {_between(low, high, 4)}")
    for name, low, high in zip(COLOURS, *found.colours, strict=True):
        if scan.get(name) and np.isfinite(low) and not low <= float(scan[name]) <= high:
            colour, _, kind = name.partition("_")
            words.append(
                f"{WORDS[kind].format(colour=colour)} {float(scan[name]):.3g}, training scans {_between(low, high)}"
            )
    if distance > found.limit:
        words.append(
            f"features {distance:.3g} from the nearest training scan, 99 % of training scans within {found.limit:.3g}"
        )
    return words


def write(path: str | Path, found: Range) -> None:
    """Write a range as safetensors; the scanners stand in the header."""
    tensors = {name: np.ascontiguousarray(getattr(found, name), dtype=np.float32) for name in TENSORS}
    header = {"scanners": json.dumps(dict(found.scanners), sort_keys=True)}  # of one key: their order is not kept
    with atomic.output(path) as temporary:
        save_file(tensors, temporary, header)


def read(path: str | Path) -> Range:
    """Read what `write` wrote."""
    with safe_open(path, "numpy") as file:
        scanners = json.loads(file.metadata()["scanners"])
        return Range(scanners, *(file.get_tensor(name) for name in TENSORS))


def _mpp(scans: pd.DataFrame) -> np.ndarray:
    if "mpp_x" not in scans:
        return np.full(2, np.nan)
    values = scans[["mpp_x", "mpp_y"]].astype(float).to_numpy()
    return np.array([values.min(), values.max()])


def _colours(scans: pd.DataFrame) -> np.ndarray:
    if COLOURS[0] not in scans:
        return np.full((2, len(COLOURS)), np.nan)
    return np.quantile(scans[list(COLOURS)].astype(float).to_numpy(), COLOUR_TAILS, axis=0)


def _distance(point: np.ndarray, others: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square((others - point) / scale).mean(-1))


def _apart(references: np.ndarray, patients: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the distance of each scan to the nearest of another patient; nothing where there is one patient only."""
    if len(set(patients)) < 2:
        return np.zeros(0)
    return np.array(
        [
            _distance(point, references[patients != patient], scale).min()
            for point, patient in zip(references, patients, strict=True)
        ]
    )


def _sample(scans: Sequence[str]) -> np.ndarray:
    """Return the places of at most `MOST_SCANS` scans, the same whatever the order and the other scans."""
    ranked = sorted(range(len(scans)), key=lambda i: hashlib.sha256(scans[i].encode()).digest())
    return np.array(sorted(ranked[:MOST_SCANS]), dtype=np.int64)


def _between(low: float, high: float, digits: int = 3) -> str:
    return f"{low:.{digits}g}" if low == high else f"{low:.{digits}g} to {high:.{digits}g}"
