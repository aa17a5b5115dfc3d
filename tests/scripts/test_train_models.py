import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from toy_cohort import ARM, train, write_cohort

import predict_scans
import train_models
from isoslide import atomic


def predict(folder: Path, memory_gb=4):
    out = folder / "predictions.tsv"
    predict_scans.main(
        f"--models {folder}/models/models.tsv --splits {folder}/splits.tsv --features {folder}/features.tsv "
        f"--memory-gb {memory_gb} --output {out}".split()
    )
    return pd.read_csv(out, sep="\t", dtype={"label": str, "scan": str})


@pytest.fixture
def cohort(tmp_path):
    write_cohort(tmp_path)
    return tmp_path


def test_models_cards_and_curves(cohort):
    table = train(cohort)
    assert list(zip(table["fold"], table["seed"], strict=True)) == [(f, s) for f in range(3) for s in range(2)]
    assert set(table["status"]) <= {"ok", "not_trained"}
    card = json.loads((cohort / "models/fold0_seed1.json").read_text())
    assert card["encoder"] == "toy"
    assert card["shape"]["width"] == 8
    assert card["settings"]["arm"] == ARM
    weights = load_file(cohort / "models/fold0_seed1.safetensors")
    assert weights["tile.0.weight"].shape == (8, 6)
    curves = pd.read_csv(cohort / "models/curves.tsv", sep="\t")
    assert len(curves) == 6 * 3
    assert list(curves.columns) == (
        [
            "fold",
            "seed",
            "step",
            "total",
            "task",
            "embedding",
            "score",
            "instance",
            "scanner",
            "guess",
            "lr",
            "tune_metric",
            "tune_inconsistency",
        ]
    )
    assert np.isfinite(curves["score"]).all()


def test_models_that_stand_are_kept(cohort):
    train(cohort, seeds=1)
    first = cohort / "models/fold1_seed0.safetensors"
    before = first.stat().st_mtime_ns
    tables = [(cohort / "models" / name).read_bytes() for name in ("models.tsv", "curves.tsv")]
    train(cohort, seeds=1)
    assert tables == [(cohort / "models" / name).read_bytes() for name in ("models.tsv", "curves.tsv")]
    assert len(train(cohort)) == 6
    assert first.stat().st_mtime_ns == before
    train(cohort, learning_rate=0.04)
    assert first.stat().st_mtime_ns > before


def test_same_bytes_from_the_same_seeds(cohort):
    train(cohort)
    train(cohort, results="again")
    for name in ("fold0_seed0.safetensors", "fold2_seed1.safetensors"):
        assert (cohort / "models" / name).read_bytes() == (cohort / "again" / name).read_bytes()


def test_features_that_stay_in_their_files_give_the_same_bytes(cohort):
    train(cohort)
    predict(cohort)
    predictions = (cohort / "predictions.tsv").read_bytes()
    train(cohort, results="again", memory_gb=0)
    predict(cohort, memory_gb=0)
    assert (cohort / "predictions.tsv").read_bytes() == predictions
    for path in (cohort / "models").glob("*.safetensors"):
        assert path.read_bytes() == (cohort / "again" / path.name).read_bytes()


def test_every_test_scan_is_predicted_once_per_seed(cohort, capsys):
    train(cohort)
    table = predict(cohort)
    assert list(table.columns) == [*predict_scans.COLUMNS, "status"]
    table = table[table["role"] == "test"]
    assert len(table) == 2 * (18 * 3 - 1)
    assert not table.duplicated(["seed", "scan"]).any()
    assert table["p"].to_numpy() == pytest.approx(1 / (1 + np.exp(-table["logit"])), abs=1e-5)
    assert set(table["label"]) == {"0", "1"}
    assert set(table["n_tiles"]) == {6}
    assert "scanner B: 1 test scans without features are not scored" in capsys.readouterr().err
    y = table["label"] == "1"
    assert table.loc[y, "logit"].mean() > table.loc[~y, "logit"].mean()


def test_one_scanner_is_refused_for_pairs_and_fine_without(cohort):
    rows = pd.read_csv(cohort / "splits.tsv", sep="\t", dtype=str, keep_default_na=False)
    atomic.write_table(cohort / "splits.tsv", rows[rows["scanner"] == "A"])
    with pytest.raises(SystemExit, match="error: arm 'robust', fold 0: all training scans come from one scanner"):
        train(cohort)
    assert len(train(cohort, ARM | {"sampler": "mixed", "embedding_weight": 0, "score_weight": 0})) == 6


def test_single_takes_one_scanner(cohort):
    arm = ARM | {"sampler": "single", "scanner": "B", "embedding_weight": 0, "score_weight": 0}
    assert len(train(cohort, arm)) == 6


@pytest.mark.parametrize("script", ["make_splits", "train_models", "predict_scans"])
def test_help_needs_no_torch_and_shows_the_command(script):
    folder = Path(train_models.__file__).parent
    code = f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport {script}\n"
    code += f"try:\n    {script}.parse_args(['--help'])\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert f"python scripts/{script}.py" in result.stdout


@pytest.mark.parametrize("name", ["gated_abmil", "clam_sb", "transmil", "mean"])
def test_every_aggregator_from_features_to_predictions(cohort, name):
    """Bags of six tiles, fewer than CLAM takes; learned well enough to tell the classes apart on average."""
    table = train(cohort, aggregator=name, seeds=1, learning_rate=0.02)
    curves = pd.read_csv(cohort / "models/curves.tsv", sep="\t")
    assert set(table["status"]) <= {"ok", "not_trained"}
    assert np.isfinite(curves["instance"]).all() == (name == "clam_sb")
    assert json.loads((cohort / "models/fold0_seed0.json").read_text())["shape"]["aggregator"] == name
    predicted = predict(cohort)
    positive = predicted["label"] == "1"
    assert predicted.loc[positive, "logit"].mean() > predicted.loc[~positive, "logit"].mean()
