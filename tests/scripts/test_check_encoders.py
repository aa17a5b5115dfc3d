import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import check_encoders
from isoslide import networks, readiness, registry, weights

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry.load(ROOT / "resources/encoders.yaml")
SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 4}


@pytest.fixture
def small(tmp_path):
    """A registry of three: one embedded, one with weights in the folder, one without."""
    entries = yaml.safe_load((ROOT / "resources/encoders.yaml").read_text())
    entries["lunit_s16"] |= {"arguments": SMALL, "dim": 96}
    path = tmp_path / "encoders.yaml"
    path.write_text(yaml.safe_dump({name: entries[name] for name in ("efficientnet_lite0", "lunit_s16", "uni")}))
    entry = registry.load(path)["lunit_s16"]
    torch.manual_seed(0)
    (tmp_path / "w/lunit_s16").mkdir(parents=True)
    save_file(networks.timm_network(entry).state_dict(), tmp_path / "w" / entry.weights)
    return path, entry, tmp_path / "w"


def run(small, capsys, *names):
    path, _, folder = small
    code = 0
    try:
        check_encoders.main(["--encoders", *names, "--registry", str(path), "--weights", str(folder)])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out.splitlines()


def test_three_states(small, capsys):
    _, entry, folder = small
    code, lines = run(small, capsys, "all")
    assert code == 0
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["efficientnet_lite0", "ok"],
        ["lunit_s16", "ok"],
        ["uni", "missing"],
    ]
    assert lines[2].split()[2] == "96"
    assert lines[4].startswith("encoder uni: no weights at ")
    assert run(small, capsys, "uni")[0] == 1
    code, again = run(small, capsys, "lunit_s16")
    assert (code, again[1].split()) == (0, lines[2].split())
    sha256 = weights.checked_hash(entry, folder / entry.weights)
    manifest = {"encoder": "lunit_s16", "file": "model.safetensors", "sha256": "0" * 64}
    (folder / "lunit_s16/manifest.json").write_text(json.dumps(manifest))
    code, lines = run(small, capsys, "all")
    assert code == 1
    assert lines[2].split()[:2] == ["lunit_s16", "broken"]
    assert "is not what was fetched" in lines[4]
    (folder / "lunit_s16/manifest.json").write_text(json.dumps(manifest | {"sha256": sha256}))
    assert run(small, capsys, "lunit_s16")[0] == 0


def test_weights_that_give_nothing_finite_are_broken(small, capsys):
    _, entry, folder = small
    state = networks.read_weights(folder / entry.weights)
    save_file(state | {"norm.bias": torch.full((96,), torch.nan)}, folder / entry.weights)
    code, lines = run(small, capsys, "lunit_s16")
    assert code == 1
    assert lines[-1].startswith("encoder lunit_s16: its features are not finite")


def test_the_fingerprint_sees_a_change_of_settings(small):
    path, entry, folder = small
    before = readiness.embed(entry, folder)
    for change in ({"mean": [0.5, 0.5, 0.5]}, {"std": [0.2, 0.3, 0.2]}, {"pooling": "cls_patch_mean", "dim": 192}):
        entries = yaml.safe_load(path.read_text())
        changed = registry._entry("lunit_s16", entries["lunit_s16"] | change, "")
        assert readiness.embed(changed, folder) != before


def test_the_encoders_of_a_config_within_seconds(tmp_path):
    """As a user would; the weights are missing."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"sheet": "s.tsv", "encoders": ["uni"], "weights": "w"}))
    start = time.process_time()
    command = [sys.executable, "scripts/check_encoders.py", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "encoder uni: no weights at w/uni/pytorch_model.bin: ask for access at" in done.stdout
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sheet": "s.tsv", "encoders": ["unii"]}, "no encoder 'unii' in resources/encoders.yaml: use one of"),
        ({"sheet": "s.tsv", "encoders": ["timm:x"]}, "encoder timm:x: its settings are not at"),
        ({"encoders": ["uni"]}, "'sheet' is a required property"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(ROOT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=message):
        check_encoders.main(["--config", str(tmp_path / "config.yaml")])
