"""Run as a user would, against a hub on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_hub
import pytest
import yaml

from isoslide import registry, weights

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = ROOT / "resources/encoders.yaml"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def hub():
    with fake_hub.running() as (hub, address):
        hub.address = address
        hub.files["timm/resnet50.tv_in1k/model.safetensors"] = CONTENT
        hub.files["MahmoodLab/UNI/pytorch_model.bin"] = CONTENT
        hub.gated.add("MahmoodLab/UNI")
        yield hub


def own_registry(folder, **changes):
    """A registry with UNI at the revision and checksum of the hub on this machine."""
    entries = yaml.safe_load(REGISTRY.read_text())
    pinned = {"revision": fake_hub.COMMIT, "sha256": hashlib.sha256(CONTENT).hexdigest()}
    path = folder / "encoders.yaml"
    path.write_text(yaml.safe_dump({"uni": entries["uni"] | pinned | changes, "resnet50": entries["resnet50"]}))
    return path


def fetch(hub, folder, *encoders, token="", registry_file=REGISTRY):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, str(ROOT / "scripts/fetch_weights.py"), "--encoders", *encoders]
    command += ["--registry", str(registry_file), "--weights", str(folder / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert "Traceback" not in done.stderr
    assert fake_hub.TOKEN not in done.stdout + done.stderr
    return done


def errors_of(done):
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert len(lines) == 1
    return lines[0]


def test_open_weights_come_whole_and_recorded_and_are_kept(hub, tmp_path):
    assert fetch(hub, tmp_path, "resnet50", "efficientnet_lite0").returncode == 0
    place = tmp_path / "weights/resnet50"
    assert (place / "model.safetensors").read_bytes() == CONTENT
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["revision"] == fake_hub.COMMIT
    assert manifest["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    n_requests = len(hub.requests)
    assert fetch(hub, tmp_path, "resnet50").returncode == 0
    assert len(hub.requests) == n_requests  # nothing is asked of the hub
    entry = registry.load(REGISTRY)["resnet50"]
    path = weights.weights_path(entry, tmp_path / "weights")
    assert weights.checked_hash(entry, path) == manifest["sha256"]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(weights.EncoderError, match="is not what was fetched .*: fetch it again, or remove"):
        weights.checked_hash(entry, path)
    done = fetch(hub, tmp_path, "resnet50")  # as the message says
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == CONTENT


def test_damage_that_keeps_the_time_of_the_file_is_mended_too(hub, tmp_path):
    fetch(hub, tmp_path, "resnet50")
    path = tmp_path / "weights/resnet50/model.safetensors"
    times = path.stat()
    path.write_bytes(b"x" + CONTENT[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fetch(hub, tmp_path, "resnet50").returncode == 0
    assert path.read_bytes() == CONTENT


def test_a_gate_is_explained_in_one_line_and_the_token_is_passed_on(hub, tmp_path):
    own = own_registry(tmp_path)
    line = errors_of(fetch(hub, tmp_path, "uni", registry_file=own))
    assert "encoder uni: MahmoodLab/UNI is not given without a token (401): ask for access at " in line
    assert "https://huggingface.co/MahmoodLab/UNI, make a token" in line
    line = errors_of(fetch(hub, tmp_path, "uni", token=fake_hub.TOKEN, registry_file=own))
    assert "access to MahmoodLab/UNI is not granted to your token (403): ask at https://huggingface.co/Mahm" in line
    line = errors_of(fetch(hub, tmp_path, "uni", token="hf_mistyped", registry_file=own))
    assert "the token in HF_TOKEN is refused (401)" in line
    assert "hf_mistyped" not in line
    assert not list(tmp_path.glob("weights/**/*.bin"))
    hub.granted.add(fake_hub.TOKEN)
    done = fetch(hub, tmp_path, "uni", token=fake_hub.TOKEN, registry_file=own)
    assert done.returncode == 0, done.stderr
    assert hub.requests[-1][2] == fake_hub.TOKEN
    assert (tmp_path / "weights/uni/pytorch_model.bin").read_bytes() == CONTENT
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(fake_hub.TOKEN.encode() in path.read_bytes() for path in kept)


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub, tmp_path):
    content = hub.files["timm/resnet50.tv_in1k/model.safetensors"] = CONTENT * 20
    hub.limits = [12_000_000]
    assert fetch(hub, tmp_path, "resnet50").returncode == 0
    assert (tmp_path / "weights/resnet50/model.safetensors").read_bytes() == content
    assert hub.starts == [0, 10 * 2**20]  # the client keeps what came in pieces of 10 MiB


def test_a_download_that_does_not_end_leaves_no_file(hub, tmp_path):
    hub.limits = 8 * [1000]
    assert "the download broke off or the hub cannot be reached" in errors_of(fetch(hub, tmp_path, "resnet50"))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".incomplete", ".json")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "has SHA-256 .*, not 0000000000000000: fetch it again; if it stays so"),
        ({"revision": "f" * 40}, "has no file pytorch_model.bin at ffff.*: correct the registry"),
        ({"weights": "uni/other.bin"}, "has no file other.bin at "),
        ({"hub": "MahmoodLab/UNO"}, "the hub has no model MahmoodLab/UNO: correct the registry"),
    ],
)
def test_what_does_not_match_the_registry_is_refused(hub, tmp_path, changes, message):
    hub.granted.add(fake_hub.TOKEN)
    own = own_registry(tmp_path, **changes)
    line = errors_of(fetch(hub, tmp_path, "uni", token=fake_hub.TOKEN, registry_file=own))
    assert re.search(f"encoder uni: .*{message}", line)
    assert not (tmp_path / "weights/uni/pytorch_model.bin").exists()


def test_a_damaged_download_is_refused(hub, tmp_path):
    hub.etag = "1" * 64
    assert "not 1111111111111111: fetch it again" in errors_of(fetch(hub, tmp_path, "resnet50"))
    assert not (tmp_path / "weights/resnet50/model.safetensors").exists()


def test_a_hub_that_is_down_or_away(hub, tmp_path):
    hub.answer = 503
    assert "the hub answers 503 for timm/resnet50.tv_in1k: try again later" in errors_of(
        fetch(hub, tmp_path, "resnet50")
    )
    hub.address = "http://127.0.0.1:9"
    assert "the download broke off or the hub cannot be reached: run it again, where there is a network" in errors_of(
        fetch(hub, tmp_path, "resnet50")
    )


def test_a_timm_model_comes_with_its_settings(hub, tmp_path):
    values = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    settings = {"architecture": "resnet18", "pretrained_cfg": values | {"license": "apache-2.0"}}
    hub.files["timm/resnet18.x/config.json"] = json.dumps(settings).encode()
    hub.files["timm/resnet18.x/model.safetensors"] = CONTENT
    name = "timm:resnet18.x"
    with pytest.raises(registry.RegistryError, match="its settings are not at .*fetch_weights.py --encoders timm:res"):
        registry.load(REGISTRY, [name], tmp_path / "weights")
    assert fetch(hub, tmp_path, name).returncode == 0
    entry = registry.load(REGISTRY, [name], tmp_path / "weights")[name]
    assert (entry.model, entry.tile_px, entry.licence) == ("resnet18", 64, "apache-2.0")
    assert weights.missing(entry, tmp_path / "weights") == ""
    (tmp_path / "weights/timm/resnet18.x/config.json").write_text("{}")
    with pytest.raises(registry.RegistryError, match="holds no settings of a timm model"):
        registry.load(REGISTRY, [name], tmp_path / "weights")


def test_an_unknown_encoder_is_refused(hub, tmp_path):
    done = fetch(hub, tmp_path, "unii")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no encoder 'unii' in ")


def test_missing_weights_say_what_to_do(tmp_path):
    entries = registry.load(REGISTRY)
    asked = [entries["uni"], entries["phikon"], replace(entries["phikon"], hub=""), entries["efficientnet_lite0"]]
    gated, open_one, own, package = (weights.missing(entry, tmp_path) for entry in asked)
    assert package == ""
    assert "ask for access at https://huggingface.co/MahmoodLab/UNI, put your token into" in gated
    assert "HF_TOKEN, then run: python scripts/fetch_weights.py --encoders uni --weights" in gated
    assert "fetch them with: python scripts/fetch_weights.py --encoders phikon" in open_one
    assert own.endswith("put the file there")
