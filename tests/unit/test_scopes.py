import itertools

import numpy as np
import pandas as pd
import pytest

from isoslide import evaluation, metrics, scopes, splits

SETTINGS = {"resamples": 20, "seed": 1, "level": 0.95}
TASK = {"type": "binary", "label": "response", "positive": "yes"}


def cohort(external=0, n=24):
    """A sheet of patients on three scanners; the last `external` are an external cohort on scanner E."""
    rows = [
        {"scan": f"P{i:02d}{s}", "specimen": f"P{i:02d}", "patient": f"P{i:02d}", "scanner": s, "split": ""}
        for i, s in itertools.product(range(n), "ABC")
    ]
    rows += [
        {"scan": f"X{i}{s}", "specimen": f"X{i}", "patient": f"X{i}", "scanner": s, "split": "test"}
        for i, s in itertools.product(range(external), "AE")
    ]
    return pd.DataFrame(rows).assign(
        exclude="", site="", response=lambda t: np.where(t["patient"].str[1:].astype(int) % 2, "yes", "no")
    )


def divided(sheet, **settings):
    return splits.make(sheet, "t", TASK, {"folds": 3, "tune": 0.25, "seed": 0} | settings).astype(str)


def predicted(table, seeds=(0, 1)):
    rng = np.random.default_rng(0)
    tested = table[table["role"] == "test"].assign(fold=lambda t: t["fold"].astype(int))
    frame = pd.concat([tested.assign(seed=seed) for seed in seeds], ignore_index=True)
    frame = frame.assign(label=frame["label"].astype(float), time=np.nan, event=np.nan, status="ok")
    return frame.assign(p=(frame["label"] + rng.normal(0, 1, len(frame))).clip(-2, 3) / 5 + 0.4)


def evaluated(table):
    frame = scopes.mark(predicted(table), table)
    result = evaluation.evaluate({"paired": frame}, "paired", "binary", SETTINGS).metrics
    return frame, result[result["seed"] == "mean"].set_index(["scope", "metric"])["value"]


def test_a_scanner_left_out_in_its_fold_is_unseen_there_only():
    """Fold k leaves out another scanner; the AUC of the scope is that of just those scans, by hand."""
    table = divided(cohort(), by="scanner")
    frame, values = evaluated(table)
    held = {fold: "ABC"[fold] for fold in range(3)}
    assert (frame["is_unseen"] == (frame["fold"].map(held) == frame["scanner"])).all()
    seeds = []
    for _, rows in frame[frame["scanner"] == frame["fold"].map(held)].groupby("seed"):
        folds = [fold for _, fold in rows.groupby("fold")]
        assert len(folds) == 3
        weights = [fold["label"].sum() * (1 - fold["label"]).sum() for fold in folds]
        seeds.append(np.average([metrics.auc(fold["label"], fold["p"]) for fold in folds], weights=weights))
    assert values["unseen", "auc"] == pytest.approx(np.mean(seeds), abs=1e-12)
    assert ("unseen", "inconsistency") not in values  # one scanner in each fold
    assert not any(scope in ("external", "internal") for scope, _ in values.index)


def test_seen_scanners_are_compared_within_each_fold():
    frame, values = evaluated(divided(cohort(), by="scanner"))
    rows = frame[~frame["is_unseen"]]
    seeds, agreement = [], []
    for _, own in rows.groupby("seed"):
        folds = [fold for _, fold in own.groupby("fold")]
        weights = [fold["specimen"].nunique() for fold in folds]
        each = [metrics.inconsistency(fold["p"], fold["specimen"]) for fold in folds]
        seeds.append(np.average(each, weights=weights))
        wide = [fold.pivot(index="specimen", columns="scanner", values="p").to_numpy() for fold in folds]
        agreement.append(np.average([metrics.icc21(matrix) for matrix in wide], weights=weights))
        assert all(matrix.shape[1] == 2 for matrix in wide)
    assert values["seen", "inconsistency"] == pytest.approx(np.mean(seeds), abs=1e-12)
    assert values["seen", "icc"] == pytest.approx(np.mean(agreement), abs=1e-12)


def test_pairs_of_a_part_are_not_those_of_all_scans():
    """RMSE of the external patients between A and E: no others have E, and all have A."""
    frame, values = evaluated(divided(cohort(external=6)))
    own = frame[frame["patient"].str.startswith("X")]
    assert (frame["is_external"] == frame["patient"].str.startswith("X")).all()
    each = []
    for _, rows in own.groupby(["seed", "fold"]):
        wide = rows.pivot(index="specimen", columns="scanner", values="p")
        each.append(metrics.rmse(wide["A"], wide["E"]))
    assert values["external", "rmse"] == pytest.approx(np.mean(each), abs=1e-12)
    inner = frame[~frame["is_external"]]
    auc = []
    for _, rows in inner.groupby("seed"):
        folds = [fold for _, fold in rows.groupby("fold")]
        weights = [fold["label"].sum() * (1 - fold["label"]).sum() for fold in folds]
        auc.append(np.average([metrics.auc(fold["label"], fold["p"]) for fold in folds], weights=weights))
    assert values["internal", "auc"] == pytest.approx(np.mean(auc), abs=1e-12)
    assert set(frame.loc[frame["is_unseen"], "scanner"]) == {"E"}
    assert {"unseen", "seen"} <= set(values.index.get_level_values("scope"))


def test_a_single_fold_has_no_external_patients():
    sheet = cohort()
    sheet["split"] = np.where(sheet["patient"] < "P08", "test", np.where(sheet["patient"] < "P12", "tune", "train"))
    frame, values = evaluated(divided(sheet))
    assert not frame["is_external"].any()
    assert set(values.index.get_level_values("scope")) >= {"pooled", "scanner:A", "pair:A-B"}


def test_names_and_order():
    frame = pd.DataFrame({"scanner": ["B", "A"], "fold": [0, 0]})
    assert [scope.name for scope in scopes.scopes(frame)] == ["pooled", "scanner:A", "scanner:B", "pair:A-B"]
