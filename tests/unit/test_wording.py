import math

import pandas as pd
import pytest

from isoslide import wording

COLUMNS = ["arm", "control", "metric", "scope", "difference", "low", "high", "n", "reason"]


def tables(inconsistency, auc, *, trained=1.0, ratio=1.0, seeds=(0.70, 0.71), control=1.0):
    """Return metrics and comparisons of one arm with the given (difference, low, high)."""
    rows = []
    for arm, share, spread in (("paired", control, 1.0), ("robust", trained, ratio)):
        for metric, value in (("auc", 0.7), ("inconsistency", 0.4), ("trained_share", share), ("spread_ratio", spread)):
            rows.append((arm, metric, "pooled", "mean", value))
        rows.append((arm, "n_collapsed", "pooled", "mean", round(15 * (1 - share))))
        rows += [(arm, metric, "pooled", str(i), v) for metric in ("auc", "inconsistency") for i, v in enumerate(seeds)]
    metrics = pd.DataFrame(rows, columns=["arm", "metric", "scope", "seed", "value"])
    changes = [
        ("robust", "paired", metric, "pooled", *change, 60, "only one class")
        for metric, change in (("auc", auc), ("inconsistency", inconsistency))
    ]
    return metrics, pd.DataFrame(changes, columns=COLUMNS)


def read(*args, **kwargs):
    return wording.readings(*tables(*args, **kwargs), ("inconsistency", "auc"), 0.95)


def test_a_difference_is_named_only_when_the_interval_excludes_zero():
    rows = read((-0.1, -0.2, -0.05), (0.02, -0.01, 0.05))
    assert [row["verdict"] for row in rows] == ["more consistent", "no difference shown"]
    assert wording.short(rows) == "more consistent; AUC: no difference shown"
    assert wording.sentence(rows) == (
        "Inconsistency 0.400 against 0.400, change −0.100 (95 % interval −0.200 to −0.050): more consistent, the "
        "interval excludes 0; AUC 0.700 against 0.700, change +0.020 (95 % interval −0.010 to +0.050): no difference "
        "shown."
    )


def test_bad_results_are_said_as_plainly_as_good_ones():
    rows = read((0.1, 0.05, 0.2), (-0.1, -0.2, -0.05))
    assert wording.short(rows) == "less consistent; AUC: worse"
    assert wording.summary("robust", "paired", [("response", rows)]) == (
        "robust against paired: less consistent in response; accuracy worse in response."
    )


def test_an_interval_that_touches_zero_shows_nothing():
    assert [row["verdict"] for row in read((-0.1, -0.2, 0.0), (0.1, 0.0, 0.2))] == ["no difference shown"] * 2


def test_a_change_below_the_spread_over_seeds_is_qualified():
    rows = read((-0.1, -0.2, -0.05), (0.02, 0.01, 0.03), seeds=(0.6, 0.8))
    assert rows[1]["reads"] == "better, but less than the spread over seeds (0.141)"
    assert "better, the interval excludes 0, but the change is smaller than the spread over seeds" in wording.sentence(
        rows
    )


def test_a_collapsed_arm_is_never_praised():
    for collapsed in ({"trained": 0.2}, {"ratio": 0.1}):
        rows = read((-0.3, -0.4, -0.2), (0.0, -0.1, 0.1), **collapsed)
        assert wording.short(rows) == "collapsed"
        assert wording.sentence(rows).endswith("AUC is 0.700. Its robustness figures mean nothing.")
        assert (
            wording.summary("robust", "paired", [("response", rows)]) == "robust against paired: collapsed in response."
        )
        assert all(row["reads"].startswith("means nothing: collapsed") for row in rows)


def test_differences_from_a_collapsed_control_are_not_read():
    rows = read((0.3, 0.2, 0.4), (0.2, 0.1, 0.3), control=0.2)
    assert wording.short(rows) == "control collapsed"
    assert wording.sentence(rows) == (
        "The control paired has: 80 % of its models did not train; AUC is 0.700. Differences from it mean nothing."
    )
    assert (
        wording.summary("robust", "paired", [("response", rows)])
        == "robust against paired: control collapsed in response."
    )
    assert wording.short(read((0.3, 0.2, 0.4), (0.2, 0.1, 0.3), control=0.2, trained=0.2)) == "collapsed"


