"""A model folder from a trained toy cohort: everything in it, nothing else, and right."""

import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from safetensors.numpy import load_file
from toy_cohort import ARM, TASK, write_cohort
from toy_export import SETTINGS, export, export_again

import export_models
from isoslide import bags, exporting, model_folder, ranges, scoring, status


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_cohort(folder)
    export(folder)
    return folder


def test_the_folder_holds_what_the_card_names_and_no_pickle(exported):
    card = model_folder.read_card(exported / "export")
    models = [f"fold{f}_seed{s}.safetensors" for f in range(3) for s in range(2)]
    assert [one["file"] for one in card["models"]] == models
    assert {path.name for path in (exported / "export").iterdir()} == {
        "card.json",
        "range.safetensors",
        "model.onnx",
        *models,
    }
    for name in models:
        assert (exported / "export" / name).read_bytes() == (exported / "robust" / name).read_bytes()
    model_folder.check_models(exported / "export", card)
    for path in (exported / "export").iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"), path


def test_the_card_says_who_trained(exported):
    """18 patients on scanners A, B and D, of which D is for tests only and S00B has no features."""
    card = model_folder.read_card(exported / "export")
    splits = status.read(exported / "splits.tsv")
    train_scans = splits[(splits["role"] == "train") & (splits["scan"] != "S00B")].drop_duplicates("scan")
    assert card["cohort"] == {
        "patients": train_scans["patient"].nunique(),
        "specimens": train_scans["specimen"].nunique(),
        "scans": len(train_scans),
        "scans_by_scanner": train_scans["scanner"].value_counts().to_dict(),
        "specimens_by_class": train_scans.drop_duplicates("specimen")["class"].value_counts().to_dict(),
    }
    assert set(card["cohort"]["scans_by_scanner"]) == {"A", "B"}
    assert card["task"] == {"name": "toy", "settings": TASK, "classes": ["a", "b"]}
    assert card["arm"]["settings"] == ARM
    assert card["encoder"]["id"] == "toy"
    assert card["encoder"]["dim"] == 6
    assert card["preprocessing"] == SETTINGS
    assert "not a medical device" in card["limits"][0]
    assert set(card["versions"]) == {"isoslide", "python", *exporting.PACKAGES}


def test_metrics_and_threshold_are_those_of_the_tables(exported):
    card = model_folder.read_card(exported / "export")
    table = pd.read_csv(exported / "metrics.tsv", sep="\t").set_index(["metric", "scope", "seed"])
    auc = next(one for one in card["metrics"] if (one["metric"], one["scope"]) == ("auc", "pooled"))
    row = table.loc[("auc", "pooled", "mean")]
    assert [auc[name] for name in ("value", "low", "high")] == pytest.approx(row[["value", "low", "high"]].tolist())
    assert any(one["scope"] == "unseen" or one["scope"] == "scanner:D" for one in card["metrics"])
    cuts = pd.read_csv(exported / "thresholds.tsv", sep="\t")
    assert card["threshold"]["value"] == pytest.approx(cuts["threshold"].mean())
    assert card["threshold"]["rule"] == "youden"
    assert card["threshold"]["n_models"] == 6


def test_the_range_is_of_training_scans(exported):
    found = ranges.read(exported / "export/range.safetensors")
    card = model_folder.read_card(exported / "export")
    assert found.scanners == card["cohort"]["scans_by_scanner"]
    assert len(found.distances) == card["cohort"]["scans"]
    assert np.isnan(found.mpp).all()  # no slide was opened
    splits = status.read(exported / "splits.tsv")
    scans = set(splits.loc[splits["role"] == "train", "scan"])
    loaded = bags.load(str(exported / "features.tsv"), scans)
    means = [loaded.features[loaded.rows(i)].mean(0) for i in range(len(loaded.scans))]
    assert found.mean == pytest.approx(np.mean(means, axis=0), abs=1e-3)


def test_the_graph_scores_the_cohort_as_torch_does(exported):
    session = onnxruntime.InferenceSession(str(exported / "export/model.onnx"), providers=["CPUExecutionProvider"])
    loaded = bags.load(str(exported / "features.tsv"))
    members = scoring.trained(sorted((exported / "robust").glob("*.safetensors")))
    scans = np.arange(len(loaded.scans))
    logits = scoring.logits(members, loaded.tensor(), loaded, scans, np.array(["A"] * len(scans)))
    expected = scoring.ensemble(scoring.columns(members, logits), TASK)["p"]
    found = [session.run(["p"], {"features": loaded.features[loaded.rows(i)]})[0] for i in scans]
    assert np.array(found) == pytest.approx(expected, abs=1e-5)


def test_a_second_export_gives_the_same_bytes_and_sweeps_what_is_no_more(exported):
    files = sorted((exported / "export").iterdir())
    before = [path.read_bytes() for path in files]
    (exported / "export/fold9_seed9.safetensors").write_bytes(b"old")
    export_again(exported)
    assert sorted((exported / "export").iterdir()) == files
    assert [path.read_bytes() for path in files] == before


def test_combat_has_no_graph_and_keeps_its_scanners(tmp_path):
    write_cohort(tmp_path)
    path = export(tmp_path, ARM | {"combat": True, "embedding_weight": 0, "score_weight": 0}, seeds=1)
    card = json.loads(path.read_text())
    assert card["onnx"]["file"] == ""
    assert "combat" in card["onnx"]["reason"]
    assert not (path.parent / "model.onnx").exists()
    assert card["models"][0]["combat"] == ["A", "B"]
    assert "combat.mean" in load_file(path.parent / "fold0_seed0.safetensors")


def test_nothing_trained_ends_in_one_line(exported, tmp_path):
    table = pd.read_csv(exported / "robust/models.tsv", sep="\t").assign(path="")
    table.to_csv(tmp_path / "models.tsv", sep="\t", index=False)
    arguments = f"--task t --arm a --models {tmp_path}/models.tsv --splits s --summaries s --metrics m --thresholds t"
    with pytest.raises(SystemExit, match="error: .*no model came to a checkpoint"):
        export_models.main(
            [*arguments.split(), "--encoder", "{}", "--settings", "{}", "--output", f"{tmp_path}/c.json"]
        )
