"""The ensemble of an arm as one ONNX graph: features of a scan's tiles in, scores out.

Input `features` (n_tiles, dim) float32, any number of tiles from one on. Outputs `p` and `p_models`: the ensemble's
score and each model's, as the column `p` of the predictions has them; of a multiclass task with an axis of classes
behind, see `tasks.py`.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from isoslide import abmil, aggregators, atomic, models, outcomes, tasks
from isoslide.scoring import Member

OPSET = 20
EXAMPLE_TILES = 5  # of the bag that the graph is traced on


def lacks(members: Sequence[Member]) -> str:
    """Return why there is no ONNX graph of these models, or nothing."""
    if any(one.scanners for one in members):
        return "features are harmonised by scanner (combat): the graph would have to know the scanner of a scan"
    if members[0].shape.aggregator in aggregators.ORDERED:
        return (
            f"aggregator {members[0].shape.aggregator} lays its tiles out by their number, which a graph of fixed "
            "operations does not"
        )
    return ""


class Ensemble(nn.Module):
    """The models of an ensemble side by side, on one bag."""

    def __init__(self, members: Sequence[Member]):
        super().__init__()
        self.shape, self.members = members[0].shape, list(members)
        self.names = list(members[0].state)
        self.multiclass = outcomes.kind_of(members[0].task) == "multiclass"
        for name, tensor in models.stack([one.state for one in members]).items():
            self.register_buffer(name.replace(".", "__"), tensor.float())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return `p` () and `p_models` (M,), or (C,) and (M, C), of features (n, dim)."""
        state = {name: getattr(self, name.replace(".", "__")) for name in self.names}
        embeddings, scores = abmil.embed(state, self.shape, features)
        bag = torch.bmm(embeddings, scores.softmax(-1).unsqueeze(-1))
        logits = abmil.head(state, bag)  # (M, 1, C)
        each = []
        for one, own in zip(self.members, logits.unbind(0), strict=True):
            columns = tasks.of(one.task).columns(own, one.fitted)
            names = [name for name in columns if name.startswith("p_")] if self.multiclass else ["p"]
            values = torch.stack([columns[name][0] for name in names])
            each.append(values if self.multiclass else values[0])
        p_models = torch.stack(each)
        return p_models.mean(0), p_models


def write(path: str | Path, members: Sequence[Member]) -> None:
    """Write the graph of an ensemble that does not `lack` one."""
    for name in ("onnxscript", "onnx_ir"):  # which log every step of their own work
        logging.getLogger(name).setLevel(logging.WARNING)
    example = torch.zeros(EXAMPLE_TILES, members[0].shape.inputs)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter's own use of torch
        program = torch.onnx.export(
            Ensemble(members).eval(),
            (example,),
            input_names=["features"],
            output_names=["p", "p_models"],
            dynamic_shapes={"features": {0: torch.export.Dim("n_tiles")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    with atomic.output(path) as temporary:
        program.save(str(temporary))
    logging.info("ONNX graph of %d models, %d bytes", len(members), Path(path).stat().st_size)
