"""The parts of a task's section that are drawn from its predictions: scan pairs, ROC, calibration, survival curves."""

from typing import Any

import pandas as pd

from isoslide import evaluation, score_figures, scores
from isoslide.run import Draw, Drawing, Result, Run, arms_of, robust_arms

MAX_ARMS = 3
NOTHING: dict[str, Any] = {"roc": None, "calibration": [], "survival": [], "values": [], "decisions": []}


def shown_arms(run: Run, result: Result) -> list[str]:
    """Return the control and the first arms with robustness losses: at most a row of panels."""
    wanted = [run.config["control"], *robust_arms(run)]
    return [name for name in wanted if len(result.predictions.get(name, ()))][:MAX_ARMS]


def pair_part(run: Run, result: Result, prefix: str, draw: Draw) -> dict[str, Any]:
    """Return score against score, Bland-Altman plots, and the limits of agreement of every arm and pair."""
    scatters, differences, limits = [], [], []
    for arm in [name for name in arms_of(run, result) if len(result.predictions.get(name, ()))]:
        both = scores.pairs(result.predictions[arm])
        if both.empty:
            continue
        several = run.config["tasks"][result.task]["type"] == "multiclass"
        table = scores.limits_of_agreement(both)
        limits += [] if several else [{"arm": arm} | row for row in table.to_dict("records")]
        if arm not in shown_arms(run, result):
            continue
        first = both[both["seed"] == both["seed"].min()]
        of = "the probability of a class for a specimen" if several else "a specimen"
        caption = f"Each mark is {of} on two scanners (first seed, test folds together)."
        scatters.append(draw(f"{prefix}-scatter-{arm}", score_figures.scatter(first, arm), first, caption))
        if several:  # probabilities sum to 1, so the differences of all classes have a mean of 0 whatever the scanner
            continue
        caption = "Line: bias; dotted: limits of agreement (bias ± 1.96 SD), all pairs."
        figure = score_figures.bland_altman(first, table, arm)
        differences.append(draw(f"{prefix}-difference-{arm}", figure, first, caption))
    return {"scatters": scatters, "differences": differences, "limits": limits}


def outcome_part(run: Run, result: Result, prefix: str, draw: Draw) -> dict[str, Any]:
    """Return ROC and calibration of a binary task, survival curves, or what was predicted against the truth."""
    task, arms = run.config["tasks"][result.task], shown_arms(run, result)
    if task["type"] == "survival":
        drawings = []
        for arm in arms:
            table = scores.survival_curves(result.predictions[arm], run.config["evaluation"].get("threshold", 0.5))
            caption = "Solid: low risk, dashed: high risk (mean score of the patient on that scanner, 0.5 or above)."
            figure = score_figures.survival(table, arm, task["time"])
            drawings.append(draw(f"{prefix}-survival-{arm}", figure, table, caption))
        return NOTHING | {"survival": drawings}
    if task["type"] == "regression":
        return NOTHING | {"values": [_values(result, arm, task["label"], prefix, draw) for arm in arms]}
    if task["type"] == "multiclass":
        names = evaluation.class_names(run.splits[result.task], task["type"])
        return NOTHING | {"decisions": _decisions(result, arms, names, prefix, draw)}
    calibration = [_calibration(result, arm, prefix, draw) for arm in arms]
    return NOTHING | {"roc": _roc(run, result, prefix, draw), "calibration": calibration}


def _roc(run: Run, result: Result, prefix: str, draw: Draw) -> Drawing | None:
    arms = [arm for arm in arms_of(run, result) if len(result.predictions.get(arm, ()))]
    tables = [scores.roc(result.predictions[arm]).assign(arm=arm) for arm in arms]
    if not tables:
        return None
    rows = pd.concat(tables)
    figure = score_figures.roc(rows, arms, run.config["control"], "ROC")
    caption = "Mean over models of the true positive rate at each false positive rate; all scanners."
    return draw(f"{prefix}-roc", figure, rows, caption)


def _calibration(result: Result, arm: str, prefix: str, draw: Draw) -> Drawing:
    table = scores.calibration(result.predictions[arm])
    caption = "Five bins of equal mass a scanner, all models together. On the dashed line: as many as predicted."
    return draw(f"{prefix}-calibration-{arm}", score_figures.calibration(table, arm), table, caption)


def _decisions(result: Result, arms: list[str], names: tuple[str, ...], prefix: str, draw: Draw) -> list[Drawing]:
    """Return of each arm the predicted class against the true one, then against that of the specimen's other scans."""
    found = []
    for name, function, labels, caption in (
        (
            "classes",
            scores.class_shares,
            ("predicted class", "class"),
            "Share of the scans of each class; rows sum to 1.",
        ),
        (
            "agreement",
            scores.decision_shares,
            ("predicted on the second scanner", "predicted on the first"),
            "Share of all pairs of scans of a specimen. On the diagonal: the same class on both scanners.",
        ),
    ):
        for arm in arms:
            table = function(result.predictions[arm], names)
            figure = score_figures.shares(table, arm, *labels)
            found.append(draw(f"{prefix}-{name}-{arm}", figure, table, caption))
    return found


def _values(result: Result, arm: str, label: str, prefix: str, draw: Draw) -> Drawing:
    frame = result.predictions[arm]
    table = frame[frame["seed"] == frame["seed"].min()][["specimen", "scanner", "label", "p"]]
    caption = "Each mark is a scan (first seed, test folds together). On the dashed line: as predicted."
    return draw(f"{prefix}-values-{arm}", score_figures.values(table, arm, label), table, caption)


def auc_check(result: Result) -> list[dict[str, Any]]:
    """Return for each arm the AUC difference with the bootstrap's and DeLong's interval side by side."""
    rows = result.comparisons[result.comparisons["scope"] == "pooled"]
    found = []
    for arm in rows["arm"].drop_duplicates():
        ours = rows[rows["arm"] == arm].set_index("metric")
        if {"auc", evaluation.DELONG} <= set(ours.index):
            found.append({"arm": arm, "ours": ours.loc["auc"], "delong": ours.loc[evaluation.DELONG]})
    return found
