"""New scans and a model folder: a row for every scan, right, and refusals in one line."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from toy_cohort import ARM, write_cohort
from toy_export import export

import apply_models
from isoslide import applying, bags, keys, model_folder, ranges, scoring, status

FACTS = {"fingerprint": "x", "reference": "", "specimen": "s", "scanner": "A", "status": "ok"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of models that were trained on the toy cohort, with weights that are known."""
    path = tmp_path_factory.mktemp("toy")
    write_cohort(path)
    return export(path).parent


def new_scans(path, shift=0.0, dim=6, **attrs):
    """Features of four new scans, a scan that was lost, and one on a scanner that nobody knows; the status table."""
    rng = np.random.default_rng(7)
    rows = []
    for i, scanner in enumerate("AABBZ"):
        scan, file = f"N{i}", path / f"N{i}.h5"
        x = rng.normal(size=(4 + i, dim)) + shift
        with h5py.File(file, "w") as out:
            out["features"], out["tile_ids"] = x.astype(np.float16), np.arange(4 + i)
            out.attrs.update(encoder="toy", **attrs)
        rows.append({"scan": scan, "status": "ok", "path": file, "key": scan, "n_tiles": 4 + i})
        rows[-1] |= {"specimen": f"s{i // 2}", "scanner": scanner}
    lost = {"scan": "N9", "specimen": "s9", "scanner": "A"}
    rows.append(status.failed(lost, "no_tissue", "no region looks like stained tissue"))
    status.write(path / "new.tsv", rows)
    return path / "new.tsv"


def apply(folder, table, *slides):
    out = table.with_name("applied.tsv")
    arguments = ["--folder", str(folder), "--features", str(table), "--output", str(out)]
    apply_models.main([*arguments, "--slides", *map(str, slides)])
    return pd.read_csv(out, sep="\t", keep_default_na=False, dtype={"scan": str}).set_index("scan")


def test_every_scan_has_a_row_and_its_score(folder, tmp_path):
    found = apply(folder, new_scans(tmp_path))
    assert list(found.reset_index()) == [*applying.COLUMNS, *applying.AFTER]
    assert found.index.tolist() == ["N0", "N1", "N2", "N3", "N4", "N9"]
    assert found.loc["N9", ["status", "reason", "p", "decision", "out_of_range"]].tolist() == [
        "no_tissue",
        "no region looks like stained tissue",
        "",
        "",
        "",
    ]
    good = found.drop("N9")
    assert good["n_tiles"].astype(int).tolist() == [4, 5, 6, 7, 8]
    members = scoring.trained(sorted((folder.parent / "robust").glob("*.safetensors")))
    loaded = bags.load(str(tmp_path / "new.tsv"))
    each = scoring.columns(
        members, scoring.logits(members, loaded.tensor(), loaded, np.arange(5), good["scanner"].to_numpy(str))
    )
    p = np.stack([one["p"] for one in each])
    expected = {"p": p.mean(0), "p_sd": p.std(0, ddof=1), "p_low": p.min(0), "p_high": p.max(0)}
    for name, values in expected.items():
        assert good[name].astype(float).to_numpy() == pytest.approx(values, abs=1e-5), name
    cut = model_folder.read_card(folder)["threshold"]["value"]
    assert good["decision"].tolist() == ["b" if value >= cut else "a" for value in expected["p"]]


def test_what_lies_outside_says_why(folder, tmp_path):
    found = apply(folder, new_scans(tmp_path))
    assert found.loc["N4", "out_of_range"] == "yes"
    assert "scanner 'Z' did not train, only 'A', 'B'" in found.loc["N4", "range_reasons"]
    far = apply(folder, new_scans(tmp_path, shift=5.0)).drop("N9")
    assert set(far["out_of_range"]) == {"yes"}
    limit = ranges.read(folder / "range.safetensors").limit
    assert (far["distance"].astype(float) > limit).all()
    assert far["range_reasons"].str.contains("from the nearest training scan, 99 % of training scans within").all()


def test_the_training_scans_themselves_are_inside(folder):
    """By their features all are: each is its own nearest scan."""
    found = apply(folder, folder.parent / "features.tsv")
    splits = status.read(folder.parent / "splits.tsv")
    trained = found.loc[sorted(set(splits.loc[splits["role"] == "train", "scan"]) - {"S00B"})]
    assert set(trained["out_of_range"]) == {"no"}
    assert trained["distance"].astype(float).max() < 1e-3
    held_out = found[(found["scanner"] == "D") & (found["status"] == "ok")]
    assert held_out["range_reasons"].str.startswith("scanner 'D' did not train").all()


