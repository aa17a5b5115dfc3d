"""Loss on tiles of CLAM-SB: the tiles that attention picks must look like their bag's class, the ignored ones not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from isoslide.layers import Output, State, full


def instance_loss(state: State, out: Output, labels: Tensor, valid: Tensor, n_tiles: int) -> Tensor:
    """Return the loss of the tile classifiers, one of two outputs (no, yes) per class.

    Of each bag, the k tiles with most attention are `yes` and the k with least are `no` for the classifier of the
    bag's class; mean cross-entropy over the 2 k tiles, then over the bags. A bag with fewer than `n_tiles` tiles gives
    all it has. Which tiles are taken carries no gradient.

    Reference: Lu et al. 2021, Data-efficient and weakly supervised computational pathology on whole-slide images, with
    cross-entropy for their smooth SVM loss and without the option for mutually exclusive classes.

    Args:
        state: parameters, among them `instance.weight` (M, 2 C, E) and `instance.bias` (M, 2 C).
        out: of the forward pass.
        labels: (M, G) class of each bag.
        valid: (M, G, T) bool, False for padding.
        n_tiles: k at most.

    Returns:
        (M,) loss; ln 2 for classifiers that give every tile the same scores.
    """
    attention, chosen_tiles = out.attention.detach(), min(n_tiles, valid.shape[-1])
    n_valid = valid.sum(-1)  # (M, G)
    index, used, wanted = [], [], []
    for sign, target in ((1, 1), (-1, 0)):
        order = (sign * attention).masked_fill(~valid, float("-inf")).topk(chosen_tiles, -1).indices
        index.append(order)
        used.append(torch.arange(chosen_tiles, device=valid.device) < n_valid.unsqueeze(-1))
        wanted.append(torch.full_like(order, target))
    index, used, wanted = (torch.cat(both, -1) for both in (index, used, wanted))  # (M, G, 2 k)
    m, g, k = index.shape
    e = out.embeddings.shape[1]
    tiles = full(out.embeddings).gather(3, index.unsqueeze(1).expand(m, e, g, k)).permute(0, 2, 3, 1)
    own = labels.view(m, g, 1, 1)
    weight = state["instance.weight"].view(m, -1, 2 * e).gather(1, labels.unsqueeze(-1).expand(m, g, 2 * e))
    bias = state["instance.bias"].view(m, -1, 2).gather(1, own.squeeze(-1).expand(m, g, 2))
    logits = tiles @ weight.view(m, g, 2, e).transpose(2, 3) + bias.unsqueeze(2)  # (M, G, 2 k, 2)
    each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view(m, g, k)
    return ((each * used).sum(-1) / used.sum(-1)).mean(-1)
