import json

import fake_results
import h5py
import numpy as np
import pandas as pd
import pytest

import evaluate_features
from isoslide import embedding, neighbours
from isoslide.run import FEATURE_TITLES

SETTINGS = {"resamples": 50, "seed": 1, "level": 0.95, "sample_specimens": 12, "sample_tiles": 4}
DIM = 24


def write_features(root, sheet, scanner_effect, signal=1.0, seed=0):
    """Features = place + scanner effect; all scans of a specimen share 6 places, scan D of each lacks the first."""
    rng = np.random.default_rng(seed)
    shift = {name: rng.normal(size=DIM) for name in fake_results.SCANNERS}
    places, rows = {}, []
    for row in sheet[sheet["exclude"] == ""].to_dict("records"):
        if row["specimen"] not in places:
            positive = row["response"] == "positive"
            places[row["specimen"]] = rng.normal(size=(6, DIM)) + signal * positive * np.ones(DIM) / 2
        ids = np.arange(1 if row["scanner"] == "D" else 0, 6)
        path = root / "features" / f"{row['scan']}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            noise = rng.normal(0, 0.05, (ids.size, DIM))
            file["features"] = (places[row["specimen"]][ids] + scanner_effect * shift[row["scanner"]] + noise).astype(
                np.float16
            )
            file["tile_ids"] = ids
            file.attrs.update(paired=True, reference=f"{row['specimen']}_B", encoder="fake", weights_sha256="ab12")
        rows.append({"scan": row["scan"], "status": "ok", "path": str(path)})
    rows.append({"scan": "P03-1_B", "status": "ok", "path": rows[0]["path"]})
    fake_results.write_table(root / "fake.tsv", pd.DataFrame(rows).drop_duplicates("scan"))


def run(root, scanner_effect, **changes):
    sheet = fake_results.make_sheet(16)
    write_features(root, sheet, scanner_effect)
    fake_results.write_table(root / "slides.tsv", sheet)
    fake_results.write_table(root / "response.tsv", fake_results.make_splits(sheet, "binary"))
    outputs = {name: root / f"out_{name}" for name in ("metrics", "map", "facts")}
    arguments = [
        *("--features", str(root / "fake.tsv"), "--sheet", str(root / "slides.tsv")),
        *("--splits", str(root / "response.tsv"), "--settings", json.dumps(SETTINGS | changes)),
        *(word for name, path in outputs.items() for word in (f"--{name}", str(path))),
    ]
    evaluate_features.main(arguments)
    table = pd.read_csv(outputs["metrics"], sep="\t", keep_default_na=False, na_values=[""])
    return table.set_index(["metric", "scope"]), outputs


def test_scanner_effects_are_seen_by_every_number(tmp_path):
    clean, outputs = run(tmp_path / "clean", 0.0)
    assert clean.loc[("top1", "pooled"), "value"] == 1
    assert clean.loc[("scanner_probe", "pooled"), "value"] < 0.45
    assert clean.loc[("same_cosine", "pair:A-B"), "value"] > 0.98
    dirty, _ = run(tmp_path / "dirty", 3.0)
    assert dirty.loc[("top1", "pooled"), "value"] < 0.99
    assert dirty.loc[("scanner_probe", "pooled"), "value"] > 0.95
    assert dirty.loc[("croma", "response"), "value"] < 0 < clean.loc[("croma", "response"), "value"]
    assert dirty.loc[("robustness_index", "response"), "value"] < clean.loc[("robustness_index", "response"), "value"]
    assert set(clean.index.get_level_values(0)) == set(FEATURE_TITLES)
    rows = clean[clean["low"].notna()]
    assert ((rows["low"] <= rows["value"] + 1e-6) & (rows["value"] <= rows["high"] + 1e-6)).all()
    facts = json.loads(outputs["facts"].read_text())
    assert (facts["weights_sha256"], facts["dim"]) == ("ab12", DIM)
    tiles = pd.read_csv(outputs["map"], sep="\t")
    assert {"x", "y", "scanner", "response"} <= set(tiles)
    assert len(tiles) == facts["sampled_tiles"]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    _, outputs = run(tmp_path, 1.0)
    first = [path.read_bytes() for path in outputs.values()]
    _, outputs = run(tmp_path, 1.0)
    assert [path.read_bytes() for path in outputs.values()] == first


def test_a_sample_takes_the_same_places_of_every_scan(tmp_path):
    sheet = fake_results.make_sheet(6)
    write_features(tmp_path, sheet, 0.0)
    fake_results.write_table(tmp_path / "slides.tsv", sheet)
    scans = evaluate_features.usable(tmp_path / "fake.tsv", tmp_path / "slides.tsv")
    sample = embedding.draw_sample(scans, 3, 4, np.random.default_rng(0))
    assert sample.tiles["specimen"].nunique() == 3
    by_scan = sample.tiles.groupby("scan")["tile_id"].apply(tuple)
    assert all(len(ids) == 4 and 0 not in ids for ids in by_scan)  # place 0 is missing on D, so nobody gives it
    for _, scans_of_specimen in sample.tiles.groupby("specimen"):
        assert scans_of_specimen.groupby("scan")["place"].apply(tuple).nunique() == 1


