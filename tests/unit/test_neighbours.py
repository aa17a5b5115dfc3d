import croma
import numpy as np
import pandas as pd
import pytest

from isoslide import embedding, neighbours

RNG = np.random.default_rng(0)
PATIENTS, PLACES = 16, 3


@pytest.fixture(scope="module")
def sample():
    """Tiles of 16 patients on three scanners: class, patient, place and scanner all count."""
    rows, features = [], []
    shift = {name: RNG.normal(size=12) for name in "ABC"}
    for number in range(PATIENTS):
        person = RNG.normal(size=12)
        for place in range(PLACES):
            own = person + 0.7 * RNG.normal(size=12) + 0.8 * (number % 2)
            for scanner in "ABC":
                rows.append((f"s{number}{scanner}", f"s{number}", f"p{number}", scanner, place, f"s{number}/{place}"))
                features.append(own + 0.8 * shift[scanner] + RNG.normal(0, 0.2, 12))
    tiles = pd.DataFrame(rows, columns=["scan", "specimen", "patient", "scanner", "tile_id", "place"])
    return embedding.Sample(np.array(features, dtype=np.float32), tiles)


@pytest.fixture(scope="module")
def classes(sample):
    scans = sample.tiles["scan"].unique()
    return pd.Series([str(int(scan[1:-1]) % 2) for scan in scans], scans)


def test_the_evidence_of_the_tiles_adds_up_to_the_packages_values(sample, classes):
    manifest = pd.DataFrame({"sample_id": sample.tiles.index.astype(str), "image_path": "", "label": ""})
    manifest["label"] = sample.tiles["scan"].map(classes)
    manifest = manifest.assign(scanner=sample.tiles["scanner"], group_id=sample.tiles["patient"])
    for call in (croma.RI, croma.MaRI):
        result = call.compute(sample.features, manifest, confounder_column="scanner", k_candidates=[11])
        same, other = neighbours.evidence(sample.features, manifest, 11, result.tau)
        assert same.sum() / (same + other).sum() == pytest.approx(result.value, abs=1e-6)
        known = same + other > 0
        ours = (same / np.where(known, same + other, 1))[known]
        assert ours == pytest.approx(result.sample_values_aligned[known], abs=1e-5)


def test_a_weighted_median_is_that_of_the_listed_values():
    values = RNG.normal(size=9).round(1)
    weights = RNG.integers(0, 4, (50, 9)).astype(float)
    weights[0] = 0
    found = neighbours.weighted_median(values, weights)
    assert np.isnan(found[0])
    for ours, row in zip(found[1:], weights[1:], strict=True):
        assert ours == pytest.approx(np.median(np.repeat(values, row.astype(int))))


def test_values_are_the_packages_and_lie_in_their_intervals(sample, classes):
    weights, index = embedding.draw_weights(sample.tiles, 400, np.random.default_rng(1))
    found = neighbours.neighbours(sample, classes, weights, index)
    rows = {name: measured.row(name, "task", 0.95) for name, measured in found.items()}
    manifest = pd.DataFrame({"sample_id": sample.tiles.index.astype(str), "image_path": ""})
    manifest["label"], manifest["scanner"] = sample.tiles["scan"].map(classes), sample.tiles["scanner"]
    manifest["group_id"] = sample.tiles["patient"]
    expected = croma.CRoMa.compute(sample.features, manifest, confounder_column="scanner").value
    assert rows["croma"]["value"] == pytest.approx(expected)
    for row in rows.values():
        assert row["low"] < row["value"] < row["high"]
        assert row["high"] - row["low"] < 0.6
    # With all weights one, the sum over patients is the value itself.
    ones = neighbours.neighbours(sample, classes, np.ones((3, PATIENTS)), index)
    for name, measured in ones.items():
        assert measured.values[1:] == pytest.approx([measured.values[0]] * 2, abs=1e-6), name
