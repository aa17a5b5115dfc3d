"""The rival arms `combat` and `adversarial`, from features to predictions."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from toy_cohort import ARM, train, write_cohort

import predict_scans
from isoslide import atomic, combat, models

PLAIN = ARM | {"embedding_weight": 0, "score_weight": 0}


@pytest.fixture
def cohort(tmp_path):
    """As in test_train_models.py, scanner B with features three times as wide and shifted."""
    write_cohort(tmp_path, n=24)
    for path in (tmp_path / "features").glob("*B.h5"):
        with h5py.File(path, "r+") as file:
            file["features"][:] = (3 * file["features"][:].astype(float) + 4).astype(np.float16)
    return tmp_path


def predict(folder, results="models"):
    out = folder / f"{results}.tsv"
    predict_scans.main(
        f"--models {folder}/{results}/models.tsv --splits {folder}/splits.tsv --features {folder}/features.tsv "
        f"--output {out}".split()
    )
    table = pd.read_csv(out, sep="\t", dtype={"scan": str})
    return table[table["role"] == "test"]


def apart(table):
    """Mean over specimens and models of the distance of the logits of A and B, in SDs of all logits."""
    wide = table[table["scanner"].isin(("A", "B"))].pivot(index=["seed", "specimen"], columns="scanner", values="logit")
    return float((wide["A"] - wide["B"]).abs().mean() / table["logit"].std())


def test_combat_is_fitted_on_training_scans_and_brings_scanners_together(cohort, capsys):
    train(cohort, PLAIN, "plain")
    train(cohort, PLAIN | {"combat": True})
    assert apart(predict(cohort)) < 0.6 * apart(predict(cohort, "plain"))
    assert "scanner D did not train, so its features are not harmonised" in capsys.readouterr().err
    rows = pd.read_csv(cohort / "splits.tsv", sep="\t", dtype=str, keep_default_na=False)
    state = load_file(cohort / "models/fold1_seed0.safetensors")
    assert json.loads((cohort / "models/fold1_seed0.json").read_text())["combat"] == ["A", "B"]
    fold = rows[(rows["fold"] == "1") & (rows["role"] == "train")]
    parts = []
    for scanner in "AB":
        own = []
        for scan in fold.loc[fold["scanner"] == scanner, "scan"]:
            if scan != "S00B":
                with h5py.File(cohort / "features" / f"{scan}.h5") as file:
                    own.append(file["features"][:].astype(float))
        x = np.concatenate(own)
        parts.append(combat.Moments(len(x), x.mean(0), np.square(x - x.mean(0)).sum(0)))
    for name, value in zip(combat.NAMES, combat.fit(parts), strict=True):
        assert state[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_a_model_with_combat_is_loaded_for_a_scanner_only(cohort):
    train(cohort, PLAIN | {"combat": True}, seeds=1, steps=10)
    path = cohort / "models/fold0_seed0.safetensors"
    with pytest.raises(ValueError, match="name the scanner of the scans"):
        models.load(path)
    one, other = (models.load(path, name)[0]["tile.0.weight"] for name in ("A", "B"))
    assert not torch.equal(one, other)
    assert models.harmonised([path]) == {"A", "B"}


def test_adversarial_leaves_the_task_model_only(cohort):
    train(cohort, PLAIN, "plain", steps=60)
    train(cohort, PLAIN | {"adversarial_weight": 1}, steps=60)
    one, other = (load_file(cohort / name / "fold0_seed0.safetensors") for name in ("plain", "models"))
    assert one.keys() == other.keys()
    assert not np.array_equal(one["tile.0.weight"], other["tile.0.weight"])
    curves = pd.read_csv(cohort / "models/curves.tsv", sep="\t")
    assert np.isfinite(curves["scanner"]).all()
    assert pd.read_csv(cohort / "plain/curves.tsv", sep="\t")["scanner"].isna().all()
    assert (curves["total"] - curves["task"] - curves["scanner"]).abs().max() < 1e-4
    assert predict(cohort)["p"].between(0, 1).all()


@pytest.mark.parametrize("rival", [{"combat": True}, {"adversarial_weight": 1}])
def test_one_scanner_is_refused(cohort, rival):
    rows = pd.read_csv(cohort / "splits.tsv", sep="\t", dtype=str, keep_default_na=False)
    atomic.write_table(cohort / "splits.tsv", rows[rows["scanner"] == "A"])
    with pytest.raises(SystemExit, match="arm 'robust', fold 0: all training scans come from one scanner, so there is"):
        train(cohort, PLAIN | {"sampler": "mixed"} | rival)