def small(scanner, patient, place, features):
    tiles = pd.DataFrame({"scanner": list(scanner), "patient": list(patient), "place": list(place)})
    return embedding.Sample(np.array(features, dtype=np.float32), tiles.assign(scan="s", specimen=tiles["patient"]))


def weights_of(sample, resamples=10):
    return embedding.draw_weights(sample.tiles, resamples, np.random.default_rng(0))


def test_retrieval_by_hand():
    # On B, place y looks like x does on A: x is found second, y first; the other way round x and y are found first.
    sample = small("AABB", "pqpq", "xyxy", [[1, 0], [0, 1], [0.8, 0.6], [0.96, 0.28]])
    found = embedding.retrieval(sample, *weights_of(sample))
    # A to B: x -> y (0.96 > 0.8): missed; y -> x (0.6 > 0.28): missed. B to A: x -> x found; y -> x: missed.
    assert found["top1", "pair:A-B"].values[0] == pytest.approx(1 / 4)
    value = {metric: measured.values[0] for (metric, scope), measured in found.items() if scope == "pooled"}
    assert value["top10"] == 1
    assert value["same_cosine"] == pytest.approx((0.8 + 0.28) / 2)
    assert value["other_cosine"] == pytest.approx((0.96 + 0.6) / 2)


def test_a_place_seen_twice_on_a_scanner_is_found_by_either_scan():
    # Both rescans of x on B are nearer to x on A than y is; the cosine is their mean.
    sample = small("AABBBB", "pqppqq", "xyxxyy", [[1, 0], [0, 1], [0.8, 0.6], [1, 0], [0, 1], [0.6, 0.8]])
    found = embedding.retrieval(sample, *weights_of(sample))
    assert found["top1", "pooled"].values[0] == 1
    assert found["same_cosine", "pair:A-B"].values[0] == pytest.approx((0.8 + 1) / 2)


def test_no_tile_of_another_patient_is_no_cosine_of_zero():
    sample = small("AAB", "ppp", "xyx", [[1, 0], [0, 1], [0.8, 0.6]])
    found = embedding.retrieval(sample, *weights_of(sample))["other_cosine", "pooled"]
    assert np.isnan(found.values[0])
    assert (found.n, found.reason) == (0, "only one patient")
    # A query of p on A meets only p on B; those of q on A meet p (0.6), that of p on B meets q (0.6).
    sample = small("AAB", "pqp", "xyx", [[1, 0], [0, 1], [0.8, 0.6]])
    found = embedding.retrieval(sample, *weights_of(sample))["other_cosine", "pooled"]
    assert found.values[0] == pytest.approx(0.6)


def test_the_probe_counts_no_tiles_of_scanners_it_never_saw():
    """Scanners far apart in the features: told always, or, with a patient of its own each, not to be measured."""
    features = np.repeat([[0.0, 1.0], [9.0, 1.0], [0.0, 9.0]], [300, 300, 50], axis=0)
    features += np.random.default_rng(0).normal(0, 0.1, features.shape)
    patients = np.repeat(list("pqrstuvwxyzab"), 50)
    sample = small("A" * 300 + "B" * 300 + "C" * 50, patients, [""] * 650, features)
    found = embedding.scanner_probe(sample, *weights_of(sample))
    assert found.values[0] == 1
    assert (found.n, found.reason) == (600, "a guess: 0.33; 1 scanners of too few patients left out")
    alone = small("AABB", "ppqq", [""] * 4, features[[0, 1, 300, 301]])
    found = embedding.scanner_probe(alone, *weights_of(alone))
    assert np.isnan(found.values[0])
    assert found.reason == "fewer than two scanners with patients enough"


def test_what_cannot_be_measured_says_why():
    sample = small("AAA", "pqr", ["", "", ""], np.eye(3))
    weights = weights_of(sample)
    assert embedding.retrieval(sample, *weights)["top1", "pooled"].reason == "no place was seen on two scanners"
    assert embedding.scanner_probe(sample, *weights).reason == "only one scanner"
    found = neighbours.neighbours(sample, pd.Series({"s": "x"}), *weights)
    assert {measured.reason for measured in found.values()} == {"only one class"}
    assert np.isnan(found["mari"].row("mari", "task", 0.95)["low"])
    two = small("AABB", "pqpq", "xyxy", [[1, 0], [0, 1], [0.8, 0.6], [0.96, 0.28]])
    two.tiles["scan"] = list("abcd")
    found = neighbours.neighbours(two, pd.Series({"a": "x", "b": "y", "c": "x", "d": "y"}), *weights_of(two))
    assert "could not find 5 SO" in found["croma"].reason
    assert embedding.plane(sample, 0).empty
