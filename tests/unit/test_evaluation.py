import fake_results
import numpy as np
import pandas as pd
import pytest

from isoslide import evaluation, metrics

SETTINGS = {"resamples": 40, "seed": 1, "level": 0.95}


def predictions(arm: str, kind: str = "binary", patients: int = 24) -> pd.DataFrame:
    table = fake_results.make_predictions(fake_results.make_splits(fake_results.make_sheet(patients), kind), arm, kind)
    table = table[table["role"] == "test"].assign(is_unseen=lambda rows: rows["scanner"] == "D")
    numbers = ("label", "time", "event")
    return table.assign(**{name: pd.to_numeric(table[name], errors="coerce") for name in numbers})


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    frames = {arm: predictions(arm) for arm in ("paired", "robust", "robust_reference")}
    return evaluation.evaluate(frames, "paired", "binary", SETTINGS)[:2]


def value(table: pd.DataFrame, arm: str, metric: str, scope: str = "pooled", seed: str = "mean") -> float:
    rows = table[(table["arm"] == arm) & (table["metric"] == metric) & (table["scope"] == scope)]
    return rows.set_index("seed").loc[seed, "value"]


def test_every_number_is_the_plain_metric_averaged_over_models(tables):
    table, _ = tables
    frame = predictions("robust")
    for scope, scanners in {"pooled": "ABCD", "unseen": "D", "scanner:A": "A"}.items():
        seeds = []
        for _, rows in frame[frame["scanner"].isin(list(scanners))].groupby("seed"):
            folds = [
                (metrics.auc(f["label"], f["p"]), f["label"].sum() * (1 - f["label"]).sum())
                for _, f in rows.groupby("fold")
            ]
            seeds.append(np.average([v for v, _ in folds], weights=[w for _, w in folds]))
        assert value(table, "robust", "auc", scope) == pytest.approx(np.mean(seeds), abs=1e-12)
        assert value(table, "robust", "auc", scope, "2") == pytest.approx(seeds[1], abs=1e-12)


def test_inconsistency_and_rmse_by_pandas(tables):
    table, _ = tables
    frame = predictions("robust")
    complete = frame.groupby("specimen")["scanner"].transform("nunique") == 4
    assert not complete.all()  # one scan is excluded in the fake cohort
    inconsistency, rmse = [], []
    for _, seed in frame.groupby("seed"):
        whole = [rows[complete.loc[rows.index]] for _, rows in seed.groupby("fold")]
        values = [metrics.inconsistency(rows["p"], rows["specimen"]) for rows in whole]
        inconsistency.append(np.average(values, weights=[rows["specimen"].nunique() for rows in whole]))
        wide = [
            rows.pivot(index="specimen", columns="scanner", values="p")[["A", "D"]].dropna()
            for _, rows in seed.groupby("fold")
        ]
        rmse.append(np.average([metrics.rmse(w["A"], w["D"]) for w in wide], weights=[len(w) for w in wide]))
    assert value(table, "robust", "inconsistency") == pytest.approx(np.mean(inconsistency), abs=1e-12)
    assert value(table, "robust", "rmse", "pair:A-D") == pytest.approx(np.mean(rmse), abs=1e-12)


def test_survival_uses_the_c_index():
    frames = {arm: predictions(arm, "survival") for arm in ("paired", "robust")}
    table, comparisons, _ = evaluation.evaluate(frames, "paired", "survival", SETTINGS)
    seeds = []
    for _, rows in frames["robust"].groupby("seed"):
        wins = pairs = 0.0
        for _, fold in rows.groupby("fold"):
            events = fold["event"].to_numpy(bool)
            comparable, won = metrics.concordance(
                fold["time"].to_numpy(), events, fold["p"].to_numpy(), np.flatnonzero(events)
            )
            wins, pairs = wins + won.sum(), pairs + comparable.sum()
        seeds.append(wins / pairs)
    assert value(table, "robust", "c_index") == pytest.approx(np.mean(seeds), abs=1e-12)
    assert not set(table["metric"]) & {"auc", "brier"}
    assert {"c_index", "inconsistency"} <= set(comparisons["metric"])


