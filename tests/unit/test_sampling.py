from itertools import islice

import numpy as np
import pandas as pd
import pytest

from isoslide import sampling
from isoslide.bags import Bags


def cohort(n=6, tiles=(5, 6, 7), scanners="ABC", reference=True):
    """Rows of training scans and their bags; the feature of a tile is (specimen, scanner, tile id)."""
    rows, features, sizes, ids, references = [], [], [], [], []
    for i in range(n):
        for s, scanner in enumerate(scanners):
            rows.append(
                {
                    "scan": f"S{i}{scanner}",
                    "scanner": scanner,
                    "specimen": f"S{i}",
                    "patient": f"P{i // 2}",
                    "label": str(i % 2),
                }
            )
            tile_ids = np.arange(s, tiles[s] + s)
            ids.append(tile_ids)
            features.append(np.stack([np.full(tiles[s], i), np.full(tiles[s], s), tile_ids], 1))
            sizes.append(tiles[s])
            references.append(f"S{i}A" if reference else "")
    scans = [row["scan"] for row in rows]
    bags = Bags(
        scans,
        np.concatenate(features).astype(np.float32),
        np.concatenate(([0], np.cumsum(sizes))),
        np.concatenate(ids),
        references,
        [""] * len(scans),
    )
    return pd.DataFrame(rows), bags


def rng(seed=0):
    return np.random.default_rng(seed)


def test_pairs_are_the_same_tiles_of_one_specimen_on_two_scanners():
    rows, bags = cohort()
    fold = sampling.specimens(rows, bags)
    orders = set()
    for batch in islice(sampling.paired(fold, bags, rng(), 3, 4), 60):
        assert batch.rows.shape == (1, 6, 4)
        tiles = bags.features[batch.rows[0]]
        one, other = tiles[:3], tiles[3:]
        valid = batch.valid[0, :3]
        assert (valid == batch.valid[0, 3:]).all()
        assert (one[..., [0, 2]][valid] == other[..., [0, 2]][valid]).all()
        assert (one[..., 1] != other[..., 1])[valid].all()
        assert batch.pairs.all()
        assert (batch.labels[0, :3] == one[:, 0, 0] % 2).all()
        assert (batch.patients[0, :3] == one[:, 0, 0] // 2).all()
        assert (batch.scanners[0] == tiles[:, 0, 1]).all()
        assert len(set(one[:, 0, 0])) == 3
        orders |= set(zip(batch.scanners[0, :3].tolist(), batch.scanners[0, 3:].tolist(), strict=True))
        for specimen in range(3):
            assert len(set(one[specimen, valid[specimen], 2])) == valid[specimen].sum() <= 4
    assert orders == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}


def test_every_specimen_comes_once_per_epoch():
    rows, bags = cohort(n=7)
    fold = sampling.specimens(rows, bags)
    batches = list(islice(sampling.paired(fold, bags, rng(), 2, 4), 6))
    for epoch in (batches[:3], batches[3:]):
        seen = [int(s) for b in epoch for s in bags.features[b.rows[0, :2, 0], 0]]
        assert len(seen) == len(set(seen)) == 6
    mixed = list(islice(sampling.unpaired(fold, bags, rng(), 3, 4), 2))
    seen = [int(s) for b in mixed for s in bags.features[b.rows[0, :, 0], 0]]
    assert len(set(seen)) == 6
    assert not any(b.pairs.any() for b in mixed)


def test_specimen_with_one_scan_fills_both_places_and_is_no_pair():
    rows, bags = cohort(n=4)
    rows = rows[~rows["scan"].isin(("S0B", "S0C"))]
    fold = sampling.specimens(rows, bags)
    for batch in islice(sampling.paired(fold, bags, rng(), 4, 3), 10):
        slot = int(np.flatnonzero(bags.features[batch.rows[0, :4, 0], 0] == 0)[0])
        assert (batch.rows[0, slot] == batch.rows[0, slot + 4]).all()
        assert batch.pairs[0].sum() == 6
        assert not batch.pairs[0, slot]


