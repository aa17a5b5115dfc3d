"""Batches: which specimens, scans and tiles a training step sees.

A model's batches come from its own generator and from the training scans of its fold only, so arms that share a
sampler see the same batches in the same order, and a model sees the same however many others train beside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from isoslide.bags import Bags

SAMPLERS = ("paired", "mixed", "single")


class SamplingError(ValueError):
    """The training scans cannot give what the arm needs; the message is one line."""


@dataclass(frozen=True)
class Specimen:
    """A specimen that trains: its scans as indices into the bags."""

    label: float  # index of the class, or the value of a regression task
    patient: int
    scans: tuple[int, ...]
    scanners: tuple[int, ...]  # codes, one per scan
    pairs: tuple[tuple[int, int], ...]  # positions in `scans` on different scanners with tiles in common
    time: float = math.nan  # survival only
    event: float = math.nan


@dataclass(frozen=True)
class Batch:
    """G bags of T tiles for M models; in paired arms bags b and b + G / 2 are two scans of one specimen."""

    rows: np.ndarray  # (M, G, T) rows of the features; 0 where there is no tile
    valid: np.ndarray  # (M, G, T) bool
    labels: np.ndarray  # (M, G)
    times: np.ndarray  # (M, G) NaN but in survival
    events: np.ndarray  # (M, G)
    patients: np.ndarray  # (M, G)
    scanners: np.ndarray  # (M, G)
    pairs: np.ndarray  # (M, G) bool: the specimen has two different scans in this batch


def scanners(rows: pd.DataFrame, bags: Bags, scanner: str | None = None) -> tuple[str, ...]:
    """Return the scanners that train, in the order of their codes; see `specimens`."""
    found = set(rows.loc[rows["scan"].isin(bags.index), "scanner"])
    return tuple(sorted(found if scanner is None else found & {scanner}))


def specimens(rows: pd.DataFrame, bags: Bags, scanner: str | None = None) -> list[Specimen]:
    """Return the specimens that train, sorted by name.

    Args:
        rows: the rows of a fold with role `train`; scans without features are left out.
        bags: the features.
        scanner: only scans of this scanner.
    """
    rows = rows[rows["scan"].isin(bags.index)]
    if scanner is not None:
        rows = rows[rows["scanner"] == scanner]
    patients = {name: i for i, name in enumerate(sorted(set(rows["patient"])))}
    code = {name: i for i, name in enumerate(scanners(rows, bags))}
    found = []
    for _, own in rows.sort_values("scan").groupby("specimen", sort=True):
        scans = [bags.index[scan] for scan in own["scan"]]
        codes = [code[name] for name in own["scanner"]]
        pairs = tuple(
            (i, j)
            for i in range(len(scans))
            for j in range(i + 1, len(scans))
            if codes[i] != codes[j] and len(bags.common(scans[i], scans[j])[0])
        )
        first = own.iloc[0]
        label, time, event = (float(first.get(name) or "nan") for name in ("label", "time", "event"))
        found.append(Specimen(label, patients[first["patient"]], tuple(scans), tuple(codes), pairs, time, event))
    return found


def batch_size(folds: Sequence[Sequence[Specimen]], sampler: str, n_specimens: int) -> int:
    """Return how many specimens a step draws: the same in every fold, so that models can be stacked.

    An unpaired arm draws twice as many specimens, one scan of each, so that every arm's step sees as many bags. Small
    cohorts give fewer.
    """
    wanted = n_specimens if sampler == "paired" else 2 * n_specimens
    return min(wanted, *(len(fold) for fold in folds))


def check(
    folds: Sequence[Sequence[Specimen]],
    sampler: str,
    arm: str,
    scanner: str | None = None,
    lacks: Callable[[Sequence[Specimen]], str] = lambda fold: "",
) -> None:
    """Refuse an arm that the training scans cannot serve.

    Args:
        folds: training specimens of each fold.
        sampler: of the arm.
        arm: its name, for messages.
        scanner: the only one of a `single` arm.
        lacks: why nothing can be learned from a fold, or the empty string.

    Raises:
        SamplingError: with fold, counts and remedy.
    """
    for i, fold in enumerate(folds):
        if reason := lacks(fold):
            of = f" of scanner {scanner!r}" if scanner is not None else ""
            raise SamplingError(
                f"arm {arm!r}, fold {i}: {len(fold)} training specimens{of} with features, {reason}: name a scanner "
                "that has what is missing, or see the status table of the features for scans that were lost"
            )
        if sampler != "paired" or any(specimen.pairs for specimen in fold):
            continue
        n_scanners = len({code for specimen in fold for code in specimen.scanners})
        why = (
            "all training scans come from one scanner"
            if n_scanners == 1
            else f"no training specimen has registered scans on two of the {n_scanners} scanners"
        )
        raise SamplingError(f"arm {arm!r}, fold {i}: {why}, so there are no pairs: use an arm with sampler 'mixed'")


def check_scanners(folds: Sequence[Sequence[str]], arm: str) -> None:
    """Refuse an arm that sets scanners against each other where a fold trains on one only.

    Args:
        folds: training scanners of each fold.
        arm: its name, for messages.

    Raises:
        SamplingError: naming the fold.
    """
    for i, names in enumerate(folds):
        if len(names) < 2:
            raise SamplingError(
                f"arm {arm!r}, fold {i}: all training scans come from one scanner, so there is nothing to harmonise or "
                "to hide: remove 'combat' and 'adversarial_weight', or the arm"
            )


def paired(
    fold: Sequence[Specimen],
    bags: Bags,
    rng: np.random.Generator,
    n_specimens: int,
    n_tiles: int,
    balance: bool = False,
) -> Iterator[Batch]:
    """Yield batches of `n_specimens`: two scans on different scanners in random order, the same tiles in both.

    A specimen without a pair fills both places with one scan; it trains the task and is masked out of the pair losses.
    With `balance` each batch has as many specimens of every class.
    """
    for chosen in _draws(fold, n_specimens, rng, balance):
        batch = _empty(2 * n_specimens, n_tiles)
        for slot, number in enumerate(chosen):
            specimen = fold[number]
            if specimen.pairs:
                one, other = specimen.pairs[rng.integers(len(specimen.pairs))]
                if rng.random() < 0.5:
                    one, other = other, one
                rows = bags.common(specimen.scans[one], specimen.scans[other])
            else:
                one = other = int(rng.integers(len(specimen.scans)))
                rows = (bags.rows(specimen.scans[one]),) * 2
            tiles = rng.permutation(len(rows[0]))[:n_tiles]
            for half, scan in ((0, one), (1, other)):
                _fill(batch, slot + half * n_specimens, specimen, scan, rows[half][tiles], bool(specimen.pairs))
        yield batch


def unpaired(
    fold: Sequence[Specimen],
    bags: Bags,
    rng: np.random.Generator,
    n_specimens: int,
    n_tiles: int,
    balance: bool = False,
) -> Iterator[Batch]:
    """Yield batches of `n_specimens`: one scan of each at random, random tiles of it; `balance` as in `paired`."""
    for chosen in _draws(fold, n_specimens, rng, balance):
        batch = _empty(n_specimens, n_tiles)
        for slot, number in enumerate(chosen):
            specimen = fold[number]
            scan = int(rng.integers(len(specimen.scans)))
            rows = bags.rows(specimen.scans[scan])
            _fill(batch, slot, specimen, scan, rows[rng.permutation(len(rows))[:n_tiles]], False)
        yield batch


def stack(batches: Sequence[Batch]) -> Batch:
    """Join the batches of several models along the model axis."""
    return Batch(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in Batch.__dataclass_fields__})


def _draws(fold: Sequence[Specimen], size: int, rng: np.random.Generator, balance: bool) -> Iterator[np.ndarray]:
    """Yield `size` numbers of specimens; balanced, as many of each class, or one more where they do not go up evenly.

    Each class is a deck of its own that is shuffled again when it is used up, so that its specimens come equally often.
    """
    if not balance:
        yield from _epochs(len(fold), size, rng)
    labels = np.array([specimen.label for specimen in fold])
    decks = [_endless(np.flatnonzero(labels == label), rng) for label in np.unique(labels)]
    while True:
        more = rng.permutation(len(decks)) < size % len(decks)
        counts = size // len(decks) + more
        yield np.concatenate([list(islice(deck, int(n))) for deck, n in zip(decks, counts, strict=True)]).astype(int)


def _endless(numbers: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(numbers)


def _epochs(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield `size` of `n` numbers, each once per shuffled epoch; the last incomplete batch is dropped."""
    while True:
        order = rng.permutation(n)
        yield from order[: n - n % size].reshape(-1, size)


def _empty(n_bags: int, n_tiles: int) -> Batch:
    return Batch(
        rows=np.zeros((1, n_bags, n_tiles), dtype=np.int64),
        valid=np.zeros((1, n_bags, n_tiles), dtype=bool),
        labels=np.zeros((1, n_bags)),
        times=np.full((1, n_bags), np.nan),
        events=np.full((1, n_bags), np.nan),
        patients=np.zeros((1, n_bags), dtype=np.int64),
        scanners=np.zeros((1, n_bags), dtype=np.int64),
        pairs=np.zeros((1, n_bags), dtype=bool),
    )


def _fill(batch: Batch, slot: int, specimen: Specimen, scan: int, rows: np.ndarray, pair: bool) -> None:
    batch.rows[0, slot, : len(rows)] = rows
    batch.valid[0, slot, : len(rows)] = True
    batch.labels[0, slot] = specimen.label
    batch.times[0, slot] = specimen.time
    batch.events[0, slot] = specimen.event
    batch.patients[0, slot] = specimen.patient
    batch.scanners[0, slot] = specimen.scanners[scan]
    batch.pairs[0, slot] = pair
