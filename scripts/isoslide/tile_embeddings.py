"""How much of the scanner is left in the tile embeddings of trained models: the measures of `embedding.py` before and
after the tile network, on tiles of scans that the model was neither trained nor selected on.

Of every fold (the first `MAX_FOLDS`) the model of the lowest seed is looked at, on a sample of the fold's own test
specimens: embeddings of different models lie in different spaces and are never mixed. "Before" is the encoder's
features of the same tiles. Numbers are means over folds, weighted with tiles; an interval draws whole patients, the
same ones before and after, so that a change has an interval of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from isoslide import aggregators, embedding, models, neighbours, uncertainty
from isoslide.embedding import Measured, Sample
from isoslide.metrics import Undefined

MAX_FOLDS = 5
COLUMNS = ["metric", "before", "before_low", "before_high", "after", "after_low", "after_high"]
COLUMNS += ["change", "change_low", "change_high", "folds", "n", "reason"]

Values = dict[str, Measured]


@dataclass(frozen=True)
class Fold:
    """The sampled test tiles of a fold, with bootstrap weights (1 + resamples, patients) and the patients' columns."""

    name: str
    sample: Sample
    weights: NDArray[np.float64]
    index: pd.Series


def draw_folds(
    scans: pd.DataFrame, paths: Mapping[str, str], settings: Mapping[str, int], rng: np.random.Generator
) -> list[Fold]:
    """Return a sample of the test tiles of each fold that has a model; a share of `sample_specimens` for each.

    Args:
        scans: usable test scans: `fold`, `scan`, `specimen`, `patient`, `scanner`, `path` (features file).
        paths: file of the model of each fold.
        settings: `sample_specimens`, `sample_tiles`, `resamples`.
        rng: random generator.

    Raises:
        Undefined: if no fold has a model and a tile.
    """
    names = sorted(set(scans["fold"]) & set(paths), key=int)[:MAX_FOLDS]
    if not names:
        raise Undefined("no model of a fold with test scans that have features")
    weights, index = embedding.draw_weights(scans[scans["fold"].isin(names)], settings["resamples"], rng)
    specimens = max(2, settings["sample_specimens"] // max(1, len(names)))
    folds = []
    for name in names:
        try:
            sample = embedding.draw_sample(scans[scans["fold"] == name], specimens, settings["sample_tiles"], rng)
        except Undefined:
            continue
        folds.append(Fold(name, sample, weights, index))
    if not folds:
        raise Undefined("no tiles")
    return folds


def embed(path: str, sample: Sample) -> Sample:
    """Return the sample as the tile network of a model sees it: what the embedding loss compares, in evaluation."""
    groups = [sample.tiles["scanner"].to_numpy(str)] if models.harmonised([path]) else []
    names = np.unique(groups[0]) if groups else [None]
    found = None
    for name in names:
        rows = np.flatnonzero(groups[0] == name) if groups else np.arange(len(sample.tiles))
        state, shape = models.load(path, name)
        tiles = aggregators.embed(state, shape, torch.from_numpy(sample.features[rows]))[0].float().numpy()
        found = np.zeros((len(sample.tiles), tiles.shape[1]), dtype=np.float32) if found is None else found
        found[rows] = tiles
    return replace(sample, features=found)


def measure(fold: Fold, sample: Sample, classes: pd.Series) -> Values:
    """Return every pooled measure of a sample of the fold, in features of whatever kind."""
    if not np.isfinite(sample.features).all():
        nothing = np.full(len(fold.weights), np.nan)
        names = ("top1", "top10", "same_cosine", "other_cosine", "scanner_probe", *neighbours.CALLS)
        return {name: Measured(nothing, len(sample.tiles), "embeddings are not finite") for name in names}
    retrieved = embedding.retrieval(sample, fold.weights, fold.index)
    found = {metric: measured for (metric, scope), measured in retrieved.items() if scope == "pooled"}
    found["scanner_probe"] = embedding.scanner_probe(sample, fold.weights, fold.index)
    return found | neighbours.neighbours(sample, classes, fold.weights, fold.index)


def plane(sample: Sample, seed: int) -> pd.DataFrame:
    """Return the map of a sample, see `embedding.plane`; empty where embeddings are not finite."""
    if np.isfinite(sample.features).all():
        return embedding.plane(sample, seed)
    return sample.tiles.iloc[:0].assign(x=0.0, y=0.0)


def over_folds(parts: Sequence[Values]) -> Values:
    """Return means over folds, weighted with tiles; folds without a value do not count, and the remark says why."""
    found = {}
    for name in parts[0]:
        own = [part[name] for part in parts]
        values = np.array([one.values for one in own])
        n = np.array([one.n for one in own])
        mean = uncertainty.over_folds(values, np.broadcast_to(n[:, None], values.shape))
        usable = np.isfinite(values[:, 0])
        reason = "" if usable.all() else next(one.reason for one, good in zip(own, usable, strict=True) if not good)
        found[name] = Measured(mean, int(n[usable].sum()), reason)
    return found


def rows(before: Values, after: Values, folds: int, level: float) -> pd.DataFrame:
    """Return a row (columns: `COLUMNS`) per measure: before, after, and the change on the same resamples."""
    table = []
    for name, ours in after.items():
        theirs, bounds = before[name], embedding.bounds(name)
        row: list[object] = [name]
        for values, limits in ((theirs.values, bounds), (ours.values, bounds), (ours.values - theirs.values, None)):
            row += [values[0], *uncertainty.interval(values, level, *([limits] if limits else []))]
        table.append([*row, folds, ours.n, ours.reason or theirs.reason])
    return pd.DataFrame(table, columns=COLUMNS)
