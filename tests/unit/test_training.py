import math

import numpy as np
import pandas as pd
import pytest
import torch
from toy_cohort import ARM

from isoslide import aggregators, layers, sampling, splits, training
from isoslide.bags import Bags

torch.set_num_threads(1)

SETTINGS = {
    "optimiser": "sgd_onecycle",
    "precision": "float32",
    "patience": 0,
    "steps": 40,
    "learning_rate": 0.05,
    "weight_decay": 0.02,
    "clip": 20,
    "checkpoint_every": 10,
    "selection": "normalised",
    "head_dropout": "paired",
}


def cohort(n=24, dim=6, signal=2.0, scanners="AB", tiles=8, seed=0):
    """Splits and bags; the first feature carries the label, the second the scanner."""
    rng = np.random.default_rng(seed)
    rows, features = [], []
    for i in range(n):
        content = rng.normal(size=(tiles, dim)).astype(np.float32)
        content[:, 0] += signal * (i % 2)
        for s, scanner in enumerate(scanners):
            rows.append(
                {
                    "scan": f"S{i:02d}{scanner}",
                    "scanner": scanner,
                    "specimen": f"S{i:02d}",
                    "patient": f"S{i:02d}",
                    "split": "",
                    "exclude": "",
                    "label": "ab"[i % 2],
                }
            )
            features.append(content + np.eye(dim, dtype=np.float32)[1] * s)
    table = pd.DataFrame(rows)
    task = {"type": "binary", "label": "label", "positive": "b"}
    result = splits.make(table, "t", task, {"folds": 3, "tune": 0.25, "seed": 0})
    bags = Bags(
        list(table["scan"]),
        np.concatenate(features),
        np.arange(len(table) + 1) * tiles,
        np.tile(np.arange(tiles), len(table)),
        list(table["specimen"]),
        [""] * len(table),
    )
    return result, bags


def run(rows, bags, arm=None, seeds=(0, 1), n_folds=3, shape=None, n_specimens=4, n_tiles=5, **settings):
    arm = ARM | (arm or {})
    folds = training.folds(rows, bags, arm, {"type": "binary"}, 2)[:n_folds]
    models = [training.Model(fold, seed) for fold in folds for seed in seeds]
    shape = shape or layers.Shape(bags.dim, 2, width=8, layers=2, attention=4, dropout=0.2)
    training.train(models, bags, shape, arm, SETTINGS | settings, n_specimens, n_tiles)
    return models


def assert_same(one, other, **tolerance):
    for name in one.state:
        torch.testing.assert_close(one.state[name], other.state[name], **tolerance)


def test_every_arm_learns_an_easy_task():
    rows, bags = cohort()
    for arm in ({}, {"embedding_weight": 0, "score_weight": 0}, {"sampler": "mixed"} | dict.fromkeys(WEIGHTS, 0)):
        models = run(rows, bags, arm, steps=60, n_folds=2, seeds=(0,))
        assert [model.status for model in models] == ["ok"] * 2
        assert np.mean([model.score.metric for model in models]) > 0.9
        assert all(row["step"] in range(10, 61, 10) for model in models for row in model.curve)


WEIGHTS = ("embedding_weight", "score_weight")


def test_same_seeds_give_the_same_bits():
    rows, bags = cohort()
    for one, other in zip(run(rows, bags, steps=20), run(rows, bags, steps=20), strict=True):
        assert_same(one, other, atol=0, rtol=0)
        assert str(one.curve) == str(other.curve)  # NaN is not equal to itself