def test_intervals_hold_the_estimate_and_differences_are_of_the_same_resamples(tables):
    table, comparisons = tables
    rows = table[(table["seed"] == "mean") & table["low"].notna()]
    assert (rows["low"] <= rows["value"] + 1e-12).all()
    assert (rows["value"] <= rows["high"] + 1e-12).all()
    row = (
        comparisons[(comparisons["arm"] == "robust") & (comparisons["scope"] == "pooled")]
        .set_index("metric")
        .loc["auc"]
    )
    assert row["difference"] == pytest.approx(value(table, "robust", "auc") - value(table, "paired", "auc"))
    width = rows[(rows["metric"] == "auc") & (rows["scope"] == "pooled")].set_index("arm")
    width = (width["high"] - width["low"])[["robust", "paired"]]
    assert row["high"] - row["low"] < np.hypot(*width)  # the pairing of the resamples pays


def test_an_arm_against_itself_differs_by_nothing():
    frame = predictions("paired")
    _, comparisons, _ = evaluation.evaluate({"paired": frame, "twin": frame.copy()}, "paired", "binary", SETTINGS)
    assert (comparisons[["difference", "low", "high"]].abs().max() < 1e-12).all()


def test_an_arm_that_lost_scans_is_compared_on_those_it_has():
    """The control itself, less the patients it scores worst: better alone, but no better than the control."""
    frame = predictions("paired").query("seed < 2")
    error = (frame["p"] - frame["label"]).abs().groupby(frame["patient"]).mean().sort_values()
    kept = frame[~frame["patient"].isin(error.index[-5:])]
    table, comparisons, _ = evaluation.evaluate({"paired": frame, "lost": kept}, "paired", "binary", SETTINGS)
    assert value(table, "lost", "auc") > value(table, "paired", "auc")
    rows = comparisons[comparisons["difference"].notna()]
    assert (rows["difference"].abs() < 1e-12).all()
    left, everything = kept["scan"].nunique(), frame["scan"].nunique()
    assert rows["reason"].str.startswith(f"on the {left} of {everything} test scans that both arms have").sum() > 20
    assert comparisons.loc[comparisons["metric"] == "auc_delong", "n"].tolist() == [kept["patient"].nunique()]


def test_a_mean_over_fewer_pairs_of_scanners_says_so():
    """On two scanners the arm says yes of everyone, so one of three pairs has no kappa; the control has all three."""
    frame = predictions("paired").query("seed < 2 and scanner != 'D'")
    ours = frame.assign(p=frame["p"].where(frame["scanner"] == "A", 0.9 + frame["p"] / 100))
    table, comparisons, _ = evaluation.evaluate({"paired": frame, "robust": ours}, "paired", "binary", SETTINGS)
    row = table[(table["arm"] == "robust") & (table["metric"] == "kappa") & (table["scope"] == "pooled")].iloc[0]
    said = "over the pairs of scanners that have a value, in some models not all"
    assert row["reason"].startswith(said)
    row = comparisons[(comparisons["metric"] == "kappa") & (comparisons["scope"] == "pooled")].iloc[0]
    assert said in row["reason"]
    assert not table["reason"][table["metric"] == "rmse"].str.contains(said).any()


def test_order_of_rows_and_names_of_scanners_do_not_matter():
    frame = predictions("robust")
    shuffled = frame.sample(frac=1, random_state=1)
    first, _, _ = evaluation.evaluate({"paired": frame}, "paired", "binary", SETTINGS)
    second, _, _ = evaluation.evaluate({"paired": shuffled}, "paired", "binary", SETTINGS)
    pd.testing.assert_frame_equal(first, second)
    renamed = frame.assign(scanner=frame["scanner"].map({"A": "D", "B": "C", "C": "B", "D": "A"}))
    third, _, _ = evaluation.evaluate({"paired": renamed}, "paired", "binary", SETTINGS)
    for metric in ("auc", "inconsistency", "rmse", "icc", "kappa"):
        assert value(third, "paired", metric) == pytest.approx(value(first, "paired", metric), abs=1e-9)


def test_collapsed_arms_are_named(tables):
    table, _ = tables
    assert evaluation.is_collapsed(table, "paired") == ""
    assert evaluation.is_collapsed(table, "robust") == ""
    assert evaluation.is_collapsed(table, "robust_reference") == "80 % of its models did not train"
    still = predictions("paired").assign(p=lambda t: 0.5 + (t["p"] - 0.5) / 10)
    shrunk, _, _ = evaluation.evaluate({"paired": predictions("paired"), "x": still}, "paired", "binary", SETTINGS)
    assert evaluation.is_collapsed(shrunk, "x") == "its scores spread 0.10 times as far as the control's"
    assert value(shrunk, "x", "rmse") == pytest.approx(value(shrunk, "paired", "rmse") / 10)
    assert value(shrunk, "x", "inconsistency") == pytest.approx(value(shrunk, "paired", "inconsistency"))


