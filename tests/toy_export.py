"""A model folder of the toy cohort: trained, predicted, evaluated and exported through the scripts."""

import json
from pathlib import Path

from toy_cohort import ARM, TASK, train

import evaluate_predictions
import export_models
import predict_scans
import summarise_features
from isoslide import model_folder

ENCODER = model_folder.imported_facts("toy")
SETTINGS = {"reading": {"icc": "ignore", "downsampling": "fast"}, "tissue": {}, "tiles": {"overlap": 0}}


def export(folder: Path, arm=ARM, **changes) -> Path:
    """Train, predict, evaluate and export in a folder that holds the toy cohort; the path of the card."""
    train(folder, arm, results="robust", **changes)
    predict_scans.main(
        f"--models {folder}/robust/models.tsv --splits {folder}/splits.tsv --features {folder}/features.tsv "
        f"--output {folder}/predictions/robust.tsv".split()
    )
    evaluate_predictions.main(
        f"--predictions {folder}/predictions/robust.tsv --models {folder}/robust/models.tsv --splits "
        f"{folder}/splits.tsv --control robust --metrics {folder}/metrics.tsv --comparisons {folder}/comparisons.tsv "
        f"--by-model {folder}/by_model.tsv --thresholds {folder}/thresholds.tsv --settings".split()
        + [json.dumps({"task": TASK, "evaluation": {"resamples": 100, "seed": 1, "level": 0.95}})]
    )
    summarise_features.main(f"--features {folder}/features.tsv --output {folder}/short.safetensors".split())
    return export_again(folder)


def export_again(folder: Path) -> Path:
    export_models.main(
        f"--task toy --arm robust --models {folder}/robust/models.tsv --splits {folder}/splits.tsv "
        f"--summaries {folder}/short.safetensors --slides --metrics {folder}/metrics.tsv "
        f"--thresholds {folder}/thresholds.tsv --output {folder}/export/card.json --encoder".split()
        + [json.dumps(ENCODER), "--settings", json.dumps(SETTINGS)]
    )
    return folder / "export/card.json"