def test_slides_are_judged_by_their_tables(folder, tmp_path):
    """A range with µm/px 0.5 and colours 100 to 110; a scan of 0.25 µm/px and a green of 200."""
    own = shutil.copytree(folder, tmp_path / "own")
    known = ranges.read(own / "range.safetensors")
    colours = np.array([[100.0] * 6, [110.0] * 6])
    ranges.write(own / "range.safetensors", ranges.Range(**vars(known) | {"mpp": np.full(2, 0.5), "colours": colours}))
    card = json.loads((own / "card.json").read_text())
    card["range"]["sha256"] = keys.file_hash(own / "range.safetensors")
    (own / "card.json").write_text(json.dumps(card))
    table = new_scans(tmp_path)
    scans = [f"N{i}" for i in range(5)]
    status.write(
        tmp_path / "checks.tsv", [FACTS | {"scan": s, "mpp_x": 0.25 if s == "N1" else 0.5, "mpp_y": 0.5} for s in scans]
    )
    tissue = [FACTS | {"scan": s} | dict.fromkeys(ranges.COLOURS, 105.0) for s in scans]
    tissue[2]["green_mean"] = 200.0
    status.write(tmp_path / "tissue.tsv", tissue)
    found = apply(own, table, tmp_path / "checks.tsv", tmp_path / "tissue.tsv")["range_reasons"]
    assert "0.25 µm/px, training scans 0.5" in found["N1"]
    assert "green in the mean 200, training scans 100 to 110" in found["N2"]
    assert "µm/px" not in found["N0"] + found["N2"]
    assert "green" not in found["N0"] + found["N1"]


def test_only_lost_scans_give_rows_without_scores(folder, tmp_path):
    status.write(tmp_path / "new.tsv", [status.failed({"scan": "a", "specimen": "a", "scanner": "A"}, "bad", "x")])
    found = apply(folder, tmp_path / "new.tsv")
    assert found.loc["a", ["status", "p"]].tolist() == ["bad", ""]


def refused(message, folder, table):
    with pytest.raises(SystemExit, match=message) as caught:
        apply(folder, table)
    assert "\n" not in str(caught.value)
    assert not table.with_name("applied.tsv").exists()


def test_refusals(folder, tmp_path):
    refused("error: model folder .*: trained on 6 features a tile, these have 5", folder, new_scans(tmp_path, dim=5))
    refused("error: model folder gone: no such folder", "gone", new_scans(tmp_path))
    own = shutil.copytree(folder, tmp_path / "own")
    card = json.loads((own / "card.json").read_text())
    card["encoder"] |= {"weights_sha256": "0123456789abcdef", "tile_px": 224, "mpp": 0.5}
    (own / "card.json").write_text(json.dumps(card))
    refused("with weights 0123456789abcdef, here they have none stated", own, new_scans(tmp_path))
    refused("here they have fedc", own, new_scans(tmp_path, weights_sha256="fedc"))
    table = new_scans(tmp_path, weights_sha256="0123456789abcdef", tile_px=256)
    refused("trained on tiles of 224 px .*, these are of 256 px", own, table)
    path = own / "fold0_seed0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused("fold0_seed0.safetensors is not the file of its card", own, new_scans(tmp_path))


def test_combat_applies_by_the_name_of_the_scanner(tmp_path):
    """The folder alone knows what harmonises the features of A and B; a scan on Z stays as it is."""
    write_cohort(tmp_path)
    card = export(tmp_path, ARM | {"combat": True, "embedding_weight": 0, "score_weight": 0}, seeds=1)
    (tmp_path / "robust").rename(tmp_path / "gone")
    table = new_scans(tmp_path)
    found = apply(card.parent, table)
    renamed = status.read(table).assign(scanner="B")
    status.write(table, renamed.to_dict("records"))
    other = apply(card.parent, table)
    assert found.loc["N2", "p"] == other.loc["N2", "p"]
    assert found.loc["N0", "p"] != other.loc["N0", "p"]
    assert found.loc["N4", "p"] != other.loc["N4", "p"]


CARDS = {
    "binary": ({"type": "binary"}, ["a", "b"], 0.4, {"p": [0.4, 0.39]}, ["b", "a"]),
    "no cut": ({"type": "binary"}, ["a", "b"], None, {"p": [0.4, 0.39]}, ["", ""]),
    "survival": ({"type": "survival", "loss": "cox"}, [], 0.6, {"p": [0.7, 0.5]}, ["higher risk", "lower risk"]),
    "regression": ({"type": "regression"}, [], None, {"p": [7.0, 5.0]}, ["", ""]),
    "multiclass": ({"type": "multiclass"}, list("xyz"), None, {"p": [0.5, 0.6], "predicted": [2, 0]}, ["z", "x"]),
}


@pytest.mark.parametrize("name", CARDS)
def test_decisions(name):
    task, classes, cut, scores, expected = CARDS[name]
    card = {"task": {"settings": task, "classes": classes}, "threshold": {"value": cut}}
    assert applying.decisions({key: np.array(values) for key, values in scores.items()}, card) == expected


def test_risks_of_cox_models_are_compared_about_their_own_thresholds():
    """Zero of a log risk has no meaning: two models that say the same but for it do not disagree; the mean stays."""
    each = [{"p": np.array([0.3, 0.5])}, {"p": np.array([0.5, 0.7])}]
    card = {
        "task": {"settings": {"type": "survival", "loss": "cox"}},
        "models": [{"threshold": 0.4}, {"threshold": 0.6}],
    }
    found = scoring.ensemble(applying._centred(each, card), card["task"]["settings"])
    assert found["p"] == pytest.approx([0.4, 0.6])
    assert found["p_sd"] == pytest.approx([0, 0], abs=1e-12)
    card["models"][0]["threshold"] = None
    assert applying._centred(each, card) == each