def test_the_spread_over_seeds_of_either_arm_counts():
    """With one seed left an arm has none, and the other's is what there is."""
    metrics, comparisons = tables((-0.1, -0.2, -0.05), (0.02, 0.01, 0.03), seeds=(0.6, 0.8))
    metrics = metrics[(metrics["arm"] != "robust") | (metrics["seed"] != "1")]
    rows = wording.readings(metrics, comparisons, ("inconsistency", "auc"), 0.95)
    assert rows[1]["reads"] == "better, but less than the spread over seeds (0.141)"


def test_a_difference_without_p_is_not_named():
    rows = read((-0.1, -0.2, -0.05), (0.1, 0.05, 0.2))
    wording.adjust(rows)
    assert [row["verdict"] for row in rows] == ["no difference shown"] * 2


def test_models_that_did_not_train_are_counted_in_the_sentence():
    rows = read((-0.1, -0.2, -0.05), (0.0, -0.1, 0.1), trained=0.8)
    assert wording.sentence(rows).endswith("3 of the models behind this did not train.")


def test_what_is_not_available_says_why():
    rows = read((math.nan,) * 3, (0.0, -0.1, 0.1))
    assert wording.short(rows) == "inconsistency not available: only one class; AUC: no difference shown"
    assert "inconsistency not available: only one class" in wording.sentence(rows).lower()


def test_many_cases_are_counted():
    rows = read((-0.1, -0.2, -0.05), (0.0, -0.1, 0.1))
    dead = read((-0.1, -0.2, -0.05), (0.0, -0.1, 0.1), trained=0.0)
    text = wording.summary("robust", "paired", [(f"t{i}", rows) for i in range(5)] + [("t6", dead)])
    assert text == (
        "robust against paired: more consistent in 5 of 6; no difference in accuracy shown in 5 of 6; "
        "collapsed in 1 of 6."
    )


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.1234, False, "0.123"),
        (-0.1234, False, "−0.123"),
        (0.1, True, "+0.100"),
        (-0.0001, True, "0.000"),
        (math.nan, False, "–"),
    ],
)
def test_numbers(value, sign, text):
    assert wording.number(value, sign=sign) == text


def test_p_is_adjusted_over_tasks_and_encoders_of_an_arm():
    rows = [
        {"arm": arm, "name": name, "p": p, "verdict": "better", "reads": "", "collapsed": "", "alpha": 0.05}
        for arm, name, p in [
            ("robust", "inconsistency", 0.0004),
            ("robust", "inconsistency", 0.02),
            ("robust", "auc", 0.03),
            ("robust", "c_index", 0.2),
            ("mixed", "auc", 0.5),
        ]
    ]
    wording.adjust(rows)
    assert [row["holm"] for row in rows] == pytest.approx([0.0008, 0.02, 0.06, 0.2, 0.5])
    assert [wording.p_text(row["holm"]) for row in rows[:2]] == ["< 0.001", "0.020"]
    read_ = read((-0.1, -0.2, -0.05), (0.02, -0.01, 0.05))
    read_[0] |= {"holm": 0.0008}
    read_[1] |= {"holm": 1.0}
    text = wording.sentence(read_)
    assert "(95 % interval −0.200 to −0.050, p < 0.001): more consistent" in text
    assert "(95 % interval −0.010 to +0.050, p = 1.000): no difference shown" in text


def test_a_difference_that_does_not_survive_the_correction_is_not_named():
    row = {"arm": "robust", "name": "auc", "metric": "AUC", "verdict": "better", "reads": "better", "collapsed": ""}
    row |= {"difference": 0.06, "low": 0.01, "high": 0.11, "ours": 0.87, "theirs": 0.81, "level": "95 %", "alpha": 0.05}
    rows = [row | {"p": 0.045, "untrained": 0}, row | {"p": 0.4, "untrained": 0}]
    wording.adjust(rows)
    assert rows[0]["holm"] == pytest.approx(0.09)
    assert rows[0]["verdict"] == "no difference shown"
    assert (
        "(95 % interval +0.010 to +0.110, p = 0.090): no difference shown (the interval excludes 0, the adjusted p"
        in (wording.sentence(rows[:1]))
    )
    kept = [row | {"p": 0.01, "untrained": 0}, row | {"p": 0.4, "untrained": 0}]
    wording.adjust(kept)
    assert kept[0]["verdict"] == "better"
