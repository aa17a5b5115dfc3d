"""The parts of a task's section that are drawn from its predictions: scan pairs, ROC, calibration, survival curves."""

from typing import Any

import pandas as pd

from isoslide import evaluation, score_figures, scores, thresholds
from isoslide.run import Draw, Drawing, Result, Run, arms_of, robust_arms

MAX_ARMS, MAX_ARMS_OF_MANY = 3, 2
MANY = 8
"""Tasks times encoders above which figures of scores show fewer arms, so that the page stays small."""
NOTHING: dict[str, Any] = {
    "roc": None,
    "calibration": [],
    "survival": [],
    "values": [],
    "decisions": [],
    "log_rank": [],
}


def shown_arms(run: Run, result: Result) -> list[str]:
    """Return the control and the first arms with robustness losses: at most a row of panels."""
    wanted = [run.config["control"], *robust_arms(run)]
    shown = [name for name in wanted if len(result.predictions.get(name, ()))]
    return shown[: MAX_ARMS if len(run.results) <= MANY else MAX_ARMS_OF_MANY]


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
        return NOTHING | _survival(run, result, prefix, draw)
    if task["type"] == "regression":
        return NOTHING | {"values": [_values(result, arm, task["label"], prefix, draw) for arm in arms]}
    if task["type"] == "multiclass":
        names = evaluation.class_names(run.splits[result.task], task["type"])
        return NOTHING | {"decisions": _decisions(result, arms, names, prefix, draw)}
    calibration = [_calibration(result, arm, prefix, draw) for arm in arms]
    return NOTHING | {"roc": _roc(run, result, prefix, draw), "calibration": calibration}


def _survival(run: Run, result: Result, prefix: str, draw: Draw) -> dict[str, Any]:
    """Return survival curves by risk group and scanner of the shown arms, and the log-rank tests of every arm."""
    drawings, tests = [], []
    if result.thresholds is None:
        return {"survival": drawings, "log_rank": tests}
    shown, time = shown_arms(run, result), run.config["tasks"][result.task]["time"]
    for arm in [name for name in arms_of(run, result) if len(result.predictions.get(name, ()))]:
        patients = scores.risk_groups(thresholds.attach(result.predictions[arm], result.thresholds, arm))
        if patients.empty:
            continue
        tested = scores.survival_tests(patients)
        tests += [{"arm": arm} | row for row in tested.to_dict("records")]
        if arm in shown:
            table = scores.survival_curves(patients).merge(tested[["scanner", "p"]], on="scanner")
            caption = "Solid: low risk, dashed: high risk, by the models’ own thresholds. p: log-rank test."
            figure = score_figures.survival(table, arm, time)
            drawings.append(draw(f"{prefix}-survival-{arm}", figure, table, caption))
    return {"survival": drawings, "log_rank": tests}


def threshold_rows(result: Result, arms: list[str]) -> list[dict[str, Any]]:
    """Return for each arm its models' thresholds in short: how many, the median, the range, and those without one."""
    if result.thresholds is None:
        return []
    rows = []
    for arm in arms:
        own = result.thresholds[result.thresholds["arm"] == arm]
        cuts, youden = own["threshold"].dropna(), own["youden_j"].dropna()
        if len(own):
            row = {"arm": arm, "n": len(own), "without": len(own) - len(cuts), "median": float(cuts.median())}
            row |= {"low": float(cuts.min()), "high": float(cuts.max()), "youden": float(youden.median())}
            rows.append(row | {"rule": own["rule"].iloc[0]})
    return rows


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
