import pandas as pd
import pytest

import benchmark_training
from isoslide import training_benchmark
from isoslide.layers import Shape

SMALL = ["--scans=12", "--size=40", "--dim=24", "--specimens=4", "--tiles=20", "--steps=3", "--rounds=1"]
SMALL += ["--models", "1", "2", "--bag=60"]


def test_a_small_run_measures_every_way(tmp_path):
    output = tmp_path / "training.tsv"
    benchmark_training.main([*SMALL, f"--output={output}"])
    table = pd.read_csv(output, sep="\t")
    assert list(table["way"]) == ["transmil, bag of 60", *["plain loop", "isoslide", "isoslide"] * 2]
    assert list(table["models"][1:]) == [1, 1, 2] * 2
    measured = table[1:]
    assert (measured[["seconds_per_step_and_model", "share", "memory_gb"]] > 0).all().all()
    assert measured.loc[1, "times_plain_float32"] == 1


def test_weights_that_differ_stop_the_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_training, "TOLERANCE", 0)
    with pytest.raises(SystemExit, match="ours and the plain loop differ by"):
        benchmark_training.main([*SMALL, "--output", str(tmp_path / "training.tsv")])


def test_products_of_a_step_by_hand():
    products = training_benchmark.products(Shape(1536, width=256, layers=3, attention=128), 16_384)
    flop = sum(2 * m * k * n for m, k, n in products)
    by_hand = 2 * 16_384 * (2 * 1536 * 256 + 3 * (2 * 256 * 256 + 256 * 128 + 128))
    assert flop == by_hand
