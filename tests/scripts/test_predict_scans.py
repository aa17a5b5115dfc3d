import json

import numpy as np
import pandas as pd
import pytest
import torch

import predict_scans
from isoslide import aggregators, atomic, layers, models, status
from isoslide.bags import Bags

SHAPE = layers.Shape(inputs=3, outputs=2, width=4, layers=1, attention=2)


def features():
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    return Bags(["a", "b", "c"], values, np.array([0, 2, 3, 7]), np.arange(7), [""] * 3, [""] * 3)


def write_model(folder, fold, seed, state="ok"):
    stack = aggregators.init(SHAPE, [torch.Generator().manual_seed(seed)])
    path = folder / f"fold{fold}_seed{seed}.safetensors"
    card = {"shape": SHAPE.as_dict(), "key": "k", "settings": {"task": {"type": "binary"}}, "fitted": {}}
    models.save(path, {name: value[0] for name, value in stack.items()}, card)
    return {"fold": str(fold), "seed": str(seed), "path": str(path), "status": state}, stack


def test_each_fold_is_scored_by_its_own_models(tmp_path):
    bags = features()
    (one, first), (two, second), (three, _) = (
        write_model(tmp_path, 0, 1),
        write_model(tmp_path, 0, 2, "collapsed"),
        write_model(tmp_path, 1, 1),
    )
    scored = pd.DataFrame(
        {"fold": list("00010"), "scan": list("cabba"), "role": ["test"] * 2 + ["tune", "test", "train"]}
    )
    scored = scored.assign(specimen="s", patient="p", scanner="A", label="1", time="", event="")
    table = predict_scans.predict(pd.DataFrame([one, two, three]), scored, bags)
    assert list(table)[:4] == ["role", "fold", "seed", "scan"]
    assert table["role"].tolist() == ["test"] * 5 + ["tune"] * 2
    assert table["scan"].tolist() == list("cacabbb")
    assert table["fold"].tolist() == list("0000100")
    assert table["status"].tolist() == ["ok", "ok", "collapsed", "collapsed", "ok", "ok", "collapsed"]
    assert table["n_tiles"].tolist() == [4, 2, 4, 2, 1, 1, 1]
    for state, row in ((first, 0), (second, 2)):
        logits = aggregators.predict(state, SHAPE, torch.from_numpy(bags.features[3:]), [4])[0, 0]
        assert table["logit"].iloc[row] == pytest.approx((logits[1] - logits[0]).item(), abs=1e-6)


def test_a_model_without_a_checkpoint_gives_no_rows(tmp_path):
    models.save(tmp_path / "m.safetensors", None, {"shape": SHAPE.as_dict(), "train_loss": float("nan")})
    card = models.card(tmp_path / "m.safetensors")
    assert card["path"] == ""
    assert card["train_loss"] is None
    assert json.loads((tmp_path / "m.json").read_text()) == card
    assert models.card(tmp_path / "absent.safetensors") == {}
    empty = predict_scans.predict(
        pd.DataFrame(columns=["fold", "path"]), pd.DataFrame(columns=["fold", "role"]), features()
    )
    assert list(empty.columns) == [*predict_scans.COLUMNS, "status"]


def test_no_features_at_all_end_in_one_line(tmp_path):
    status.write(tmp_path / "features.tsv", [status.failed({"scan": "a", "specimen": "s", "scanner": "A"}, "bad", "x")])
    atomic.write_table(tmp_path / "splits.tsv", pd.DataFrame({"fold": [0], "scan": ["a"], "role": ["test"]}))
    atomic.write_table(tmp_path / "models.tsv", pd.DataFrame({"fold": [0], "path": [""]}))
    with pytest.raises(SystemExit, match="error: .*no scan has features"):
        predict_scans.main(
            f"--models {tmp_path}/models.tsv --splits {tmp_path}/splits.tsv --features {tmp_path}/features.tsv "
            f"--output {tmp_path}/p.tsv".split()
        )
    assert not (tmp_path / "p.tsv").exists()
