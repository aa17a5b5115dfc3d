import json

import fake_results
import pandas as pd
import pytest

import evaluate_predictions

SETTINGS = {"task": {"type": "binary"}, "evaluation": {"resamples": 30, "seed": 1, "level": 0.95}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fake_results.write(folder, patients=20, arms=("paired", "robust"))
    return folder


def arguments(root, **changes):
    folder = root / "results" / "predictions" / "response" / fake_results.ENCODER
    flags = {
        "predictions": [folder / "paired.tsv", folder / "robust.tsv"],
        "splits": [root / "results" / "splits" / "response.tsv"],
        "control": ["paired"],
        "settings": [json.dumps(SETTINGS)],
        "metrics": [root / "out" / "metrics.tsv"],
        "comparisons": [root / "out" / "comparisons.tsv"],
        "by-model": [root / "out" / "by_model.tsv"],
        "thresholds": [root / "out" / "thresholds.tsv"],
    }
    return [str(word) for name, values in (flags | changes).items() for word in (f"--{name}", *values)]


def test_tables_have_the_agreed_columns_and_are_the_same_each_time(root):
    evaluate_predictions.main(arguments(root))
    first = (root / "out" / "metrics.tsv").read_bytes()
    evaluate_predictions.main(arguments(root))
    assert (root / "out" / "metrics.tsv").read_bytes() == first
    metrics = pd.read_csv(root / "out" / "metrics.tsv", sep="\t")
    assert list(metrics) == ["arm", "metric", "scope", "seed", "value", "low", "high", "n", "reason"]
    assert {"pooled", "unseen", "scanner:A", "pair:A-B"} <= set(metrics["scope"])
    assert set(metrics["seed"]) == {"mean", "1", "2", "3"}
    comparisons = pd.read_csv(root / "out" / "comparisons.tsv", sep="\t")
    assert list(comparisons) == ["arm", "control", "metric", "scope", "difference", "low", "high", "p", "n", "reason"]
    assert set(comparisons["arm"]) == {"robust"}


def test_without_the_control_there_are_metrics_but_no_comparisons(root):
    evaluate_predictions.main(arguments(root, control=["absent"]))
    comparisons = pd.read_csv(root / "out" / "comparisons.tsv", sep="\t")
    assert list(comparisons)[:2] == ["arm", "control"]
    assert comparisons.empty


def test_an_unknown_kind_of_task_is_one_line(root):
    settings = json.dumps(SETTINGS | {"task": {"type": "colour"}})
    with pytest.raises(SystemExit, match="'colour' is not evaluated"):
        evaluate_predictions.main(arguments(root, settings=[settings]))