def test_small_bags_are_padded():
    rows, bags = cohort(tiles=(2, 3, 4))
    batch = next(sampling.unpaired(sampling.specimens(rows, bags), bags, rng(), 6, 10))
    assert set(batch.valid.sum(-1).ravel()) <= {2, 3, 4}


def test_scans_without_features_and_other_scanners_are_left_out():
    rows, bags = cohort()
    del bags.index["S0A"]
    assert len(sampling.specimens(rows, bags)[0].scans) == 2
    only = sampling.specimens(rows, bags, "A")
    assert len(only) == 5
    assert all(len(specimen.scans) == 1 for specimen in only)


def test_batches_follow_from_the_seed():
    rows, bags = cohort()
    fold = sampling.specimens(rows, bags)
    one, other = (next(sampling.paired(fold, bags, rng(3), 3, 4)) for _ in range(2))
    assert (one.rows == other.rows).all()
    assert (one.rows != next(sampling.paired(fold, bags, rng(4), 3, 4)).rows).any()


def test_unpaired_arms_see_as_many_bags_and_small_cohorts_fewer():
    rows, bags = cohort(n=6)
    fold = sampling.specimens(rows, bags)
    assert sampling.batch_size([fold], "paired", 2) == 2
    assert sampling.batch_size([fold], "mixed", 2) == 4
    assert sampling.batch_size([fold, fold[:5]], "mixed", 8) == 5


def test_cohorts_that_cannot_serve_an_arm_are_refused_in_one_line():
    rows, bags = cohort(scanners="A", tiles=(5,))
    fold = sampling.specimens(rows, bags)
    sampling.check([fold], "mixed", "mixed")
    with pytest.raises(sampling.SamplingError, match="one scanner"):
        sampling.check([fold], "paired", "robust")
    rows, bags = cohort(reference=False)
    with pytest.raises(sampling.SamplingError, match="no training specimen has registered scans on two of the 3"):
        sampling.check([sampling.specimens(rows, bags)], "paired", "robust")
    with pytest.raises(sampling.SamplingError, match="scanner 'X'"):
        sampling.check(
            [sampling.specimens(rows, bags, "X")], "single", "one", "X", lambda fold: "none" if not fold else ""
        )


@pytest.mark.parametrize(("draw", "size"), [(sampling.paired, 4), (sampling.unpaired, 6), (sampling.unpaired, 5)])
def test_balanced_batches_have_every_class_alike_and_every_specimen_of_a_class_as_often(draw, size):
    rows, bags = cohort(n=12)
    rows["label"] = ["1" if specimen in ("S0", "S5", "S7") else "0" for specimen in rows["specimen"]]
    fold = sampling.specimens(rows, bags)
    counts, seen = np.zeros(2), np.zeros(12)
    for batch in islice(draw(fold, bags, rng(), size, 3, True), 90):
        own = batch.labels[0, :size].astype(int)
        assert abs((own == 1).sum() - size / 2) <= 0.5
        counts += np.bincount(own, minlength=2)
        seen += np.bincount(bags.features[batch.rows[0, :size, 0], 0].astype(int), minlength=12)
    assert counts == pytest.approx(45 * size, rel=0.1)
    for label in "01":
        of_class = sorted({int(name[1:]) for name in rows.loc[rows["label"] == label, "specimen"]})
        assert np.ptp(seen[of_class]) <= 1


def test_matched_arms_draw_the_same_balanced_batches():
    rows, bags = cohort(n=12)
    fold = sampling.specimens(rows, bags)
    one, other = (list(islice(sampling.paired(fold, bags, rng(5), 4, 3, True), 5)) for _ in range(2))
    assert all((a.rows == b.rows).all() for a, b in zip(one, other, strict=True))
