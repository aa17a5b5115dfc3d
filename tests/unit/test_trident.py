"""What is ours about TRIDENT, with a stand-in for it: it is not installed where these tests run."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional

from isoslide import registry, weights
from isoslide.tile_encoder import TileEncoder

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "resources/encoders.yaml"
NAME = "trident:kaiko-vits16"


class StandIn(nn.Module):
    """An encoder as TRIDENT makes it: pictures in, its own preparation, features."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def eval_transforms(self, picture):
        return functional.pil_to_tensor(picture).float()

    def forward(self, pixels):
        return torch.cat([pixels.mean((2, 3)), torch.zeros(len(pixels), 381)], dim=1)


def install(monkeypatch, **modules):
    for name, content in {"trident": {}, **modules}.items():
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(content)


def test_pixels_reach_trident_as_they_were_read(tmp_path, monkeypatch):
    made = []

    def factory(name, weights_path):
        made.append((name, weights_path))
        return StandIn(weights_path)

    install(monkeypatch, **{"trident.patch_encoder_models": {"encoder_factory": factory}})
    entry = registry.load(FILE, [NAME])[NAME]
    assert (entry.tile, entry.dim, entry.pathology) == ("256px_0.5um", 384, True)
    path = tmp_path / "trident/kaiko-vits16/model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8))
    features = TileEncoder(entry, tmp_path)(images)
    assert made == [("kaiko-vits16", str(path))]
    torch.testing.assert_close(features[:, :3], images.float().mean((1, 2)))


def test_where_trident_is_not_installed_one_line_says_so(tmp_path):
    entry = registry.load(FILE, [NAME])[NAME]
    (tmp_path / "trident/kaiko-vits16").mkdir(parents=True)
    (tmp_path / "trident/kaiko-vits16/model.safetensors").touch()
    with pytest.raises(weights.EncoderError, match="TRIDENT cannot be imported .* envs/trident.yaml") as error:
        TileEncoder(entry, tmp_path)
    assert "\n" not in str(error.value)


def test_every_encoder_of_the_table_is_sound():
    for name in ("conch_v1", "ctranspath", "genbio-pathfm", "virchow2"):
        assert registry.load(FILE, [f"trident:{name}"])[f"trident:{name}"].weights.startswith(f"trident/{name}/")
    with pytest.raises(registry.RegistryError, match=r"trident:uni: not in .*: use one of \['trident:conch_v1'"):
        registry.load(FILE, ["trident:uni"])
