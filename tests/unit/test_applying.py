"""Applied scores of tasks without a positive class, from folders written by hand."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from isoslide import aggregators, applying, layers, model_folder, ranges, status
from isoslide.summaries import Summaries


def write_folder(path, task, outputs, fitted, classes=()):
    """Two models on three features, with random weights; the card as far as applying reads it."""
    shape = layers.Shape(3, outputs, 4, 1, 2)
    models = []
    for seed in range(2):
        state = aggregators.init(shape, [torch.Generator().manual_seed(seed)])
        file = f"fold0_seed{seed}.safetensors"
        save_file({name: value[0].contiguous() for name, value in state.items()}, path / file)
        models.append({"file": file, "shape": shape.as_dict(), "fitted": fitted, "combat": [], "threshold": None})
    scans = pd.DataFrame({"scan": ["r", "s"], "patient": ["r", "s"], "scanner": "A"})
    means = np.array([[0.0, 0, 0], [1, 1, 1]])
    ranges.write(path / "range.safetensors", ranges.build(scans, Summaries(["r", "s"], np.ones(2), means, means, {})))
    encoder = {"id": "toy", "weights_sha256": "", "dim": 3, "imported": True}
    card = {"task": {"settings": task, "classes": list(classes)}, "threshold": {"value": None}, "models": models}
    return card | {"encoder": encoder}


def write_features(path):
    rng, rows = np.random.default_rng(1), []
    for scan, n in (("a", 1), ("b", 6)):
        with h5py.File(path / f"{scan}.h5", "w") as file:
            file["features"], file["tile_ids"] = rng.normal(size=(n, 3)).astype(np.float16), np.arange(n)
            file.attrs["encoder"] = "toy"
        row = {"scan": scan, "status": "ok", "path": path / f"{scan}.h5", "specimen": scan, "scanner": "A"}
        rows.append(row | {"n_tiles": n, "key": scan})
    status.write(path / "features.tsv", rows)
    return str(path / "features.tsv")


def logits_by_hand(path, card, scan):
    """(models, C) of a scan, each model by itself."""
    with h5py.File(path / f"{scan}.h5") as file:
        x = torch.from_numpy(file["features"][:].astype(np.float32))
    members = applying.members(path, card)
    return torch.cat([aggregators.predict(one.state, one.shape, x, [len(x)])[:, 0] for one in members]).double()


def test_classes_have_columns_of_their_own(tmp_path):
    card = write_folder(tmp_path, {"type": "multiclass"}, 3, {}, "xyz")
    found = applying.apply(tmp_path, card, write_features(tmp_path), []).set_index("scan")
    assert list(found)[-7:] == ["p_0", "p_1", "p_2", *applying.AFTER]
    for scan in "ab":
        p = logits_by_hand(tmp_path, card, scan).softmax(-1).numpy()
        best = p.mean(0).argmax()
        assert found.loc[scan, ["p_0", "p_1", "p_2"]].to_numpy(float) == pytest.approx(p.mean(0), abs=1e-6)
        assert found.loc[scan, "decision"] == "xyz"[best]
        assert found.loc[scan, "p"] == pytest.approx(p.mean(0)[best], abs=1e-6)
        assert found.loc[scan, "p_sd"] == pytest.approx(p[:, best].std(ddof=1), abs=1e-6)


def test_values_are_in_the_unit_of_the_label(tmp_path):
    card = write_folder(tmp_path, {"type": "regression"}, 1, {"mean": [50.0], "sd": [10.0]})
    found = applying.apply(tmp_path, card, write_features(tmp_path), []).set_index("scan")
    for scan in "ab":
        values = 50 + 10 * logits_by_hand(tmp_path, card, scan)[:, 0].numpy()
        assert found.loc[scan, "p"] == pytest.approx(values.mean(), abs=1e-5)
        assert found.loc[scan, "p_high"] == pytest.approx(values.max(), abs=1e-5)
        assert found.loc[scan, "decision"] == ""


def test_other_tiles_are_refused_before_they_are_scored(tmp_path):
    card = write_folder(tmp_path, {"type": "regression"}, 1, {"mean": [0.0], "sd": [1.0]})
    card["encoder"]["dim"] = 4
    with pytest.raises(model_folder.FolderError, match="trained on 4 features a tile, these have 3"):
        applying.apply(tmp_path, card, write_features(tmp_path), [])