def test_a_model_does_not_depend_on_its_neighbours():
    rows, bags = cohort()
    together = run(rows, bags)
    alone = run(rows, bags, seeds=(1,), n_folds=1)[0]
    assert_same(together[1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.equal(together[0].state["head.weight"], together[1].state["head.weight"])


def test_arms_of_one_sampler_start_alike_and_see_the_same_batches():
    rows, bags = cohort()
    one, other = (run(rows, bags, dict.fromkeys(WEIGHTS, weight), steps=1, checkpoint_every=1) for weight in (0, 1))
    assert one[0].curve[0]["task"] == other[0].curve[0]["task"]
    assert math.isnan(one[0].curve[0]["score"])
    assert other[0].curve[0]["score"] > 0
    total = other[0].curve[0]
    assert total["total"] == pytest.approx(total["task"] + total["embedding"] + total["score"], rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 10])
def test_warm_up_of_the_weights(warmup):
    rows, bags = cohort()
    first = run(rows, bags, {"warmup_steps": warmup}, steps=1, checkpoint_every=1)[0].curve[0]
    share = 0.1 if warmup else 1.0
    assert first["total"] == pytest.approx(first["task"] + share * (first["embedding"] + first["score"]), rel=1e-5)


def test_optimiser_is_that_of_the_method():
    """One model against torch's own SGD, one-cycle and clipping, written plainly."""
    rows, bags = cohort()
    shape = layers.Shape(bags.dim, 2, width=8, layers=1, attention=4, dropout=0)
    clip = 0.05
    arm = dict.fromkeys(WEIGHTS, 0)
    model = run(rows, bags, arm, seeds=(3,), n_folds=1, shape=shape, clip=clip, steps=12, selection="last")[0]

    twin = training.Model(model.fold, 3)
    state = aggregators.init(shape, [twin.start])
    parameters = [state[name].requires_grad_() for name in layers.trainable(state)]
    momentum = [torch.zeros_like(parameter) for parameter in parameters]
    batches = sampling.paired(model.fold.specimens, bags, twin.batches, 4, 5)
    labels = [specimen.label for specimen in model.fold.specimens]
    share = torch.tensor([labels.count(1), labels.count(0)]) / len(labels)
    for step, batch in zip(range(12), batches, strict=False):
        x = torch.from_numpy(bags.features[batch.rows])
        logits = aggregators.forward(state, shape, x).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels[0]).long(), share)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        rise = 0.3 * 12 - 1
        if step <= rise:
            part = (1 - math.cos(math.pi * step / rise)) / 2
            lr, inertia = 0.05 / 25 + (0.05 - 0.05 / 25) * part, 0.95 - 0.1 * part
        else:
            part = (1 - math.cos(math.pi * (step - rise) / (11 - rise))) / 2
            lr, inertia = 0.05 + (0.05 / 12500 - 0.05) * part, 0.85 + 0.1 * part
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                gradient = gradient * min(1, clip / (norm + 1e-6)) + 0.02 * parameter
                momentum[i] = gradient if step == 0 else inertia * momentum[i] + gradient
                parameter -= lr * momentum[i]
    for name, value in state.items():
        torch.testing.assert_close(model.state[name], value.detach()[0], atol=1e-6, rtol=1e-5)


def test_a_model_that_is_not_finite_is_given_up_alone():
    rows, bags = cohort()
    fine = run(rows, bags)
    poisoned = set(fine[0].fold.specimens[0].scans) | set(fine[2].fold.specimens[0].scans)
    only = [s for s in poisoned if all(s not in sp.scans for m in fine[2:4] for sp in m.fold.specimens)]
    for scan in only:
        bags.features[bags.rows(scan)] = np.inf
    models = run(rows, bags, selection="last")
    hit = [any(s in sp.scans for sp in model.fold.specimens for s in only) for model in models]
    assert any(hit)
    assert not all(hit)
    for model, bad in zip(models, hit, strict=True):
        assert (model.status == "non_finite") == bad
        assert model.reason.startswith("loss or gradient not finite") == bad


def test_constant_scores_are_named():
    rows, bags = cohort(signal=0)
    models = run(rows, bags, {"score_weight": 1000}, steps=20)
    assert {model.status for model in models} == {"not_trained"}
    assert all("a constant guess has 0.693" in model.reason for model in models)


def test_the_rule_normalised_prefers_a_trained_checkpoint():
    rows, bags = cohort()
    model = run(rows, bags, steps=1, n_folds=1, seeds=(0,))[0]
    state = {"w": torch.zeros(1, 1)}
    value = training.selection.Score
    row = {"step": 1, "task": 0.2, "guess": 0.69}
    fresh = training.Model(model.fold, 0)
    fresh.consider(1, state, value(0.9, 0.1, 0.1, 0.001), row, "normalised")
    assert fresh.status == "collapsed"
    fresh.consider(2, state, value(0.6, 0.5, 0.1, 0.3), row, "normalised")
    assert (fresh.status, fresh.step) == ("ok", 2)
    fresh.consider(3, state, value(0.9, 0.1, 0.1, 0.001), row, "normalised")
    fresh.consider(4, state, value(0.6, 0.6, 0.1, 0.3), row, "normalised")
    assert fresh.step == 2
    fresh.consider(5, state, value(0.6, 0.5, 0.1, 0.3), row, "normalised")
    assert fresh.step == 5
    assert len(fresh.curve) == 5


