"""Every kind of task from the sheet's labels to predictions, through the scripts, on features with a known signal."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import make_splits
import predict_scans
import train_models
from isoslide import config, status

SURVIVAL = {"type": "survival", "time": "months", "event": "event"}
TASKS = {
    "multiclass": {"type": "multiclass", "label": "grade", "classes": ["low", "middle", "high"]},
    "regression": {"type": "regression", "label": "percent"},
    "cox": SURVIVAL | {"loss": "cox"},
    "hazard": SURVIVAL | {"loss": "hazard", "intervals": 3},
}
SMALL = {
    "seeds": 1,
    "steps": 120,
    "specimens": 6,
    "tiles": 4,
    "width": 8,
    "layers": 1,
    "attention": 4,
    "learning_rate": 0.03,
    "checkpoint_every": 40,
    "dropout": 0,
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """42 specimens on two scanners; the first feature carries a hidden degree of illness from 0 to 1."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    rows, table = [], []
    (folder / "features").mkdir()
    for i in range(42):
        degree = (i % 21) / 20
        content = rng.normal(size=(5, 4)) * 0.3 + np.array([3 * degree, 0, 0, 0])
        for s, scanner in enumerate("AB"):
            scan = f"S{i:02d}{scanner}"
            common = {"scan": scan, "scanner": scanner, "specimen": scan[:3]}
            labels = {
                "grade": ("low", "middle", "high")[min(2, int(3 * degree))],
                "percent": round(100 + 20 * degree, 2),
                "months": round(40 * np.exp(-3 * degree) + 1 + i % 2, 1),
                "event": int(i % 5 > 0),
            }
            rows.append(common | {"patient": scan[:3], "path": "x"} | labels)
            path = folder / "features" / f"{scan}.h5"
            with h5py.File(path, "w") as file:
                file["features"] = (content + 0.2 * s * np.eye(4)[1]).astype(np.float16)
                file["tile_ids"] = np.arange(5)
                file.attrs.update(reference=f"{scan[:3]}A", paired=True, encoder="toy")
            table.append({"scan": scan, "status": "ok", "path": path, "n_tiles": 5, "key": f"k{scan}"} | common)
    status.write(folder / "features.tsv", table)
    pd.DataFrame(rows).to_csv(folder / "slides.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def settings(request):
    schema = request.config.rootpath / "workflow/schemas/config.schema.yaml"
    arms = {"robust": {"sampler": "paired", "score_weight": 0.1}}
    least = {"sheet": "s", "encoders": ["e"], "arms": arms, "training": SMALL, "tasks": TASKS}
    return config.complete(least | {"splits": {"folds": 2}}, schema)


@pytest.fixture(scope="module", params=TASKS)
def results(request, cohort, settings):
    """The kind, its models and its predictions."""
    kind, task = request.param, settings["tasks"][request.param]
    folder = cohort / kind
    make_splits.main(
        [
            *("--sheet", str(cohort / "slides.tsv"), "--task", kind, "--output", str(folder / "splits.tsv")),
            *("--settings", json.dumps({"task": task, "splits": settings["splits"]})),
            *("--proof", str(folder / "proof.tsv")),
        ]
    )
    common = ["--splits", str(folder / "splits.tsv"), "--features", str(cohort / "features.tsv")]
    blocks = {"task": task, "arm": settings["arms"]["robust"], "training": settings["training"]}
    train_models.main(
        [
            *(*common, "--arm", "robust", "--settings", json.dumps(blocks), "--results", str(folder / "models")),
            *("--curves", str(folder / "curves.tsv"), "--output", str(folder / "models.tsv")),
        ]
    )
    predict_scans.main(
        [*common, "--models", str(folder / "models.tsv"), "--output", str(folder / "predictions.tsv")],
    )
    *tables, scores = (
        pd.read_csv(folder / f"{name}.tsv", sep="\t") for name in ("splits", "models", "curves", "predictions")
    )
    return kind, folder, *tables, scores[scores["role"] == "test"]


def test_folds_share_out_the_strata(results):
    kind, _, splits, *_ = results
    tested = splits[splits["role"] == "test"].drop_duplicates("patient")
    assert len(tested) == 42
    assert pd.crosstab(tested["class"], tested["fold"]).diff(axis=1)[1].abs().max() <= 1
    classes = {"multiclass": 3, "regression": 4, "cox": 2, "hazard": 2}
    assert tested["class"].nunique() == classes[kind]


def test_the_signal_is_found(results):
    kind, _, splits, models, curves, table = results
    assert models["status"].tolist() == ["ok", "ok"]
    assert len(table) == 84
    assert np.isfinite(table[["logit", "p"]]).all(axis=None)
    degree = table["specimen"].str[1:].astype(int) % 21
    if kind == "multiclass":
        assert table[["p_0", "p_1", "p_2"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
        assert table["p"].to_numpy() == pytest.approx(table[["p_0", "p_1", "p_2"]].max(axis=1).to_numpy())
        assert (table[["p_0", "p_1", "p_2"]].to_numpy().argmax(1) == table["label"]).mean() > 0.7
        assert models["tune_metric"].min() > 0.8
        return
    assert stats.spearmanr(degree, table["p"]).statistic > 0.85
    assert "p_0" not in table
    if kind == "regression":
        assert models["tune_metric"].min() > 0.5
        assert np.abs(table["p"] - table["label"]).mean() < 3
    else:
        assert models["tune_metric"].min() > 0.75
        assert table["p"].between(0, 1).all()


def test_losses_stay_below_a_guess_and_cards_keep_what_they_need(results):
    kind, folder, _, _, curves, _ = results
    last = curves.groupby("fold").tail(1)
    assert (last["task"] < 0.9 * last["guess"]).all()
    assert np.isfinite(curves[["task", "score", "guess"]]).all(axis=None)
    card = json.loads((folder / "models" / "fold0_seed0.json").read_text())
    names = {"multiclass": {"class_weights"}, "regression": {"mean", "sd"}, "cox": set(), "hazard": {"edges"}}
    assert set(card["fitted"]) == names[kind] | {"guess"}
    assert card["shape"]["outputs"] == {"multiclass": 3, "regression": 1, "cox": 1, "hazard": 3}[kind]


def test_a_cohort_without_enough_events_is_refused_in_one_line(cohort, settings, tmp_path):
    rows = pd.read_csv(cohort / "slides.tsv", sep="\t", dtype=str)
    rows["event"] = (rows["specimen"] == "S03").astype(int)
    rows.to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    with pytest.raises(SystemExit, match="task 'cox' fold 0: .* with an event.* are too few"):
        make_splits.main(
            [
                *("--sheet", str(tmp_path / "slides.tsv"), "--task", "cox", "--output", str(tmp_path / "s.tsv")),
                *("--settings", json.dumps({"task": settings["tasks"]["cox"], "splits": settings["splits"]})),
                *("--proof", str(tmp_path / "proof.tsv")),
            ]
        )
