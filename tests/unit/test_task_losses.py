"""Task losses against slow implementations written from the definitions, against lifelines, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import CoxPHFitter

from isoslide import task_losses


def cohort(n, seed=0, ties=True, dim=1):
    """Survival data with a real effect of `dim` covariates, times rounded so that many are tied, some censored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    time = rng.exponential(np.exp(-0.7 * x.sum(1)) * 5) + 0.3
    return x, np.ceil(time) if ties else time, (rng.uniform(size=n) < 0.7).astype(float)


def slow_cox(r, t, e):
    total = 0.0
    for time in sorted({t[i] for i in range(len(t)) if e[i]}):
        dead = [i for i in range(len(t)) if e[i] and t[i] == time]
        risk = sum(math.exp(r[j]) for j in range(len(t)) if t[j] >= time)
        own = sum(math.exp(r[i]) for i in dead)
        total += sum(math.log(risk - k / len(dead) * own) for k in range(len(dead))) - sum(r[i] for i in dead)
    return total / sum(e) if sum(e) else 0.0


def tensors(*arrays):
    return [torch.tensor(np.asarray(array), dtype=torch.float64) for array in arrays]


@pytest.mark.parametrize(("n", "ties"), [(1, True), (2, True), (12, True), (12, False), (60, True)])
def test_cox_is_the_slow_one(n, ties):
    for seed in range(4):
        x, t, e = cohort(n, seed, ties)
        r = 1.3 * x[:, 0] + 0.2
        assert task_losses.cox(*tensors(r, t, e)).item() == pytest.approx(slow_cox(r, t, e), abs=1e-12)


def test_cox_by_hand():
    """Events at 1 (risk 0) and, tied, at 2 (risks 0 and ln 2); one censored at 2 (risk 0)."""
    r, t, e = tensors([0, 0, math.log(2), 0], [1, 2, 2, 2], [1, 1, 1, 0])
    expected = (math.log(5) - 0) + (math.log(4) + math.log(4 - 1.5)) - math.log(2)
    assert task_losses.cox(r, t, e).item() == pytest.approx(expected / 3)
    assert task_losses.cox(r + 50, t, e).item() == pytest.approx(expected / 3)  # a common constant changes nothing


@pytest.mark.parametrize(("ties", "dim"), [(True, 1), (False, 1), (True, 3)])
def test_cox_is_lifelines_partial_likelihood(ties, dim):
    """At lifelines' estimate ours is its log-likelihood (Efron), and has no gradient along any covariate."""
    x, t, e = cohort(80, 3, ties, dim)
    frame = pd.DataFrame(x).assign(t=t, e=e).rename(columns=str)
    fit = CoxPHFitter().fit(frame, "t", "e", fit_options={"precision": 1e-12})
    beta = torch.tensor(fit.params_.to_numpy(), requires_grad=True)
    data = tensors(x, t, e)
    loss = task_losses.cox(data[0] @ beta, *data[1:]) * e.sum()
    loss.backward()
    assert -loss.item() == pytest.approx(fit.log_likelihood_, abs=1e-8)
    assert beta.grad.numpy() == pytest.approx(np.zeros(dim), abs=1e-4)
    variances = torch.autograd.functional.hessian(
        lambda b: task_losses.cox(data[0] @ b, *data[1:]) * e.sum(), beta.detach()
    )
    assert np.linalg.inv(variances.numpy()) == pytest.approx(fit.variance_matrix_.to_numpy(), rel=1e-5)


def test_cox_without_events_is_zero_and_rows_are_apart():
    r, t, e = tensors(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.zeros((2, 3, 4)))
    e[1, 2] = 1
    r.requires_grad_()
    loss = task_losses.cox(r, t, e)
    assert loss.shape == (2, 3)
    loss.sum().backward()
    assert loss[0].tolist() == [0, 0, 0]
    assert not r.grad[0].any()
    assert torch.isfinite(r.grad).all()
    assert loss[1, 2].item() == pytest.approx((math.log(4) + math.log(3) + math.log(2) + math.log(1)) / 4)


def test_gradients_are_those_of_differences():
    x, t, e = cohort(9, 5)
    r, t, e = tensors(x[None, :, 0], t[None], e[None])
    r.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: task_losses.cox(r, t, e), r)
    logits = torch.randn(1, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    edges = torch.tensor([[0.0, 2, 4, 12]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: task_losses.hazard(x, t, e, edges), logits)
    assert torch.autograd.gradcheck(lambda x: task_losses.squared_error(x, t), r.detach()[..., None].requires_grad_())


def test_cox_with_huge_risks_stays_finite():
    r, t, e = tensors([500.0, -500.0, 0.0], [2, 1, 1], [1, 1, 1])
    assert task_losses.cox(r, t, e).item() == pytest.approx((0 + 1000 + 500) / 3)


def slow_hazard(logits, t, e, edges):
    total = 0.0
    for row, time, event in zip(logits, t, e, strict=True):
        likelihood, k = 1.0, 0
        while k + 1 < len(row) and time >= edges[k + 1]:
            k += 1
        for j, value in enumerate(row):
            h = 1 / (1 + math.exp(-value))
            if j < k or (j == k and not event and time >= (edges[k] + edges[k + 1]) / 2):
                likelihood *= 1 - h
            elif j == k and event:
                likelihood *= h
        total -= math.log(likelihood)
    return total / len(t)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_hazard_is_the_slow_one(n):
    rng = np.random.default_rng(n)
    _, t, e = cohort(n, n)
    logits, edges = rng.normal(size=(n, 4)), np.array([0, 1.5, 3, 6, 20.0])
    value = task_losses.hazard(*tensors(logits[None], t[None], e[None], edges[None]))
    assert value.item() == pytest.approx(slow_hazard(logits, t, e, edges), abs=1e-12)


def test_hazard_by_hand():
    """Two intervals, [0, 10) and [10, 20]; hazards 0.2 and 0.5."""
    logits = torch.logit(torch.tensor([[[0.2, 0.5]]], dtype=torch.float64))
    edges = torch.tensor([[0.0, 10, 20]], dtype=torch.float64)
    for time, event, likelihood in (
        (5, 1, 0.2),
        (10, 1, 0.8 * 0.5),  # on an edge: the later interval
        (99, 1, 0.8 * 0.5),  # beyond the last: the last interval
        (4.9, 0, 1),  # censored before the middle says nothing
        (5, 0, 0.8),
        (14, 0, 0.8),
        (15, 0, 0.8 * 0.5),
    ):
        t, e = tensors([[time]], [[event]])
        assert math.exp(-task_losses.hazard(logits, t, e, edges)) == pytest.approx(likelihood)
    assert task_losses.event_probability(logits).item() == pytest.approx(1 - (0.8 + 0.4) / 2)


def test_event_probability_orders_as_minus_the_sum_of_survival():
    logits = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    survival = torch.cumprod(1 - logits.sigmoid(), -1).sum(-1)
    p = task_losses.event_probability(logits)
    assert torch.equal(p.argsort(), (-survival).argsort())
    assert bool(((p > 0) & (p < 1)).all())


def test_squared_error_by_hand():
    logits = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]])
    assert task_losses.squared_error(logits, torch.tensor([[1.0, 4.0], [1.0, 3.0]])).tolist() == [2, 5]
