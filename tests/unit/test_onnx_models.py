"""The ONNX graph of an ensemble gives what torch gives, for every kind of task and aggregator that has one."""

import numpy as np
import onnxruntime
import pytest
import torch

from isoslide import aggregators, layers, onnx_models, scoring, tasks
from isoslide.bags import Bags

DIM = 12
BAGS = (1, 2, 5, 300)  # tiles
TASKS = {
    "binary": ({"type": "binary"}, 2, {}),
    "classes": ({"type": "survival", "loss": "classes"}, 2, {}),
    "multiclass": ({"type": "multiclass"}, 3, {}),
    "regression": ({"type": "regression"}, 1, {"mean": [30.0], "sd": [5.0]}),
    "cox": ({"type": "survival", "loss": "cox"}, 1, {}),
    "hazard": ({"type": "survival", "loss": "hazard", "intervals": 4}, 4, {}),
}


def members(aggregator="abmil", kind="binary", n=3):
    task, outputs, fitted = TASKS[kind]
    shape = layers.Shape(DIM, outputs, 8, 2, 8, 0.2, aggregator)
    made = []
    for seed in range(n):
        rng = torch.Generator().manual_seed(seed)
        state = aggregators.init(shape, [rng])
        for name in state:  # as after training: running statistics that are not those of the start
            if name.endswith((".mean", ".bias")):
                state[name] = torch.randn(state[name].shape, generator=rng) * 0.3
            if name.endswith(".var"):
                state[name] = torch.rand(state[name].shape, generator=rng) + 0.5
        made.append(scoring.Member(state, shape, task, {key: [v + seed for v in fitted[key]] for key in fitted}))
    return made


def test_every_kind_of_task_is_tested():
    assert set(TASKS) == set(tasks.KINDS)


GRAPHS = [("abmil", kind) for kind in TASKS] + [(name, "binary") for name in ("gated_abmil", "clam_sb", "mean")]


@pytest.mark.parametrize(("aggregator", "kind"), GRAPHS)
def test_equal_to_torch(tmp_path, aggregator, kind):
    """Bags of one tile and of many, through the scoring that predictions and applied scores use."""
    ensemble = members(aggregator, kind)
    onnx_models.write(tmp_path / "model.onnx", ensemble)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    values = np.random.default_rng(0).normal(size=(sum(BAGS), DIM)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(BAGS)])
    bags = Bags([str(n) for n in BAGS], values, offsets, np.arange(len(values)), [""] * len(BAGS), [""] * len(BAGS))
    logits = scoring.logits(ensemble, bags.tensor(), bags, np.arange(len(BAGS)), np.array(["A"] * len(BAGS)))
    each = scoring.columns(ensemble, logits)
    mean = scoring.ensemble(each, ensemble[0].task)
    names = ["p_0", "p_1", "p_2"] if kind == "multiclass" else ["p"]
    for i in range(len(BAGS)):
        p, p_models = session.run(["p", "p_models"], {"features": values[offsets[i] : offsets[i + 1]]})
        expected = np.array([[one[name][i] for name in names] for one in each])
        assert p_models.reshape(expected.shape) == pytest.approx(expected, rel=1e-6, abs=1e-5)
        assert p.reshape(len(names)) == pytest.approx([mean[name][i] for name in names], rel=1e-6, abs=1e-5)
    assert np.ptp([one["p"] for one in each], axis=0).min() > 1e-3  # the models do differ


def test_what_has_no_graph_says_why():
    assert onnx_models.lacks(members()) == ""
    assert "by their number" in onnx_models.lacks(members("transmil"))
    one = members()[0]
    harmonised = scoring.Member(one.state, one.shape, one.task, one.fitted, ("A", "B"))
    assert "harmonised by scanner" in onnx_models.lacks([harmonised])
