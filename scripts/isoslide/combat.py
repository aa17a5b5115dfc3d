"""Rival arm `combat`: each feature brought to one location and scale over the scanners (Johnson, Li & Rabinovic 2007).

Samples are the tiles of a fold's training scans, batches are their scanners; there are no covariates, so scanners whose
specimens differ are made alike in that too. Features are standardised by the mean over all samples and the pooled
variance; shift and variance that each scanner has then are shrunk towards what they are over all features (parametric
empirical Bayes), which changes little where a scanner has thousands of tiles. What comes out is affine, per scanner and
feature:

    harmonised = (x - mean) / sqrt(var)

A model carries `combat.mean` and `combat.var` (scanners, features) in its state. Tuning and test scans get what was
fitted for their scanner on training scans; scans of a scanner that did not train stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isoslide import aggregators, layers
from isoslide.bags import Bags
from isoslide.layers import Shape, State
from isoslide.stored_features import Stored

UNSEEN = -1  # code of a scanner that did not train
NAMES = ("combat.mean", "combat.var")
CONVERGED, MAX_ROUNDS = 1e-6, 500


@dataclass(frozen=True)
class Moments:
    """Number of samples, and mean and sum of squared deviations (dim,) of each feature."""

    n: int
    mean: np.ndarray
    squares: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both samples together (Chan et al. 1979)."""
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), squares)


def moments(features: Tensor | Stored, bags: Bags, scan: int) -> Moments:
    """Return the moments of the tiles of a scan, in double precision."""
    x = features[torch.from_numpy(bags.rows(scan))].double().numpy()
    mean = x.mean(0)
    return Moments(len(x), mean, np.square(x - mean).sum(0))


def fit(scanners: Sequence[Moments]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and var (scanners, dim) that harmonise the features of each scanner.

    A feature that is constant over all samples of every scanner stays as it is.

    Args:
        scanners: moments of each scanner's samples.
    """
    n = np.array([one.n for one in scanners], dtype=float)[:, None]
    means = np.stack([one.mean for one in scanners])
    squares = np.stack([one.squares for one in scanners])
    centre = (n * means).sum(0) / n.sum()
    pooled = squares.sum(0) / n.sum()
    varies = pooled > 0
    sd = np.sqrt(np.where(varies, pooled, 1))
    shift = (means - centre) / sd  # of the standardised features
    spread = squares / pooled.clip(np.finfo(float).tiny) / np.maximum(n - 1, 1)
    spread[(spread == 0).all(1)] = 1  # of one sample, or of samples all alike, no variance can be told
    mean, var = np.zeros_like(means), np.ones_like(means)
    for i in range(len(scanners)):
        gamma, delta = _shrunk(n[i, 0], shift[i, varies], spread[i, varies])
        root = np.sqrt(delta)
        # (x - mean) / root = sd * (z - gamma) / root + centre with z = (x - centre) / sd
        mean[i, varies] = centre[varies] + gamma * sd[varies] - root * centre[varies]
        var[i, varies] = delta
    return mean, var


def apply(state: State, x: Tensor, codes: np.ndarray) -> Tensor:
    """Return the features (M, G, T, dim) of a batch, harmonised where the state says how.

    Args:
        state: of the models, with or without `NAMES`.
        x: features.
        codes: (M, G) scanner of each bag.
    """
    if NAMES[0] not in state:
        return x
    index = torch.from_numpy(codes).to(x.device)
    models = torch.arange(len(index), device=x.device)[:, None]
    mean, var = (state[name][models, index].unsqueeze(2) for name in NAMES)
    return ((x - mean) * var.rsqrt()).to(x.dtype)


def for_scanner(state: State, code: int) -> State:
    """Return models that take the features of one scanner as they are: harmonised within their first layer.

    Args:
        state: of the models; returned as it is where nothing was harmonised.
        code: of the scanner, or `UNSEEN`.
    """
    if NAMES[0] not in state:
        return state
    plain = {name: value for name, value in state.items() if name not in NAMES}
    if code == UNSEEN:
        return plain
    mean, var = (state[name][:, code].double() for name in NAMES)
    weight = plain["tile.0.weight"].double() * var.rsqrt().unsqueeze(1)
    bias = plain["tile.0.bias"].double() - torch.einsum("moi,mi->mo", weight, mean)
    return plain | {"tile.0.weight": weight.to(state["tile.0.weight"]), "tile.0.bias": bias.to(state["tile.0.bias"])}


def predict_scans(
    state: State, shape: Shape, features: Tensor | Stored, bags: Bags, scans: np.ndarray, codes: np.ndarray
) -> Tensor:
    """Return the logits (M, scans, C) of whole scans, see `aggregators.predict_scans`.

    Args:
        state: of the models.
        shape: sizes of the models.
        features: see `Bags.tensor`.
        bags: which rows belong to a scan.
        scans: indices into the bags.
        codes: scanner of each scan, or `UNSEEN`.
    """
    if NAMES[0] not in state:
        return aggregators.predict_scans(state, shape, features, bags, scans)
    out = torch.zeros(layers.n_models(state), len(scans), shape.outputs, device=state["head.bias"].device)
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        out[:, own] = aggregators.predict_scans(for_scanner(state, code), shape, features, bags, scans[own])
    return out


def _shrunk(n: float, shift: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and variance (dim,) of one scanner, shrunk towards their means over the features.

    Priors: normal for the shift, inverse gamma for the variance, both by the method of moments; the two conditional
    posterior means are computed in turn until they no longer change. Without spread over the features there is no
    prior to shrink to, and the values stay.
    """
    centre, width = shift.mean(), shift.var(ddof=1) if len(shift) > 1 else 0.0
    level, scatter = spread.mean(), spread.var(ddof=1) if len(spread) > 1 else 0.0
    if width == 0 or scatter == 0:
        return shift, spread
    shape, scale = 2 + level**2 / scatter, level + level**3 / scatter
    gamma, delta = shift, spread
    for _ in range(MAX_ROUNDS):
        new_gamma = (n * width * shift + delta * centre) / (n * width + delta)
        squares = (n - 1) * spread + n * (shift - new_gamma) ** 2
        new_delta = (scale + squares / 2) / (n / 2 + shape - 1)
        change = max(np.abs(new_gamma - gamma).max(), np.abs(new_delta / delta - 1).max())
        gamma, delta = new_gamma, new_delta
        if change < CONVERGED:
            break
    return gamma, delta