def test_padded_and_lonely_specimens_train():
    rows, bags = cohort()
    rows = rows[~((rows["scanner"] == "B") & (rows["specimen"] < "S08"))]
    models = run(rows, bags, n_tiles=12, steps=10)
    assert all(np.isfinite(model.curve[-1]["total"]) for model in models)


@pytest.mark.parametrize("arm", [{"embedding_loss": "mse"}, {"embedding_loss": "cosine"}, {"score_loss": "kl"}])
def test_other_losses_train(arm):
    rows, bags = cohort()
    assert np.isfinite(run(rows, bags, arm, steps=10, n_folds=1)[0].curve[-1]["total"])


def test_a_model_stops_alone_and_leaves_no_trace_in_the_others():
    """Patience of two checkpoints; those that go on have the same bits as without it."""
    rows, bags = cohort(signal=0.5)
    whole = run(rows, bags, steps=60, checkpoint_every=5)
    stopped = run(rows, bags, steps=60, checkpoint_every=5, patience=2)
    early = [model.curve[-1]["step"] < 60 for model in stopped]
    assert any(early)
    for model, twin, is_early in zip(stopped, whole, early, strict=True):
        assert str(model.curve) == str(twin.curve[: len(model.curve)])
        if is_early:
            assert model.waited == 2
            assert model.step <= model.curve[-3]["step"]
        else:
            assert_same(model, twin, atol=0, rtol=0)


def test_training_ends_when_all_have_stopped():
    rows, bags = cohort(signal=4)
    models = run(rows, bags, steps=400, checkpoint_every=5, patience=1, selection="metric")
    assert max(model.curve[-1]["step"] for model in models) < 400


def test_the_last_checkpoint_is_always_better():
    rows, bags = cohort()
    for model in run(rows, bags, steps=40, selection="last", patience=1):
        assert model.step == 40


@pytest.mark.parametrize("aggregator", ["abmil", "transmil"])
def test_half_the_bits_train_about_as_well(aggregator):
    """Parameters stay float32; after 30 steps the tuning metric is within 0.1, losses are close at the start."""
    rows, bags = cohort()
    shape = layers.Shape(bags.dim, 2, width=16, layers=2, attention=4, aggregator=aggregator)
    exact, rough = (
        run(
            rows, bags, shape=shape, precision=name, n_folds=1, checkpoint_every=1, learning_rate=0.02, selection="last"
        )
        for name in ("float32", "bfloat16")
    )
    for one, other in zip(exact, rough, strict=True):
        assert {value.dtype for value in other.state.values()} == {torch.float32}
        assert other.curve[0]["total"] == pytest.approx(one.curve[0]["total"], rel=0.05)
        assert other.score.metric == pytest.approx(one.score.metric, abs=0.1)
        assert not torch.equal(one.state["head.weight"], other.state["head.weight"])


def test_optimisers_and_schedules_from_the_config_run():
    rows, bags = cohort()
    arm = dict.fromkeys(WEIGHTS, 0)
    models = run(rows, bags, arm, steps=60, n_folds=1, optimiser="adamw_cosine", learning_rate=0.01)
    assert all(model.curve[-1]["task"] < model.curve[0]["task"] for model in models)
    assert models[0].curve[-1]["lr"] < 1e-5


def test_balanced_batches_need_no_class_weights():
    rows, bags = cohort()
    rows = rows[~rows["specimen"].isin(("S01", "S03", "S05", "S07"))]
    plain, balanced = (
        training.folds(rows, bags, ARM | {"balance": balance}, {"type": "binary"}, 2)[0].fitted["class_weights"]
        for balance in (False, True)
    )
    assert plain[0] < plain[1]
    assert balanced == [0.5, 0.5]
    assert run(rows, bags, {"balance": True}, steps=60, n_folds=1, seeds=(0,))[0].score.metric > 0.9
