"""How much of the scanner is in the features of an encoder, before anything is trained on them.

All of it on a bounded sample of tiles: some specimens, a few places of each, every place on every scan of the specimen
that shares its grid. Cosine similarity throughout; features are neither centred nor rescaled by scanner.
"""

import warnings
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import croma
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from isoslide import uncertainty
from isoslide.metrics import Undefined

Floats = NDArray[np.float64]
COLUMNS = ["encoder", "metric", "scope", "value", "low", "high", "n", "reason"]
PROBE_FOLDS = 5
NEIGHBOURS = (5, 11, 25, 51)
MAX_NEIGHBOURS, MAX_MAP = 4000, 800
"""Tiles that nearest neighbours are looked for among, and tiles on the map, at most."""


@dataclass(frozen=True)
class Sample:
    """Tiles of an encoder: `features` (n, dim) float32 and a row each in `tiles`.

    `tiles` has `scan`, `specimen`, `patient`, `scanner`, `tile_id` and `place`: specimen and tile id where the same
    place was taken from several scans, else empty.
    """

    features: NDArray[np.float32]
    tiles: pd.DataFrame


def draw_sample(table: pd.DataFrame, specimens: int, tiles: int, rng: np.random.Generator) -> Sample:
    """Return at most `tiles` places of at most `specimens` specimens.

    Args:
        table: usable scans: `scan`, `specimen`, `patient`, `scanner`, `path` (features file).
        specimens: number of specimens, drawn at random.
        tiles: places of each, drawn at random from those that all its scans of one grid have; a scan with a grid of its
            own gives as many tiles, which are nobody's counterpart.
        rng: random generator.
    """
    names = np.sort(table["specimen"].unique())
    chosen = set(rng.permutation(names)[:specimens])
    features, rows = [], []
    for _, scans in table[table["specimen"].isin(chosen)].groupby("specimen", sort=True):
        contents = [(row, *_read_ids(row["path"])) for row in scans.sort_values("scan").to_dict("records")]
        places = _shared_places([(reference, ids) for _, reference, ids in contents], tiles, rng)
        for row, reference, ids in contents:
            wanted = places.get(reference, np.sort(rng.permutation(ids)[:tiles]))
            at = np.flatnonzero(np.isin(ids, wanted))
            if not at.size:
                continue
            with h5py.File(row["path"], "r") as file:
                features.append(file["features"][at].astype(np.float32))
            keep = {name: row[name] for name in ("scan", "specimen", "patient", "scanner")}
            for tile in ids[at]:
                place = f"{row['specimen']}/{tile}" if reference in places else ""
                rows.append(keep | {"tile_id": int(tile), "place": place})
    if not rows:
        raise Undefined("no tiles")
    return Sample(np.concatenate(features), pd.DataFrame(rows))


def _read_ids(path: str) -> tuple[str, NDArray[np.int64]]:
    with h5py.File(path, "r") as file:
        paired = bool(file.attrs.get("paired", False))
        return str(file.attrs.get("reference", "")) if paired else "", file["tile_ids"][:]