def test_one_class_and_one_scanner_give_rows_with_reasons():
    frame = predictions("paired")
    frame = frame[frame["scanner"] == "A"].assign(label=1.0)
    table, comparisons, _ = evaluation.evaluate({"paired": frame, "b": frame}, "paired", "binary", SETTINGS)
    means = table[(table["seed"] == "mean") & (table["scope"] == "pooled")].drop_duplicates(["arm", "metric"])
    reasons = means[means["arm"] == "b"].set_index("metric")["reason"]
    assert reasons["auc"] == "only one class"
    assert reasons["inconsistency"] == "no specimen has two scans"
    assert reasons["rmse"] == "only one scanner"
    assert reasons["icc"] == "fewer than two scanners"
    assert means["value"].notna().sum() < len(means)
    assert comparisons.set_index("metric").loc["auc", "reason"].iloc[0] == "only one class"


def test_a_model_with_non_finite_scores_is_left_out_and_said():
    frame = predictions("paired")
    broken = frame.copy()
    broken.loc[(broken["seed"] == 1) & (broken["fold"] == 0), ["p", "logit"]] = np.nan
    broken.loc[(broken["seed"] == 1) & (broken["fold"] == 0), "status"] = "non_finite"
    table, comparisons, _ = evaluation.evaluate({"paired": frame, "broken": broken}, "paired", "binary", SETTINGS)
    row = table[(table["arm"] == "broken") & (table["metric"] == "auc") & (table["scope"] == "pooled")].iloc[0]
    assert row["reason"] == "1 of 15 models have no value: non-finite scores"
    assert value(table, "broken", "trained_share") == pytest.approx(14 / 15)
    row = comparisons[comparisons["scope"] == "pooled"].set_index("metric").loc["auc"]
    assert row["difference"] == pytest.approx(0)  # both over the 14 models that have a value in both arms
    assert row["reason"] == "over the 14 of 15 models where both have a value"


def test_an_arm_without_any_prediction_is_described_all_the_same():
    frame = predictions("paired")
    models = {"dead": pd.DataFrame({"status": ["non_finite"] * 15})}
    table, comparisons, _ = evaluation.evaluate(
        {"paired": frame, "dead": frame.iloc[:0]}, "paired", "binary", SETTINGS, models
    )
    rows = table[table["arm"] == "dead"].set_index("metric")
    assert rows.loc["auc", "reason"] == "no model made a prediction"
    assert rows.loc["trained_share", "value"] == 0
    assert rows.loc["n_collapsed", "reason"] == "15 non_finite"
    assert evaluation.is_collapsed(table, "dead") == "100 % of its models did not train"
    assert comparisons["difference"].isna().all()
    alone, _, _ = evaluation.evaluate({"dead": frame.iloc[:0]}, "paired", "binary", SETTINGS)
    assert alone["value"].notna().sum() == 2


def test_n_is_of_the_patients_whose_scans_enter():
    """Six patients have all scanners, five two (and one of whom a scan is excluded), the others one."""
    frame = predictions("paired")
    order = frame["patient"].map({name: i for i, name in enumerate(sorted(frame["patient"].unique()))})
    kept = frame[(order < 6) | (frame["scanner"] == "A") | ((order < 12) & (frame["scanner"] == "B"))]
    table, _, _ = evaluation.evaluate({"paired": kept}, "paired", "binary", SETTINGS)
    rows = table[(table["seed"] == "mean") & (table["scope"] == "pooled")].set_index("metric")["n"]
    everybody = kept["patient"].nunique()
    assert rows[["auc", "spread", "inconsistency", "icc", "rmse", "kappa"]].tolist() == [everybody] * 2 + [6, 6, 11, 11]


