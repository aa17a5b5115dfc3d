"""What the models of an ensemble make of each tile of a scan: attention, contribution to the scan's score, own score.

A model that weighs its tiles gives a scan the logits head(sum of a_i h_i) with weights a_i that sum to 1. In evaluation
the head is affine, so they are the sum of a_i head(h_i), exactly: attention times what the tile alone would get. That
is the tile's contribution. It needs no origin: a tile that alone would get 0 contributes 0 whatever its weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoslide import outcomes

if TYPE_CHECKING:
    import torch

MEANINGS = {
    "binary": "probability",
    "classes": "probability",
    "regression": "predicted value",
    "cox": "risk, 0 to 1",
    "hazard": "risk, 0 to 1",
}
NO_SUM = "this risk is a product over intervals, no sum over tiles"


@dataclass(frozen=True)
class TileValues:
    """What the models of an ensemble make of the tiles of one scan, means over the models.

    Attributes:
        attention: (n,) share of the bag times n, so that 1 is what every tile would get if all were alike.
        p: (n,) score for a bag of that tile alone: the column `p` of the predictions; in a multiclass task the
            probability of the class that the models, in the mean, give the whole scan.
        bag: the same of the whole scan.
        contribution: (n,) what each tile adds to `total`; None where `no_contribution` says why.
        total: sum of the contributions: the scan's `logit`; of several classes that of the class less the mean of the
            other classes' logits; of a predicted value what it differs from the mean of the training specimens.
        meaning: what the score is.
        total_meaning: what the contributions sum to.
        bounded: whether the score lies between 0 and 1.
        no_contribution: why there are no contributions.
        classes: in a multiclass task the probabilities of every class by name (`p_0`, …): (n,) of the tiles alone,
        bag_classes: and those of the whole scan.
    """

    attention: np.ndarray
    p: np.ndarray
    bag: float
    contribution: np.ndarray | None
    total: float
    meaning: str = "probability"
    total_meaning: str = "logit"
    bounded: bool = True
    no_contribution: str = ""
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    bag_classes: Mapping[str, float] = field(default_factory=dict)


def of_scan(paths: Sequence[str], features: np.ndarray, scanner: str | None = None) -> TileValues:
    """Return the values of the tiles of a scan, from its features (n, dim), the models' files and its scanner."""
    import torch

    from isoslide import aggregators, models

    loaded = [models.load(path, scanner) for path in paths]
    state, shape = models.stack([state for state, _ in loaded]), loaded[0][1]
    cards = [models.card(Path(path)) for path in paths]
    kind = outcomes.kind_of(cards[0]["settings"]["task"])
    x = torch.from_numpy(features).float()
    with torch.inference_mode():
        weights, tile_logits = aggregators.tile_values(state, shape, x)
        bag_logits = aggregators.predict(state, shape, x, [len(x)])
    tiles, bag = (_scores(cards, logits) for logits in (tile_logits, bag_logits))
    column, meaning, summed = "p", MEANINGS.get(kind, ""), {"cox": "log risk", "regression": "value less the mean"}
    total_meaning = summed.get(kind, "logit")
    index, names = 1, [name for name in bag if name.startswith("p_")]
    if kind == "multiclass":
        index = max(range(shape.outputs), key=lambda one: bag[f"p_{one}"][0])
        column, meaning = f"p_{index}", f"probability of class {index}"
        total_meaning = f"logit of class {index}"
    why_not = NO_SUM if kind == "hazard" else aggregators.no_sum(shape.aggregator)
    terms = (weights.double().unsqueeze(-1) * tile_logits.double()).numpy()  # (M, n, C)
    contribution = None if why_not else _linear(terms, index, cards)
    return TileValues(
        attention=weights.mean(0).numpy() * len(x),
        p=tiles[column],
        bag=float(bag[column][0]),
        contribution=contribution,
        total=float("nan") if why_not else float(_linear(bag_logits.double().numpy(), index, cards)[0]),
        meaning=meaning,
        total_meaning="" if why_not else total_meaning,
        bounded=kind != "regression",
        no_contribution=why_not,
        classes={name: tiles[name] for name in names},
        bag_classes={name: float(bag[name][0]) for name in names},
    )


def _scores(cards: Sequence[dict], logits: "torch.Tensor") -> dict[str, np.ndarray]:
    """Return the columns of the predictions for n bags, means over the models, from logits (models, n, C)."""
    from isoslide import tasks

    each = [
        tasks.columns(card["settings"]["task"], own, card["fitted"]) for card, own in zip(cards, logits, strict=True)
    ]
    return {name: np.mean([columns[name] for columns in each], axis=0) for name in each[0]}


def _linear(terms: np.ndarray, index: int, cards: Sequence[dict]) -> np.ndarray:
    """Return (n,) the mean over models of what is summed over tiles, from logits or terms of them (M, n, C)."""
    if terms.shape[-1] == 1:
        scales = [card["fitted"].get("sd", [1.0])[0] for card in cards]  # of a predicted value: its unit
        return (terms[..., 0] * np.array(scales)[:, None]).mean(0)
    others = np.delete(terms, index, axis=-1).mean(-1)
    return (terms[..., index] - others).mean(0)