def _shared_places(
    contents: list[tuple[str, NDArray[np.int64]]], tiles: int, rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Return by reference the places that all scans of its grid have, for grids of two or more scans."""
    found = {}
    for reference in sorted({name for name, _ in contents if name}):
        ids = [own for name, own in contents if name == reference]
        common = ids[0]
        for other in ids[1:]:
            common = np.intersect1d(common, other)
        if len(ids) > 1 and common.size:
            found[reference] = np.sort(rng.permutation(common)[:tiles])
    return found


def retrieval(sample: Sample, resamples: int, level: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return rows of `top1`, `top10`, `same_cosine`, `other_cosine` by pair of scanners and over all pairs.

    For a tile on one scanner, all sampled tiles of the other are ranked by cosine similarity; `top1` is the share whose
    own place comes first, `top10` within the first ten (higher is better; chance is 1 or 10 by the number of
    candidates). Both directions of a pair count. Intervals: bootstrap over patients.
    """
    unit = sample.features / np.linalg.norm(sample.features, axis=1, keepdims=True).clip(1e-12)
    tiles = sample.tiles.assign(row=np.arange(len(sample.tiles)))
    names = ("top1", "top10", "same_cosine", "other_cosine")
    queries = []
    for a, b in combinations(sorted(tiles["scanner"].unique()), 2):
        for one, other in ((a, b), (b, a)):
            found = _ranked(unit, tiles[tiles["scanner"] == one], tiles[tiles["scanner"] == other])
            queries.append(found.assign(scope=f"pair:{a}-{b}"))
    table = pd.concat(queries) if queries else pd.DataFrame(columns=["scope", "patient", "candidates", *names])
    if table.empty:
        reason = "no place was seen on two scanners"
        return [_row(name, "pooled", np.array([np.nan]), level, 0, reason) for name in names]
    patients, index = np.unique(table["patient"].to_numpy(str), return_inverse=True)
    weights = uncertainty.draw(np.zeros(patients.size), resamples, rng)
    rows = []
    for name in names:
        pairs = []
        for scope, group in table.assign(index=index).groupby("scope", sort=True):
            sums = np.bincount(group["index"], group[name], patients.size)
            counts = np.bincount(group["index"], minlength=patients.size)
            drawn = weights @ counts
            pairs.append(np.divide(weights @ sums, drawn, out=np.full(len(weights), np.nan), where=drawn > 0))
            reason = f"among {group['candidates'].median():.0f} tiles" if name.startswith("top") else ""
            rows.append(_row(name, scope, pairs[-1], level, len(group), reason))
        rows.append(_row(name, "pooled", uncertainty.over_seeds(np.array(pairs)), level, len(table), "mean over pairs"))
    return rows


def _ranked(unit: NDArray[np.float32], queries: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return patient, number of candidates, hits and cosines of each query that has a counterpart."""
    place = {name: i for i, name in enumerate(candidates["place"]) if name}
    queries = queries[queries["place"].isin(place)]
    similarity = unit[queries["row"]] @ unit[candidates["row"]].T
    own = np.array([place[name] for name in queries["place"]], dtype=int)
    same = similarity[np.arange(len(own)), own]
    ahead = (similarity > same[:, None]).sum(1)
    foreign = queries["patient"].to_numpy()[:, None] != candidates["patient"].to_numpy()[None, :]
    others = np.divide((similarity * foreign).sum(1), foreign.sum(1), out=np.zeros(len(own)), where=foreign.any(1))
    return pd.DataFrame(
        {
            "patient": queries["patient"].to_numpy(),
            "candidates": len(candidates),
            "top1": (ahead < 1).astype(float),
            "top10": (ahead < 10).astype(float),
            "same_cosine": same.astype(float),
            "other_cosine": others.astype(float),
        }
    )


def scanner_probe(sample: Sample, resamples: int, level: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return how well a linear model tells the scanner from one tile of a patient it has not seen.

    Balanced accuracy (mean recall over scanners) of a logistic regression on standardised features, five-fold
    cross-validation with whole patients; 1 / scanners is a guess, lower is better. Interval: bootstrap over patients.
    """
    scanner, patient = sample.tiles["scanner"].to_numpy(str), sample.tiles["patient"].to_numpy(str)
    names, truth = np.unique(scanner, return_inverse=True)
    patients, index = np.unique(patient, return_inverse=True)
    if names.size < 2 or patients.size < 2:
        reason = "only one scanner" if names.size < 2 else "only one patient"
        return _row("scanner_probe", "pooled", np.array([np.nan]), level, len(truth), reason)
    right = np.zeros(truth.size)
    for train, test in GroupKFold(min(PROBE_FOLDS, patients.size)).split(sample.features, truth, patient):
        if np.unique(truth[train]).size < 2:
            continue
        # A loose tolerance: more digits of the fit change no decision, but cost minutes on wide features.
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, tol=1e-2))
        right[test] = model.fit(sample.features[train], truth[train]).predict(sample.features[test]) == truth[test]
    weights = uncertainty.draw(np.zeros(patients.size), resamples, rng)
    recalls = []
    for number in range(names.size):
        ours = truth == number
        hits, counts = (np.bincount(index[ours], v[ours], patients.size) for v in (right, np.ones(truth.size)))
        drawn = weights @ counts
        recalls.append(np.divide(weights @ hits, drawn, out=np.full(len(weights), np.nan), where=drawn > 0))
    value = uncertainty.over_seeds(np.array(recalls))
    return _row("scanner_probe", "pooled", value, level, len(truth), f"a guess: {1 / names.size:.2f}")


