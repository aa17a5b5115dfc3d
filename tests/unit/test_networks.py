"""The code that loads real weights, run on random weights for every entry of the registry."""

import json
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import reference_encoders
import timm
import torch
from safetensors.torch import save_file

from isoslide import encoders, key_maps, networks, registry
from isoslide.tile_encoder import TileEncoder
from isoslide.weights import EncoderError

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry.load(ROOT / "resources/encoders.yaml")
FETCHED = [name for name, entry in REGISTRY.items() if entry.hub]
# Depth 2 and width 96: the same classes and keyword arguments as the full network, in a second.
SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 4}


def small_arguments(entry):
    if not entry.model.startswith("vit"):
        return {}
    return SMALL | ({"mlp_ratio": 4} if "mlp_ratio" in entry.arguments else {})


def tiles(entry, n=2):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, entry.tile_px, entry.tile_px, 3), dtype=torch.uint8, generator=generator)


def compare(name, folder, small):
    """Largest difference between the production path and the reference, and the seconds of loading."""
    entry = REGISTRY[name]
    features_of = reference_encoders.reference(entry, folder / entry.weights, small)
    if small:
        width = {"cls_patch_mean": 2 * SMALL["embed_dim"]}.get(entry.pooling, SMALL["embed_dim"])
        dim = entry.dim if entry.loader != "timm" else width
        entry = replace(entry, arguments=entry.arguments | small, dim=dim)
    start = time.perf_counter()
    networks.load(entry, folder / entry.weights)
    seconds = time.perf_counter() - start
    encoder = TileEncoder(entry, folder)
    images = tiles(entry)
    found = encoder(images)
    pixels = encoders.fit(images.permute(0, 3, 1, 2).float(), entry)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (entry.mean, entry.std))
    with torch.inference_mode():
        expected = features_of(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
    assert found.shape == expected.shape == (2, entry.dim)
    assert found.std() > 1e-3
    return float((found - expected).abs().max() / expected.abs().max()), seconds


@pytest.mark.parametrize("name", FETCHED)
def test_features_are_those_of_the_network_built_another_way(tmp_path, name):
    difference, _ = compare(name, tmp_path, small_arguments(REGISTRY[name]))
    assert difference < 2e-6


@pytest.mark.full_size
@pytest.mark.parametrize("name", [name for name in FETCHED if name != "resnet50"])
def test_features_at_full_size(tmp_path, name):
    difference, seconds = compare(name, tmp_path, {})
    print(f"{name}: difference {difference:.1e}, loaded in {seconds:.2f} s")
    assert difference < 5e-6
    shutil.rmtree(tmp_path)  # up to 4.5 GB each


@pytest.mark.parametrize("name", list(REGISTRY))
def test_full_size_dimension_without_memory(name):
    entry = REGISTRY[name]
    build = {"timm": networks.timm_network, "conch": networks.ConchTower, "keep": networks.KeepTower}[entry.loader]
    with torch.device("meta"):
        features = encoders.POOLINGS[entry.pooling](build(entry).eval(), torch.empty(1, 3, entry.side, entry.side))
    assert features.shape == (1, entry.dim)


def test_any_timm_model_by_its_own_settings(tmp_path):
    """A network with parts that no file keeps (swin's index of relative positions, in memory) and a classifier."""
    network = timm.create_model("swin_s3_tiny_224", num_classes=7, embed_dim=24).eval()
    place = tmp_path / "timm/swin_s3_tiny_224.a"
    place.mkdir(parents=True)
    save_file(network.state_dict(), place / "model.safetensors")
    values = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    settings = {"architecture": "swin_s3_tiny_224", "model_args": {"embed_dim": 24}, "pretrained_cfg": values}
    (place / "config.json").write_text(json.dumps(settings))
    name = "timm:swin_s3_tiny_224.a"
    entry = registry.load(ROOT / "resources/encoders.yaml", [name], tmp_path)[name]
    assert (entry.tile, entry.interpolation, entry.pathology) == ("224px_0.5um", "bicubic", False)
    images = tiles(entry)
    found = TileEncoder(entry, tmp_path)(images)
    network.reset_classifier(0)
    with torch.inference_mode():
        expected = network((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_files_are_told_apart_by_their_content(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3)}
    save_file(state, tmp_path / "model.bin")
    torch.save(state, tmp_path / "model.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "model.ckpt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("model.bin", "model.safetensors", "model.ckpt", "old.pth"):
        assert torch.equal(networks.read_weights(tmp_path / name)["a"], state["a"])


class Evil:
    def __reduce__(self):
        return (Path("/nonexistent/evil").touch, ())


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path):
    torch.save({"a": torch.zeros(3000)}, tmp_path / "whole.bin")
    save_file({"a": torch.zeros(3000)}, tmp_path / "whole.safetensors")
    whole = {suffix: (tmp_path / f"whole.{suffix}").read_bytes() for suffix in ("bin", "safetensors")}
    files = {
        "evil": (pickle.dumps(Evil(), protocol=2), "holds more than tensors"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        "page": (b"<!doctype html>", "is neither safetensors nor PyTorch"),
        "empty": (b"", "is neither safetensors nor PyTorch"),
        "cut zip": (whole["bin"][:2000], "is damaged"),
        "cut safetensors": (whole["safetensors"][:2000], "is damaged"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EncoderError, match=message) as error:
            networks.read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["phikon_v2", "conch_v1_5", "uni"])
def test_weights_of_another_network_are_refused_in_one_line(tmp_path, name):
    entry = replace(REGISTRY[name], arguments=REGISTRY[name].arguments | SMALL)
    save_file({"something.weight": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(EncoderError, match=f"encoder {name}: .*other does not fit vit_large_patch16_224") as error:
        networks.load(entry, tmp_path / "other")
    assert "\n" not in str(error.value)


def test_rules_of_renaming():
    state = {"vit.encoder.layer.3.attention.attention.key.bias": 1, "pooler.dense.bias": 2, "own": 3}
    assert key_maps.rename(state, key_maps.RULES["hf_vit"]) == {"blocks.3.attn.k.bias": 1, "own": 3}
    parts = {f"blocks.3.attn.{part}.bias": torch.full((2,), n) for n, part in enumerate("kvq")}
    assert key_maps.join_qkv(parts)["blocks.3.attn.qkv.bias"].tolist() == [2, 2, 0, 0, 1, 1]
