"""The page of a configuration with every kind of task."""

import fake_results
import numpy as np
import pandas as pd
import pytest
from test_report import parsed

import write_report
from isoslide import cohort, report, score_figures, scores, sections

TASKS = ("grade", "percent", "risk")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    fake_results.write(root, patients=40, arms=("paired", "robust"), tasks=TASKS)
    fake_results.evaluate(root, tasks=TASKS)
    run = write_report.read_run(write_report.parse_args(fake_results.report_arguments(root)))
    return run, *report.render(run)


def test_the_page_is_sound_and_has_every_task(rendered):
    _, page, drawings = rendered
    checker = parsed(page)
    assert not checker.errors
    assert not checker.open
    text = " ".join(" ".join(checker.text).split())
    for words in (
        "grade (multiclass; efficientnet_lite0)",
        "AUC, mean over classes",
        "Predicted classes",
        "Class middle against all others",
        "percent (regression; efficientnet_lite0)",
        "Predicted and true values",
        "R²: 1 less the squared error",
        "risk (survival; efficientnet_lite0)",
        "c-index",
        "Of several classes AUC",
    ):
        assert words in text, words
    names = {drawing.name for drawing in drawings}
    assert {"forest-inconsistency", "forest-accuracy", "forest-values"} <= names
    assert {f"grade-efficientnet_lite0-{name}-robust" for name in ("classes", "agreement", "scatter")} <= names
    assert "grade-efficientnet_lite0-difference-robust" not in names
    assert {"percent-efficientnet_lite0-values-robust", "risk-efficientnet_lite0-survival-robust"} <= names
    assert "nan" not in text.lower().split()


def test_every_number_of_the_tables_is_on_the_page(rendered):
    run, page, _ = rendered
    text = " ".join(parsed(page).text)
    for result in run.results:
        means = result.metrics[(result.metrics["seed"] == "mean") & (result.metrics["scope"] == "pooled")]
        for row in means[means["metric"].isin(("macro_auc", "class_kappa", "r2", "mae", "c_index"))].to_dict("records"):
            assert f"{row['value']:.3f}".replace("-", "−") in text


def test_a_guess_is_called_one():
    rows = {"metric": "auc", "scope": "pooled", "arm": ["a", "b", "c"], "low": [0.49, 0.6, np.nan]}
    text = sections.guessing(pd.DataFrame(rows), ["a", "b", "c"], "auc")
    assert text == "Not shown to be better than a guess (no interval of AUC above 0.5): a, c."
    assert sections.guessing(pd.DataFrame(rows), ["b"], "auc") == ""


def frame():
    return pd.DataFrame(
        {
            "seed": 0,
            "fold": 0,
            "specimen": ["s", "s", "t", "t"],
            "scanner": ["B", "A", "A", "B"],
            "label": [0.0, 0.0, 2.0, 2.0],
            "p": [0.6, 0.8, 0.7, 0.7],
            "p_0": [0.6, 0.1, 0.1, 0.2],
            "p_1": [0.2, 0.8, 0.2, 0.1],
            "p_2": [0.2, 0.1, 0.7, 0.7],
        }
    )


def test_shares_by_hand():
    table = scores.class_shares(frame(), ("x", "y", "z")).set_index(["row", "column"])["share"]
    assert table["x"].tolist() == [0.5, 0.5, 0]
    assert table["y"].tolist() == [0, 0, 0]  # no scan of this class
    assert table["z"].tolist() == [0, 0, 1]
    table = scores.decision_shares(frame(), ("x", "y", "z")).set_index(["row", "column"])["share"]
    assert table["y", "x"] == 0.5  # scanner A says y, scanner B says x
    assert table["z", "z"] == 0.5
    assert table.sum() == 1
    unknown = pd.concat([frame(), frame().assign(seed=1, p=np.nan, p_0=np.nan, p_1=np.nan, p_2=np.nan)])
    for function in (scores.class_shares, scores.decision_shares):
        pd.testing.assert_frame_equal(function(unknown, ("x", "y", "z")), function(frame(), ("x", "y", "z")))
    figure = score_figures.shares(scores.class_shares(frame(), ("x", "y", "z")), "t", "x", "y")
    assert len(figure.axes[0].texts) == 9


def test_pairs_of_several_classes_are_a_row_each():
    both = scores.pairs(frame())
    assert both["pair"].tolist() == ["A-B"] * 6
    assert both[both["specimen"] == "s"][["first", "second"]].to_numpy().tolist() == [
        [0.1, 0.6],
        [0.8, 0.2],
        [0.1, 0.2],
    ]


def test_event_and_scanner_that_are_one_are_seen():
    """Complaint G-H7."""
    splits = pd.DataFrame({"scan": list("abcdef"), "role": "train", "scanner": list("AAABBB"), "event": list("111000")})
    sheet = pd.DataFrame({"scan": list("abcdef"), "site": ""})
    splits["class"] = ["poor", "poor", "", "good", "good", ""]
    rows = {row["what"]: row for row in cohort.association(splits, sheet)}
    assert rows["event"]["value"] == pytest.approx(1)
    assert rows["class"]["value"] == pytest.approx(1)
    by_event = splits.assign(**{"class": ["event"] * 3 + ["censored"] * 3})
    assert [row["what"] for row in cohort.association(by_event, sheet)] == ["class"]