def neighbours(sample: Sample, classes: pd.Series, task: str) -> list[dict[str, Any]]:
    """Return robustness index, MaRI and CRoMa of a task's classes against the scanners, by the `croma` package.

    They look at the nearest tiles of other patients: of the same class on another scanner, against another class on the
    same scanner. Robustness index and MaRI: 0 to 1, 0.5 = the scanner counts as much as the class; CRoMa: -1 to 1, 0 =
    the same; higher is better. Sources: the package's; de Jong et al. 2025 for the index.

    Args:
        sample: tiles; those of scans without a class are left out.
        classes: class of each scan (index: scan).
        task: name of the task, written as scope.
    """
    label = sample.tiles["scan"].map(classes).fillna("")
    used = np.flatnonzero((label != "").to_numpy())
    used = used[np.linspace(0, used.size - 1, min(used.size, MAX_NEIGHBOURS)).astype(int)] if used.size else used
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
    rows = []
    for name, call in (("robustness_index", croma.RI), ("mari", croma.MaRI), ("croma", croma.CRoMa)):
        value, reason = np.nan, _missing(manifest)
        if not reason:
            value, reason = _neighbour_value(call, sample.features[used], manifest)
        rows.append(_row(name, task, np.array([value]), 0.95, len(tiles), reason))
    return rows


def _missing(manifest: pd.DataFrame) -> str:
    if manifest["label"].nunique() < 2:
        return "only one class"
    return "only one scanner" if manifest["scanner"].nunique() < 2 else ""


def _neighbour_value(call: Any, features: NDArray[np.float32], manifest: pd.DataFrame) -> tuple[float, str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if call is croma.CRoMa:
                result = call.compute(features, manifest, confounder_column="scanner")
                return float(
                    result.value
                ), f"{100 * result.f0:.0f} % of the tiles lie nearer to another class on their scanner"
            candidates = [k for k in NEIGHBOURS if k < len(manifest)] or [1]
            result = call.compute(features, manifest, confounder_column="scanner", k_candidates=candidates)
        except RuntimeError as error:  # the package's word for too few neighbours
            return np.nan, " ".join(str(error).split())[:200]
    reason = f"k = {result.k}, {100 * result.support:.0f} % of the tiles have such neighbours"
    return float(result.value), f"{reason}; {said[0].message}"[:200] if said else reason


def plane(sample: Sample, seed: int) -> pd.DataFrame:
    """Return the tiles, `MAX_MAP` at most, with `x` and `y` of a t-SNE map (first 30 principal components).

    Distances between far clusters and their sizes mean nothing in such a map (van der Maaten & Hinton 2008).
    """
    keep = np.linspace(0, len(sample.tiles) - 1, min(len(sample.tiles), MAX_MAP)).astype(int)
    unit = sample.features[keep] / np.linalg.norm(sample.features[keep], axis=1, keepdims=True).clip(1e-12)
    tiles = sample.tiles.iloc[keep].reset_index(drop=True)
    if len(keep) < 10:
        return tiles.iloc[:0].assign(x=0.0, y=0.0)
    reduced = PCA(min(30, *unit.shape), random_state=seed).fit_transform(unit)
    perplexity = min(30, (len(keep) - 1) / 3)
    points = TSNE(random_state=seed, init="pca", perplexity=perplexity).fit_transform(reduced)
    return tiles.assign(x=points[:, 0], y=points[:, 1])


def _row(metric: str, scope: str, values: Floats, level: float, n: int, reason: str) -> dict[str, Any]:
    bounds = (-1, 1) if metric.endswith("cosine") else (0, 1)
    low, high = uncertainty.interval(values, level, bounds) if values.size > 2 else (np.nan, np.nan)
    return {"metric": metric, "scope": scope, "value": values[0], "low": low, "high": high, "n": n, "reason": reason}
