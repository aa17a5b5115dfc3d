"""Task losses beside cross-entropy: squared error, Cox partial likelihood, discrete-time hazard.

As in `losses.py` every function carries a leading axis M of models that train side by side and returns one loss each.
"""

import torch
from torch import Tensor


def squared_error(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mean squared error of scores (M, R, 1) against values (M, R): (M,)."""
    return (logits.squeeze(-1) - values).square().mean(-1)


def cox(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Return the negative log partial likelihood per event, ties by Efron's method.

    With events i, the number d of events at i's time t and their order l = 0 … d - 1 among these:

        mean over i of  log(Σ_{j: t_j >= t} exp r_j  -  l/d · Σ_{j: event at t} exp r_j)  -  r_i

    A patient censored at t was still at risk at t. Not changed by adding a constant to all risks. Sources: Cox 1972;
    Efron 1977 (ties).

    Args:
        risks: (..., R) log risks; the risk set is whoever stands in the same row.
        times: (..., R) time to event or censoring.
        events: (..., R) 1 for an event, 0 for censored.

    Returns:
        (...) loss; 0, with a gradient of 0, for a row without events.
    """
    died = events > 0.5
    at_risk = times.unsqueeze(-2) >= times.unsqueeze(-1)  # [..., i, j]: j is at risk at the time of i
    tied = (times.unsqueeze(-2) == times.unsqueeze(-1)) & died.unsqueeze(-2) & died.unsqueeze(-1)
    order, n_tied = (part.sum(-1).to(risks.dtype) for part in (tied.tril(-1), tied))
    share = (order / n_tied.clamp(min=1)).unsqueeze(-1)
    weights = at_risk.to(risks.dtype) - share * tied  # above 0 for i itself, so no row of the sum is empty
    denominator = torch.logsumexp(risks.unsqueeze(-2) + weights.log(), -1)
    return torch.where(died, denominator - risks, 0.0).sum(-1) / died.sum(-1).clamp(min=1)


def hazard(logits: Tensor, times: Tensor, events: Tensor, edges: Tensor) -> Tensor:
    """Return the mean negative log likelihood of a discrete-time hazard model.

    Interval k reaches from edge k up to, and without, edge k + 1; the first edge is 0 and the last interval has no end.
    h_k = sigmoid(logit k) is the probability of an event in k for those who reach it. An event in k contributes
    -log h_k - Σ_{j<k} log(1 - h_j); a patient censored in k - Σ log(1 - h_j) over j < k, and over j = k too if
    followed beyond the interval's middle. Source: Gensheimer & Narasimhan 2019 (nnet-survival).

    Args:
        logits: (M, R, K).
        times: (M, R).
        events: (M, R) 1 for an event, 0 for censored.
        edges: (M, K + 1) increasing; the last is the longest follow-up in training, and serves as the end of the last
            interval where its middle is asked for.

    Returns:
        (M,) mean over R.
    """
    reached = interval_of(times, edges)
    k = torch.arange(logits.shape[-1], device=logits.device)
    middles = ((edges[:, 1:] + edges[:, :-1]) / 2).gather(-1, reached)
    died = events > 0.5
    survived = (k < reached.unsqueeze(-1)) | ((k == reached.unsqueeze(-1)) & (~died & (times >= middles)).unsqueeze(-1))
    failed = (k == reached.unsqueeze(-1)) & died.unsqueeze(-1)
    # -log(1 - h) = softplus(x), -log h = softplus(-x)
    softplus = torch.nn.functional.softplus
    return (survived * softplus(logits) + failed * softplus(-logits)).sum(-1).mean(-1)


def interval_of(times: Tensor, edges: Tensor) -> Tensor:
    """Return the interval (M, R) of times (M, R); those beyond the last edge (M, K + 1) are in the last interval."""
    return (torch.searchsorted(edges.contiguous(), times.contiguous(), right=True) - 1).clamp(0, edges.shape[-1] - 2)


def event_probability(logits: Tensor) -> Tensor:
    """Return 1 less the mean over intervals of the probability to have no event up to its end: (..., K) -> (...).

    Range 0 to 1, higher is worse. It orders patients as minus the sum of the survival probabilities does.
    """
    return 1 - torch.nn.functional.logsigmoid(-logits).cumsum(-1).exp().mean(-1)
