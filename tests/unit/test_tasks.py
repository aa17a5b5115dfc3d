import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from isoslide import task_losses, tasks
from isoslide.sampling import Specimen

SETTINGS = {
    "binary": {"type": "binary"},
    "multiclass": {"type": "multiclass"},
    "regression": {"type": "regression"},
    "classes": {"type": "survival", "loss": "classes"},
    "cox": {"type": "survival", "loss": "cox"},
    "hazard": {"type": "survival", "loss": "hazard", "intervals": 3},
}


def specimens(labels, times=None, events=None):
    times, events = times or [math.nan] * len(labels), events or [math.nan] * len(labels)
    rows = zip(labels, times, events, strict=True)
    return [Specimen(float(y), i, (i,), (0,), (), t, e) for i, (y, t, e) in enumerate(rows)]


COHORTS = {
    "binary": specimens([0, 1, 1, 1]),
    "multiclass": specimens([0, 1, 1, 2]),
    "regression": specimens([1, 2, 3, 6]),
    "classes": specimens([0, 1, 1, 1]),
    "cox": specimens([1, 1, 1, 0], [1, 2, 3, 4], [1, 1, 1, 0]),
    "hazard": specimens([1, 1, 1, 0], [1, 2, 3, 4], [1, 1, 1, 0]),
}


def fitted(kind):
    outputs = tasks.of(SETTINGS[kind]).outputs(SETTINGS[kind], 3 if kind == "multiclass" else 2)
    return outputs, tasks.of(SETTINGS[kind]).fit(COHORTS[kind], outputs)


def known(kind, sides=2):
    cohort = COHORTS[kind]
    columns = [[getattr(one, name) for one in cohort] * sides for name in ("label", "time", "event")]
    return tasks.Truth(*(torch.tensor([column]) for column in columns), sides)


@pytest.mark.parametrize(
    ("kind", "guess"),
    [
        ("binary", math.log(2)),
        ("multiclass", math.log(3)),
        ("regression", 1),
        ("classes", math.log(2)),
        ("cox", math.log(4 * 3 * 2) / 3),
    ],
)
def test_the_loss_of_a_guess(kind, guess):
    outputs, fit = fitted(kind)
    task, truth = tasks.of(SETTINGS[kind]), known(kind)
    value = tasks.guess_loss(task, torch.zeros(1, 8, outputs), truth, tasks.stack([fit]))
    assert value.tolist() == pytest.approx([guess])


def test_the_guess_of_a_hazard_is_its_base_rate():
    """Edges 0, 5/3, 7/3, 4: one event in each of three intervals, with 4, 3 and 2 specimens in them."""
    outputs, fit = fitted("hazard")
    assert fit["edges"] == pytest.approx([0, 5 / 3, 7 / 3, 4])
    assert expit(fit["guess"]) == pytest.approx([1 / 4, 1 / 3, 1 / 2])
    task, truth, stacked = tasks.of(SETTINGS["hazard"]), known("hazard"), tasks.stack([fit])
    best = tasks.guess_loss(task, torch.zeros(1, 8, outputs), truth, stacked)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = stacked["guess"] + 0.3 * torch.randn(1, 3, generator=rng)
        assert tasks.guess_loss(task, torch.zeros(1, 8, outputs), truth, stacked | {"guess": other}) > best


def test_values_are_standardised_by_the_training_specimens():
    _, fit = fitted("regression")
    assert fit == {"mean": [3.0], "sd": [pytest.approx(math.sqrt(3.5))], "guess": [0.0]}
    logits = torch.tensor([[[-2.0], [-1], [0], [3]]]) / math.sqrt(3.5)
    truth = known("regression", 1)
    assert tasks.of(SETTINGS["regression"]).loss(logits, truth, tasks.stack([fit])).item() == pytest.approx(
        0, abs=1e-12
    )
    columns = tasks.columns(SETTINGS["regression"], logits[0], fit)
    assert columns["p"] == pytest.approx([1, 2, 3, 6])
    assert columns["logit"] == pytest.approx(logits[0, :, 0].numpy())