def test_intervals_of_icc_hold_values_below_minus_one():
    """Three specimens that two scanners put in opposite order: ICC(2,1) has no lower bound."""
    p = {"A": (0.0, 1.0, 0.52), "B": (1.0, 0.05, 0.5)}
    frame = pd.concat(
        pd.DataFrame({"scan": [f"{i}{name}" for i in range(3)], "specimen": list("xyz"), "scanner": name, "p": own})
        for name, own in p.items()
    )
    frame = frame.assign(patient=frame["specimen"], seed=0, fold=0, label=[0.0, 1.0, 1.0] * 2, status="ok")
    frame = frame.assign(time=np.nan, event=np.nan)
    table, _, _ = evaluation.evaluate({"paired": frame}, "paired", "binary", SETTINGS)
    row = table[(table["metric"] == "icc") & (table["scope"] == "pooled")].iloc[0]
    assert row["value"] == pytest.approx(metrics.icc21(np.array(list(p.values())).T))
    assert row["low"] <= row["value"] < -2


def test_specimens_without_all_scanners_are_used_only_when_no_other_is_there():
    frame = predictions("paired")
    number = frame["patient"].str[1:].astype(int)
    kept = frame[~((number % 2 == 0) & (frame["scanner"] == "A")) & ~((number % 2 == 1) & (frame["scanner"] == "C"))]
    table, _, _ = evaluation.evaluate({"paired": kept}, "paired", "binary", SETTINGS)
    row = table[(table["metric"] == "inconsistency") & (table["scope"] == "pooled")].iloc[0]
    assert np.isfinite(row["value"])
    assert row["reason"] == "no specimen has all scanners: specimens with two or more scans"


def test_unseen_scanners_come_from_the_splits():
    splits = fake_results.make_splits(fake_results.make_sheet(24), "binary")
    assert evaluation.unseen_scanners(splits) == ("D",)


def test_metrics_at_the_tuned_threshold_use_each_models_own():
    frame = predictions("paired")
    rng = np.random.default_rng(0)
    models = frame[["fold", "seed"]].drop_duplicates()
    cuts = models.assign(arm="paired", threshold=rng.uniform(0.2, 0.8, len(models)), reason="")
    cuts.iloc[0, cuts.columns.get_loc("reason")] = "tuning scans of one class"
    table, _, by_model = evaluation.evaluate({"paired": frame}, "paired", "binary", SETTINGS, cuts=cuts)
    rows = by_model[(by_model["metric"] == "balanced_accuracy_tuned") & (by_model["scope"] == "scanner:A")]
    assert len(rows) == len(models)
    for row in rows.to_dict("records"):
        ours = frame[(frame["scanner"] == "A") & (frame["seed"] == row["seed"]) & (frame["fold"] == row["fold"])]
        cut = cuts[(cuts["seed"] == row["seed"]) & (cuts["fold"] == row["fold"])].iloc[0]
        if cut["reason"]:
            assert np.isnan(row["value"])
            assert row["reason"] == "tuning scans of one class"
        else:
            expected = metrics.balanced_accuracy(ours["label"], ours["p"], cut["threshold"])
            assert row["value"] == pytest.approx(expected, abs=1e-12)
    same = cuts.assign(threshold=0.5, reason="")
    table, _, _ = evaluation.evaluate({"paired": frame}, "paired", "binary", SETTINGS, cuts=same)
    for name in ("agreement", "kappa", "balanced_accuracy"):
        ours, fixed = (table[table["metric"] == metric].reset_index() for metric in (f"{name}_tuned", name))
        pd.testing.assert_frame_equal(ours.drop(columns=["index", "metric"]), fixed.drop(columns=["index", "metric"]))


def test_without_tuning_scans_the_tuned_metrics_say_so(tables):
    table, _ = tables
    rows = table[table["metric"] == "kappa_tuned"]
    assert rows["value"].isna().all()
    assert set(rows.loc[rows["seed"] == "mean", "reason"]) == {"no tuning scans were scored"}


def test_the_models_average_to_the_table():
    frame = predictions("robust")
    table, _, by_model = evaluation.evaluate({"robust": frame}, "paired", "binary", SETTINGS)
    by_model = by_model[by_model["value"].notna()]
    folds = by_model.groupby(["metric", "scope", "seed"])[["value", "weight"]].apply(
        lambda rows: np.average(rows["value"], weights=rows["weight"])
    )
    means = folds.groupby(["metric", "scope"]).mean()
    listed = table[table["seed"] == "mean"].set_index(["metric", "scope"])["value"]
    assert means.to_numpy() == pytest.approx(listed.reindex(means.index).to_numpy(), abs=1e-12)
    assert {"auc", "inconsistency", "rmse", "spread"} <= set(means.index.get_level_values(0))
