"""Tile embeddings against features, with models that are made by hand."""

import json

import fake_results
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import embed_tiles
from isoslide import aggregators, layers, models, tile_embeddings
from isoslide.embedding import Sample

DIM = 8
SETTINGS = {"resamples": 100, "seed": 1, "level": 0.95, "sample_specimens": 20, "sample_tiles": 3}
SHAPE = layers.Shape(inputs=DIM, outputs=2, width=DIM, layers=1, attention=2, aggregator="mean")


def write_model(path, weight, combat=()):
    """A linear tile network: embeddings are features times `weight`."""
    state = {name: value[0] for name, value in aggregators.init(SHAPE, [torch.Generator().manual_seed(0)]).items()}
    state["tile.0.weight"], state["tile.0.bias"] = torch.tensor(weight, dtype=torch.float32), torch.zeros(DIM)
    models.save(path, state, {"shape": SHAPE.as_dict(), "key": "k"})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Features = patient + place in six directions, scanner in the other two; 16 patients, five folds."""
    root = tmp_path_factory.mktemp("embed")
    sheet = fake_results.make_sheet(16)
    rng = np.random.default_rng(0)
    shift = {name: 3 * rng.normal(size=2) for name in fake_results.SCANNERS}
    places, rows = {}, []
    for row in sheet[sheet["exclude"] == ""].to_dict("records"):
        positive = row["response"] == "positive"
        own = places.setdefault(row["specimen"], rng.normal(size=(6, 6)) + 1.5 * positive)
        path = root / "features" / f"{row['scan']}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            tiles = np.hstack([own, np.tile(shift[row["scanner"]], (6, 1))]) + rng.normal(0, 0.02, (6, DIM))
            file["features"], file["tile_ids"] = tiles.astype(np.float16), np.arange(6)
            file.attrs.update(paired=True, reference=f"{row['specimen']}_B")
        rows.append({"scan": row["scan"], "status": "ok", "path": str(path)})
    fake_results.write_table(root / "features.tsv", pd.DataFrame(rows))
    fake_results.write_table(root / "splits.tsv", fake_results.make_splits(sheet, "binary"))
    blind = np.diag([1.0] * 6 + [0.0] * 2)  # the scanner's two directions are dropped
    table = []
    for fold in range(5):
        for seed in (0, 1):
            path = root / f"fold{fold}_seed{seed}.safetensors"
            write_model(path, blind if seed == 0 else np.eye(DIM))
            table.append({"fold": fold, "seed": seed, "status": "ok", "path": str(path)})
    fake_results.write_table(root / "models.tsv", pd.DataFrame(table))
    return root


def run(root, table="models.tsv"):
    outputs = {name: root / f"out_{name}.tsv" for name in ("metrics", "map")}
    embed_tiles.main(
        [
            *("--models", str(root / table), "--splits", str(root / "splits.tsv")),
            *("--features", str(root / "features.tsv"), "--settings", json.dumps(SETTINGS)),
            *(word for name, path in outputs.items() for word in (f"--{name}", str(path))),
        ]
    )
    return [pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""]) for path in outputs.values()]


def test_a_network_that_drops_the_scanner_is_seen_to_do_so(root):
    table, tiles = run(root)
    assert list(table) == tile_embeddings.COLUMNS
    table = table.set_index("metric")
    assert table.loc["scanner_probe", "before"] > 0.75
    assert table.loc["scanner_probe", "after"] < 0.5
    assert table.loc["scanner_probe", "change_high"] < 0
    assert table.loc["top1", "before"] < table.loc["top1", "after"] == 1
    assert table.loc["robustness_index", "change_low"] > 0
    assert set(table["folds"]) == {5}
    known = table[table["change"].notna()]
    assert (known["change"] - (known["after"] - known["before"])).abs().max() < 1e-5
    assert ((known["change_low"] <= known["change"] + 1e-6) & (known["change"] <= known["change_high"] + 1e-6)).all()
    assert set(tiles["stage"]) == {"before", "after"}
    splits = pd.read_csv(root / "splits.tsv", sep="\t")
    tested = splits[(splits["fold"] == 0) & (splits["role"] == "test")]["scan"]
    assert set(tiles["scan"]) <= set(tested)  # nothing that the fold's model was trained or selected on
    assert set(tiles["class"]) == {"positive", "negative"}


def test_the_same_run_gives_the_same_bytes(root):
    run(root)
    first = [(root / f"out_{name}.tsv").read_bytes() for name in ("metrics", "map")]
    run(root)
    assert [(root / f"out_{name}.tsv").read_bytes() for name in ("metrics", "map")] == first


def test_an_arm_without_models_gives_empty_tables(root):
    empty = pd.DataFrame({"fold": [0], "seed": [0], "status": ["diverged"], "path": [""]})
    fake_results.write_table(root / "none.tsv", empty)
    table, tiles = run(root, "none.tsv")
    assert table.empty
    assert list(table) == tile_embeddings.COLUMNS
    assert tiles.empty


@pytest.mark.parametrize("aggregator", ["abmil", "gated_abmil", "transmil", "mean"])
def test_embeddings_are_those_of_the_forward_pass(tmp_path, aggregator):
    shape = layers.Shape(inputs=5, outputs=2, width=8, layers=2, attention=2, aggregator=aggregator)
    state = aggregators.init(shape, [torch.Generator().manual_seed(3)])
    x = torch.randn(1, 2, 200, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(200):  # the running statistics become those of this one batch
        out = aggregators.forward(state, shape, x)
    found = aggregators.embed(state, shape, x[0].reshape(400, 5))
    assert found.shape == (1, 400, 8)
    assert found[0].T.numpy() == pytest.approx(out.embeddings[0].reshape(8, 400).numpy(), abs=0.05)


def test_embeddings_that_are_not_finite_say_so(root):
    tiles = pd.DataFrame({"patient": ["a", "b"], "scanner": ["A", "B"], "scan": ["x", "y"], "place": ["", ""]})
    sample = Sample(np.full((2, 3), np.nan, dtype=np.float32), tiles)
    fold = tile_embeddings.Fold("0", sample, np.ones((2, 2)), pd.Series([0, 1], ["a", "b"]))
    found = tile_embeddings.measure(fold, sample, pd.Series({"x": "0", "y": "1"}))
    assert {measured.reason for measured in found.values()} == {"embeddings are not finite"}
    assert tile_embeddings.plane(sample, 0).empty