def test_cox_compares_the_scans_of_a_side_and_takes_the_mean_of_both():
    logits = torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(0))
    truth = known("cox")
    both = tasks.Truth(*(part.expand(2, -1) for part in (truth.labels, truth.times, truth.events)), 2)
    loss = tasks.of(SETTINGS["cox"]).loss(logits, both, {})
    sides = [
        task_losses.cox(logits[:, side, 0], both.times[:, side], both.events[:, side])
        for side in (slice(4), slice(4, 8))
    ]
    assert loss.tolist() == pytest.approx(((sides[0] + sides[1]) / 2).tolist())
    swapped = torch.cat((logits[:, 4:], logits[:, :4]), 1)
    assert tasks.of(SETTINGS["cox"]).loss(swapped, both, {}).tolist() == pytest.approx(loss.tolist())


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_loss_runs_backwards_and_models_stay_apart(kind):
    outputs, fit = fitted(kind)
    logits = torch.randn(2, 8, outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)
    one = known(kind)
    both = tasks.Truth(*(part.expand(2, -1) for part in (one.labels, one.times, one.events)), 2)
    loss = tasks.of(SETTINGS[kind]).loss(logits, both, tasks.stack([fit, fit]))
    assert loss.shape == (2,)
    loss[0].backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0].any()
    assert not logits.grad[1].any()


@pytest.mark.parametrize(
    ("kind", "cohort", "reason"),
    [
        ("binary", specimens([1, 1]), "not of all 2 classes"),
        ("multiclass", specimens([0, 1, 1]), "not of all 3 classes"),
        ("regression", specimens([2, 2]), "all with the same value"),
        ("cox", specimens([1, 0, 0], [1, 2, 3], [1, 0, 0]), "with events at 1 different times, of at least 2"),
        ("hazard", specimens([1, 1, 1], [1, 1, 2], [1, 1, 1]), "with events at 2 different times, of at least 3"),
    ],
)
def test_what_nothing_can_be_learned_from(kind, cohort, reason):
    outputs, _ = fitted(kind)
    assert tasks.of(SETTINGS[kind]).lacks(cohort, outputs) == reason
    assert tasks.of(SETTINGS[kind]).lacks(COHORTS[kind], outputs) == ""


@pytest.mark.parametrize("kind", SETTINGS)
def test_columns_and_scores_by_numpy(kind):
    outputs, fit = fitted(kind)
    logits = torch.randn(5, outputs, generator=torch.Generator().manual_seed(3))
    x = logits.double().numpy()
    columns, scores = (
        tasks.columns(SETTINGS[kind], logits, fit),
        tasks.of(SETTINGS[kind]).scores(logits.double()).numpy(),
    )
    if kind in ("binary", "classes"):
        assert columns["logit"] == pytest.approx(x[:, 1] - x[:, 0])
        expected = softmax(x, 1)[:, 1]
    elif kind == "multiclass":
        assert list(columns) == ["logit", "p", "p_0", "p_1", "p_2"]
        assert np.stack([columns[f"p_{i}"] for i in range(3)], 1) == pytest.approx(scores)
        assert scores == pytest.approx(softmax(x, 1))
        expected = softmax(x, 1).max(1)
    elif kind == "regression":
        expected = 3 + math.sqrt(3.5) * x[:, 0]
    elif kind == "cox":
        expected = expit(x[:, 0])
    else:
        expected = 1 - np.cumprod(1 - expit(x), 1).mean(1)
    assert columns["p"] == pytest.approx(expected)
    if kind not in ("multiclass", "regression"):
        assert scores[:, 0] == pytest.approx(expected)
    if kind != "regression":
        assert columns["p"] == pytest.approx(expit(columns["logit"]))
