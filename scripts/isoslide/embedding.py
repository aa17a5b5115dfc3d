"""How much of the scanner is in the features of an encoder, before anything is trained on them.

All of it on a bounded sample of tiles: some specimens, a few places of each, every place on every scan of the specimen
that shares its grid. Cosine similarity throughout; features are neither centred nor rescaled by scanner.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

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
MAX_MAP = 800
"""Tiles on the map, at most."""


@dataclass(frozen=True)
class Sample:
    """Tiles of an encoder: `features` (n, dim) float32 and a row each in `tiles`.

    `tiles` has `scan`, `specimen`, `patient`, `scanner`, `tile_id` and `place`: specimen and tile id where the same
    place was taken from several scans, else empty.
    """

    features: NDArray[np.float32]
    tiles: pd.DataFrame


@dataclass(frozen=True)
class Measured:
    """A number on every row of patient weights (1 + resamples,), of how many tiles, and a remark or why it is not."""

    values: Floats
    n: int
    reason: str = ""

    def row(self, metric: str, scope: str, level: float) -> dict[str, Any]:
        """Return the row of the table."""
        low, high = uncertainty.interval(self.values, level, bounds(metric))
        found = {"value": self.values[0], "low": low, "high": high, "n": self.n, "reason": self.reason}
        return {"metric": metric, "scope": scope} | found


def bounds(metric: str) -> tuple[float, float]:
    """Return the least and greatest possible value of a metric."""
    return (-1, 1) if metric.endswith("cosine") or metric == "croma" else (0, 1)


def draw_weights(tiles: pd.DataFrame, resamples: int, rng: np.random.Generator) -> tuple[Floats, pd.Series]:
    """Return weights (1 + resamples, patients) of the bootstrap over patients, and the column of each patient."""
    patients = np.unique(tiles["patient"].to_numpy(str))
    return uncertainty.draw(np.zeros(patients.size), resamples, rng), pd.Series(range(patients.size), patients)


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


def retrieval(sample: Sample, weights: Floats, index: pd.Series) -> dict[tuple[str, str], Measured]:
    """Return `top1`, `top10`, `same_cosine`, `other_cosine` by (metric, pair of scanners), and `pooled` over all pairs.

    For a tile on one scanner, all sampled tiles of the other are ranked by cosine similarity; `top1` is the share whose
    own place comes first, `top10` within the first ten (higher is better; chance is 1 or 10 by the number of
    candidates); where the other scanner has the place on two scans, either will do. `other_cosine` is over tiles that
    have one of another patient to be compared with. Both directions of a pair count. The candidates stay as they are in
    every resample.

    Args:
        sample: the tiles.
        weights: (1 + resamples, patients), see `draw_weights`.
        index: column of `weights` of each patient.
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
        nothing = Measured(np.full(len(weights), np.nan), 0, "no place was seen on two scanners")
        return {(name, "pooled"): nothing for name in names}
    table["column"] = table["patient"].map(index).to_numpy(dtype=int)
    measured = {}
    for name in names:
        pairs = []
        for scope, group in table.groupby("scope", sort=True):
            reason = f"among {group['candidates'].median():.0f} tiles" if name.startswith("top") else ""
            group = group[np.isfinite(group[name])]
            pairs.append(_mean(weights, group["column"], group[name]))
            measured[name, scope] = Measured(pairs[-1], len(group), reason if len(group) else "only one patient")
        n = int(np.isfinite(table[name]).sum())
        reason = "mean over pairs" if n else "only one patient"
        measured[name, "pooled"] = Measured(uncertainty.over_seeds(np.array(pairs)), n, reason)
    return measured


def _mean(weights: Floats, columns: pd.Series, values: pd.Series) -> Floats:
    """Return the mean of values (n,) with the weights of their patients, NaN where none was drawn."""
    sums, counts = (np.bincount(columns, v, weights.shape[1]) for v in (values, np.ones(len(values))))
    drawn = weights @ counts
    return np.divide(weights @ sums, drawn, out=np.full(len(weights), np.nan), where=drawn > 0)


def _ranked(unit: NDArray[np.float32], queries: pd.DataFrame, candidates: pd.DataFrame) -> pd.DataFrame:
    """Return patient, number of candidates, hits and cosines of each query that has a counterpart."""
    place = {name: i for i, name in enumerate(dict.fromkeys(candidates["place"])) if name}
    queries = queries[queries["place"].isin(place)]
    similarity = unit[queries["row"]] @ unit[candidates["row"]].T
    wanted, found = (rows["place"].map(place).to_numpy(dtype=float) for rows in (queries, candidates))
    own = wanted[:, None] == found[None, :]
    ahead = (similarity > np.where(own, similarity, -np.inf).max(1, keepdims=True, initial=-np.inf)).sum(1)
    same = (similarity * own).sum(1) / own.sum(1)
    foreign = queries["patient"].to_numpy()[:, None] != candidates["patient"].to_numpy()[None, :]
    others = np.divide(
        (similarity * foreign).sum(1), foreign.sum(1), out=np.full(len(own), np.nan), where=foreign.any(1)
    )
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


def scanner_probe(sample: Sample, weights: Floats, index: pd.Series) -> Measured:
    """Return how well a linear model tells the scanner from one tile of a patient it has not seen.

    Balanced accuracy (mean recall over scanners) of a logistic regression on standardised features, five-fold
    cross-validation with whole patients; 1 / scanners is a guess, lower is better. Tiles of a scanner that the fit has
    not seen cannot be told and do not count; a scanner of which none count is left out. The fits stay as they are in
    every resample. Arguments as `retrieval`.
    """
    scanner, patient = sample.tiles["scanner"].to_numpy(str), sample.tiles["patient"].to_numpy(str)
    names, truth = np.unique(scanner, return_inverse=True)
    n_patients = np.unique(patient).size
    if names.size < 2 or n_patients < 2:
        reason = "only one scanner" if names.size < 2 else "only one patient"
        return Measured(np.full(len(weights), np.nan), len(truth), reason)
    right = np.full(truth.size, np.nan)
    for train, test in GroupKFold(min(PROBE_FOLDS, n_patients)).split(sample.features, truth, patient):
        if np.unique(truth[train]).size < 2:
            continue
        # A loose tolerance: more digits of the fit change no decision, but cost minutes on wide features.
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, tol=1e-2))
        told = model.fit(sample.features[train], truth[train]).predict(sample.features[test]) == truth[test]
        right[test] = np.where(np.isin(truth[test], truth[train]), told, np.nan)
    columns, counted = sample.tiles["patient"].map(index).to_numpy(dtype=int), np.isfinite(right)
    groups = [rows for rows in (counted & (truth == one) for one in range(names.size)) if rows.any()]
    if len(groups) < 2:
        return Measured(np.full(len(weights), np.nan), 0, "fewer than two scanners with patients enough")
    values = uncertainty.over_seeds(np.array([_mean(weights, columns[rows], right[rows]) for rows in groups]))
    without = f"; {names.size - len(groups)} scanners of too few patients left out" if len(groups) < names.size else ""
    return Measured(values, int(counted.sum()), f"a guess: {1 / names.size:.2f}{without}")


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
