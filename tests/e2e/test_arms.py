"""Rival arms, other tasks and another aggregator, with scanners held out and an external cohort, in one run."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from isoslide import status

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "efficientnet_lite0"
CONFIG = {
    "sheet": "slides.tsv",
    "encoders": [ENCODER],
    "tiles": {"max_tiles": 6},
    "tasks": {
        "grade": {"type": "multiclass", "label": "grade", "classes": ["low", "middle", "high"]},
        "percent": {"type": "regression", "label": "percent"},
        "risk": {"type": "survival", "loss": "cox", "time": "months", "event": "dead"},
    },
    "arms": {
        "combat": {"sampler": "mixed", "combat": True},
        "adversarial": {"sampler": "paired", "adversarial_weight": 1},
        "reinhard": {"sampler": "paired", "score_weight": "preset", "stain": "reinhard"},
    },
    "control": "combat",
    "splits": {"by": "scanner", "tune": 0.3},
    "training": {"seeds": 1, "steps": 20, "specimens": 4, "tiles": 4, "width": 16, "attention": 8}
    | {"aggregator": "gated_abmil"},
    "evaluation": {"resamples": 100},
}


def cohort():
    """Twelve patients on A, B and C, each of which is left out once, and three that are only tested, on A and D."""
    demo = pd.read_csv(ROOT / "config/slides.tsv", sep="\t", dtype=str, keep_default_na=False)
    number = demo["patient"].str[1:].astype(int) - 1
    external = number.between(12, 14)
    chosen = ((number < 12) & (demo["scanner"] != "D")) | (external & demo["scanner"].isin(["A", "D"]))
    table = demo.assign(
        split=np.where(external, "test", ""),
        grade=np.array(["low", "middle", "high"])[number % 3],
        percent=(10 * (number % 7)).astype(str),
        dead=np.where(number % 4 == 3, "0", "1"),
    )
    return table[chosen & table["specimen"].str.endswith("-1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the cohort was taken from slides to the report."""
    folder = tmp_path_factory.mktemp("arms")
    cohort().to_csv(folder / "slides.tsv", sep="\t", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "resources").symlink_to(ROOT / "resources")
    command = ["snakemake", "--cores", "2", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    line = (
        "training: preset cohort, 12 specimens may train in pairs: steps 20, specimens 4, tiles 4, checkpoint_every 10"
    )
    assert line in done.stderr
    return folder


def read(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""])


@pytest.mark.e2e
def test_every_arm_and_task_is_trained_and_scored(folder):
    for task in CONFIG["tasks"]:
        for arm in CONFIG["arms"]:
            models = status.read(folder / f"results/models/{task}/{ENCODER}/{arm}/models.tsv")
            assert len(models) == 3
            assert (models["path"] != "").all()
            cards = [json.loads((folder / path).with_suffix(".json").read_text()) for path in models["path"]]
            assert {card["shape"]["aggregator"] for card in cards} == {"gated_abmil"}
            known = [["B", "C"], ["A", "C"], ["A", "B"]] if arm == "combat" else [[]] * 3
            assert [card["combat"] for card in cards] == known
            curves = read(folder / f"results/models/{task}/{ENCODER}/{arm}/curves.tsv")
            assert set(curves["step"]) == {10, 20}
            assert curves["scanner"].notna().all() == (arm == "adversarial")
            assert curves["score"].notna().all() == (arm == "reinhard")
            scores = read(folder / f"results/predictions/{task}/{ENCODER}/{arm}.tsv")
            assert np.isfinite(scores["p"]).all()
            assert len(scores[scores["role"] == "test"]) == 12 * 3 + 3 * 2 * 3  # once, and external in every fold
    assert set(status.read(folder / f"results/status/features/{ENCODER}+reinhard.tsv")["status"]) == {"ok"}


@pytest.mark.e2e
def test_scanners_held_out_and_the_external_cohort_stand_apart(folder):
    """The mean absolute error of both scopes, from the predictions and the folds, by hand."""
    splits = read(folder / "results/splits/percent.tsv")
    for arm in CONFIG["arms"]:
        scores = read(folder / f"results/predictions/percent/{ENCODER}/{arm}.tsv")
        scores = scores[scores["role"] == "test"]
        known = splits[splits["role"].isin(("train", "tune"))].groupby("fold")["scanner"].agg(set)
        unseen = [row.scanner not in known[row.fold] for row in scores.itertuples()]
        assert set(scores["scanner"][unseen]) == {"A", "B", "C", "D"}
        external = scores["patient"].isin(["P13", "P14", "P15"])
        metrics = read(folder / f"results/evaluations/percent/{ENCODER}/metrics.tsv")
        rows = metrics[(metrics["arm"] == arm) & (metrics["metric"] == "mae") & (metrics["seed"] == "mean")]
        values = rows.set_index("scope")["value"]
        error = (scores["p"] - scores["label"]).abs()
        for scope, inside in {"unseen": unseen, "external": external, "internal": ~external}.items():
            assert values[scope] == pytest.approx(error[inside].mean(), rel=1e-5)
    page = (folder / "results/report/index.html").read_text()
    for text in ("Scanners held out", "External test cohort", "here 12", "results/splits/proof/percent.tsv"):
        assert text in page
