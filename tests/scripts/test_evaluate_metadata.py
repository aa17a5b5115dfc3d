import json

import fake_results
import numpy as np
import pandas as pd
import pytest

import evaluate_metadata
from isoslide import metadata, metrics

SETTINGS = {"resamples": 60, "seed": 1, "level": 0.95}


def run(root, kind="binary", sheet=None, **columns):
    sheet = fake_results.make_sheet(40) if sheet is None else sheet
    fake_results.write_table(root / "slides.tsv", sheet)
    fake_results.write_table(root / "task.tsv", fake_results.make_splits(sheet, kind))
    numbers = sheet[["scan"]].assign(status="ok", n_tiles=24, mpp_x=0.5, **columns)
    fake_results.write_table(root / "status.tsv", numbers)
    flags = {"splits": "task.tsv", "sheet": "slides.tsv", "status": "status.tsv", "output": "out.tsv"}
    arguments = [word for name, path in flags.items() for word in (f"--{name}", str(root / path))]
    evaluate_metadata.main([*arguments, "--settings", json.dumps(SETTINGS)])
    return pd.read_csv(root / "out.tsv", sep="\t").set_index("predictors")


def test_a_label_tied_to_the_scanner_is_seen(tmp_path):
    row = run(tmp_path / "loose").loc["scanner"]
    assert row["low"] < row["value"] < row["high"]
    assert row["n"] == 40
    sheet = fake_results.make_sheet(40)
    kept = np.where(sheet["response"] == "positive", sheet["scanner"] == "A", sheet["scanner"] == "C")
    table = run(tmp_path / "tied", sheet=sheet[kept].assign(split="", exclude=""))
    assert list(table.index) == ["scanner"]  # nothing else varies
    assert table.loc["scanner"].tolist()[1:4] == [1, 1, 1]


def test_colour_and_all(tmp_path):
    sheet = fake_results.make_sheet(40)
    positive = (sheet["response"] == "positive").to_numpy()
    table = run(tmp_path, red_mean=200 + 5.0 * positive, tissue_mm2=np.random.default_rng(0).normal(size=len(sheet)))
    assert table.loc["colour of the tissue", "value"] == 1
    assert table.loc[metadata.ALL, "value"] > 0.95
    noise = table.loc["µm/px, tiles, tissue area, sharpness"]
    assert noise["low"] < 0.5 < noise["high"] + 0.1


def test_survival_takes_the_outcome_classes(tmp_path):
    table = run(tmp_path, "survival")
    assert np.isfinite(table.loc["scanner", "value"])


def test_equal_metadata_tie(tmp_path):
    """With the scanner as the only predictor, the scores take as many values as there are scanners."""
    sheet = fake_results.make_sheet(40)
    splits = fake_results.make_splits(sheet, "binary").astype(str)
    cases = metadata.cases(splits, sheet, {})
    assert set(cases["scanner"]) == set("ABC")
    found = metadata.baseline(cases, "task", SETTINGS)
    share = cases.groupby("scanner")["y"].mean()
    assert found["value"].iloc[0] == pytest.approx(metrics.auc(cases["y"], cases["scanner"].map(share)), abs=0.06)


def test_too_few_patients_say_so(tmp_path):
    sheet = fake_results.make_sheet(40).assign(response="positive")
    assert run(tmp_path, sheet=sheet).loc["scanner", "reason"] == "fewer than two patients of a class"


@pytest.mark.parametrize("kind", ["multiclass", "regression", "cox"])
def test_other_kinds_of_tasks(tmp_path, kind):
    sheet = fake_results.make_sheet(60)
    number = sheet["patient"].str[1:].astype(int)
    told = run(tmp_path, kind, sheet=sheet, red_mean=100.0 + 10 * (number % 3) + 7 * (number % 7))
    assert np.isfinite(told.loc["scanner", "value"])
    assert told.loc["scanner", "low"] < 0.65
    splits = fake_results.make_splits(sheet, kind).astype(str)
    cases = metadata.cases(splits, sheet, {})
    assert sorted(cases["y"].unique()) == list(range({"multiclass": 3, "regression": 4, "cox": 2}[kind]))
    tied = cases.assign(scanner=cases["y"].astype(str))
    assert metadata.baseline(tied, "t", SETTINGS)["value"].iloc[0] == pytest.approx(1)


def test_patients_with_specimens_of_both_classes():
    """Tumour scanned on A and normal tissue on B, of every patient: the scanner tells the class."""
    patients = [f"p{i:02d}" for i in range(20)]
    parts = [pd.DataFrame({"patient": patients, "scanner": name, "y": y}) for name, y in (("A", 1), ("B", 0))]
    found = metadata.baseline(pd.concat(parts), "task", SETTINGS).set_index("predictors")
    assert found.loc["scanner", "value"] == 1
