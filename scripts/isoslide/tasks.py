"""What tells one kind of task from another, as data: outputs, loss, what a fold's loss needs to know, scores.

A kind is named by `outcomes.kind_of`. Its scores are on the scale that checkpoints are compared on; the columns of the
predictions are:

- `binary`, `classes` (survival as good or poor): `logit` of class 1 minus that of class 0, `p` its logistic function.
- `multiclass`: `p_0`, `p_1`, … of the classes in the order of their index; `p` is the largest of them, the probability
  of the predicted class, and `logit` ln(p / (1 - p)). What compares scans reads `p_0`, …, not `p`.
- `regression`: `p` in the unit of the label, `logit` in SDs of the training specimens from their mean.
- `cox`: `logit` is the log risk (its zero has no meaning), `p` its logistic function.
- `hazard`: `p` is 1 less the mean over intervals of the probability to reach its end without the event, `logit`
  ln(p / (1 - p)).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoslide import losses, outcomes, task_losses
from isoslide.sampling import Batch, Specimen

Fitted = dict[str, list[float]]
"""What the loss takes from a fold's training specimens, as the model's card keeps it; `guess`: logits of a constant."""


@dataclass(frozen=True)
class Truth:
    """Outcomes of the G bags of a step, each (M, G): class index or value, time and event (NaN where there is none).

    `sides` is 2 where bags g and g + G / 2 are two scans of one specimen, else 1.
    """

    labels: Tensor
    times: Tensor
    events: Tensor
    sides: int


@dataclass(frozen=True)
class Task:
    """How a kind of task is learned.

    Attributes:
        outputs: (settings, number of classes) -> outputs of the model.
        lacks: (training specimens, outputs) -> why nothing can be learned from them, or the empty string.
        fit: (training specimens, outputs) -> what the loss takes from them.
        loss: (logits (M, G, C), truth, fitted with a leading axis M) -> (M,).
        scores: logits (..., C) -> (..., S), what checkpoints are compared by; S is 1 but for multiclass.
        columns: (logits (n, C), fitted of one model) -> columns of the predictions.
    """

    outputs: Callable[[Mapping[str, Any], int], int]
    lacks: Callable[[Sequence[Specimen], int], str]
    fit: Callable[[Sequence[Specimen], int], Fitted]
    loss: Callable[[Tensor, Truth, Mapping[str, Tensor]], Tensor]
    scores: Callable[[Tensor], Tensor]
    columns: Callable[[Tensor, Mapping[str, Sequence[float]]], dict[str, Tensor]]


def of(settings: Mapping[str, Any]) -> Task:
    """Return the kind of a task, by its block of the configuration."""
    return KINDS[outcomes.kind_of(settings)]


def stack(fitted: Sequence[Fitted]) -> dict[str, Tensor]:
    """Return what the losses of M models take as tensors (M, ...)."""
    return {name: torch.tensor([one[name] for one in fitted], dtype=torch.float32) for name in fitted[0]}


def truth(batch: Batch, sides: int) -> Truth:
    """Return the outcomes of a batch as tensors."""
    labels, times, events = (
        torch.from_numpy(array).to(torch.float32) for array in (batch.labels, batch.times, batch.events)
    )
    return Truth(labels, times, events, sides)


def guess_loss(task: Task, logits: Tensor, known: Truth, fitted: Mapping[str, Tensor]) -> Tensor:
    """Return the loss (M,) that the best constant score would have on a step; `logits` give the shape."""
    return task.loss(fitted["guess"].unsqueeze(1).expand_as(logits), known, fitted)


def columns(
    settings: Mapping[str, Any], logits: Tensor, fitted: Mapping[str, Sequence[float]]
) -> dict[str, np.ndarray]:
    """Return the columns of the predictions (`logit`, `p`; of classes `p_0`, …) from the logits (n, C) of a model."""
    found = of(settings).columns(logits.double(), fitted)
    return {name: values.numpy() for name, values in found.items()}


def _two_columns(logits: Tensor, fitted: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    difference = logits[:, 1] - logits[:, 0]
    return {"logit": difference, "p": difference.sigmoid()}


def _class_columns(logits: Tensor, fitted: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    p = logits.softmax(-1)
    best = p.max(-1).values
    return {"logit": best.logit(), "p": best} | {f"p_{i}": p[:, i] for i in range(p.shape[-1])}


def _value_columns(logits: Tensor, fitted: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    return {"logit": logits[:, 0], "p": fitted["mean"][0] + fitted["sd"][0] * logits[:, 0]}


def _risk_columns(logits: Tensor, fitted: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    return {"logit": logits[:, 0], "p": logits[:, 0].sigmoid()}


def _hazard_columns(logits: Tensor, fitted: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    p = task_losses.event_probability(logits)
    return {"logit": p.logit(), "p": p}


def _classes_lack(specimens: Sequence[Specimen], outputs: int) -> str:
    return "" if len({one.label for one in specimens}) == outputs else f"not of all {outputs} classes"


def _classes_fit(specimens: Sequence[Specimen], outputs: int) -> Fitted:
    counts = np.bincount([int(one.label) for one in specimens], minlength=outputs)
    weights = losses.class_weights(torch.from_numpy(counts).to(torch.float32))
    return {"class_weights": weights.tolist(), "guess": [0.0] * outputs}


def _classes_loss(logits: Tensor, known: Truth, fitted: Mapping[str, Tensor]) -> Tensor:
    return losses.cross_entropy(logits, known.labels.long(), fitted["class_weights"])


def _values_lack(specimens: Sequence[Specimen], outputs: int) -> str:
    return "" if len({one.label for one in specimens}) > 1 else "all with the same value"


def _values_fit(specimens: Sequence[Specimen], outputs: int) -> Fitted:
    values = np.array([one.label for one in specimens])
    return {"mean": [float(values.mean())], "sd": [float(values.std())], "guess": [0.0]}


def _values_loss(logits: Tensor, known: Truth, fitted: Mapping[str, Tensor]) -> Tensor:
    return task_losses.squared_error(logits, (known.labels - fitted["mean"]) / fitted["sd"])


def _events_lack(specimens: Sequence[Specimen], outputs: int) -> str:
    times = {one.time for one in specimens if one.event}
    if len(times) < max(2, outputs):
        return f"with events at {len(times)} different times, of at least {max(2, outputs)}"
    return ""


def _cox_loss(logits: Tensor, known: Truth, fitted: Mapping[str, Tensor]) -> Tensor:
    m, g, _ = logits.shape
    shape = (m, known.sides, g // known.sides)
    return task_losses.cox(*(part.reshape(shape) for part in (logits, known.times, known.events))).mean(-1)


def _hazard_fit(specimens: Sequence[Specimen], outputs: int) -> Fitted:
    times, events = (np.array([getattr(one, name) for one in specimens]) for name in ("time", "event"))
    inner = np.quantile(times[events == 1], np.arange(1, outputs) / outputs)
    edges = np.concatenate([[0.0], inner, [times.max()]])
    reached = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, outputs - 1)
    middles = ((edges[1:] + edges[:-1]) / 2)[reached]
    exposed = reached + ((events == 1) | (times >= middles))  # intervals a specimen counts in
    at_risk = np.array([(exposed > k).sum() for k in range(outputs)])
    failed = np.bincount(reached[events == 1], minlength=outputs)
    rates = np.clip(failed / np.maximum(at_risk, 1), 0.01, 0.99)
    return {"edges": edges.tolist(), "guess": np.log(rates / (1 - rates)).tolist()}


def _hazard_loss(logits: Tensor, known: Truth, fitted: Mapping[str, Tensor]) -> Tensor:
    return task_losses.hazard(logits, known.times, known.events, fitted["edges"])


_CLASSES = Task(
    outputs=lambda settings, n_classes: n_classes,
    lacks=_classes_lack,
    fit=_classes_fit,
    loss=_classes_loss,
    scores=lambda logits: logits.softmax(-1)[..., 1:],
    columns=_two_columns,
)
KINDS: Mapping[str, Task] = {
    "binary": _CLASSES,
    "classes": _CLASSES,
    "multiclass": Task(
        outputs=lambda settings, n_classes: n_classes,
        lacks=_classes_lack,
        fit=_classes_fit,
        loss=_classes_loss,
        scores=lambda logits: logits.softmax(-1),
        columns=_class_columns,
    ),
    "regression": Task(
        outputs=lambda settings, n_classes: 1,
        lacks=_values_lack,
        fit=_values_fit,
        loss=_values_loss,
        scores=lambda logits: logits,
        columns=_value_columns,
    ),
    "cox": Task(
        outputs=lambda settings, n_classes: 1,
        lacks=_events_lack,
        fit=lambda specimens, outputs: {"guess": [0.0]},
        loss=_cox_loss,
        scores=torch.sigmoid,
        columns=_risk_columns,
    ),
    "hazard": Task(
        outputs=lambda settings, n_classes: settings["intervals"],
        lacks=_events_lack,
        fit=_hazard_fit,
        loss=_hazard_loss,
        scores=lambda logits: task_losses.event_probability(logits).unsqueeze(-1),
        columns=_hazard_columns,
    ),
}
