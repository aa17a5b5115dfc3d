from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2.functional import center_crop

from isoslide import encoders, key_maps, registry, slide, weights
from isoslide.tile_encoder import TileEncoder

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry.load(ROOT / "resources/encoders.yaml")
EXPECTED = [
    0.1156,
    0.0,
    0.018,
    0.0351,
    0.0246,
    0.7054,
    1.2698,
    0.1374,
    0.0,
    0.0,
    0.0084,
    0.0064,
    0.0902,
    0.0,
    0.0388,
    0.0,
]


def tiles(n=3, px=224):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8))


def test_embedded_encoder_against_plain_timm():
    """The network without our folding of BatchNorm, channels-last and batching, on the same pixels."""
    entry = REGISTRY["efficientnet_lite0"]
    path = weights.weights_path(entry, "unused")
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    state = torch.load(path, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=False)))
    with torch.inference_mode():
        expected = network((tiles().permute(0, 3, 1, 2).float() - 127) / 128)
    features = TileEncoder(entry, "unused")(tiles())
    assert features.shape == (3, 1280)
    assert torch.norm(features - expected) / torch.norm(expected) < 1e-4


def test_embedded_encoder_against_stored_values():
    """Every 80th value of another implementation (package efficientnet-lite-pytorch 0.1.0) on a tile of the slide."""
    with slide.Slide(ROOT / "resources/CMU-1-Small-Region.svs") as source:
        tile = source.read([[0.499, 0, 400], [0, 0.499, 700]], (224, 224))
    features = TileEncoder(REGISTRY["efficientnet_lite0"], "unused")(torch.from_numpy(tile)[None])[0, ::80]
    expected = torch.tensor(EXPECTED)
    assert torch.nn.functional.cosine_similarity(features, expected, dim=0) > 0.9999
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tiles_are_shrunk_as_pil_does(interpolation):
    entry = replace(REGISTRY["uni"], interpolation=interpolation)
    with slide.Slide(ROOT / "resources/CMU-1-Small-Region.svs") as source:
        tile = source.read([[1, 0, 400], [0, 1, 700]], (256, 256))
    ours = encoders.fit(torch.from_numpy(tile.copy()).permute(2, 0, 1)[None].float(), entry)[0].permute(1, 2, 0)
    theirs = np.array(Image.fromarray(tile).resize((224, 224), getattr(Image.Resampling, interpolation.upper())))
    difference = np.abs(ours.numpy() - theirs)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_the_middle_is_cut_out_for_gigapath():
    entry = REGISTRY["prov_gigapath"]
    images = tiles(1, 256).permute(0, 3, 1, 2).float()
    centre = center_crop(images, [224, 224])
    assert torch.equal(encoders.fit(images, entry), centre)


def test_tiles_of_another_size_are_refused():
    encoder = TileEncoder(REGISTRY["efficientnet_lite0"], "unused")
    with pytest.raises(weights.EncoderError, match=r"efficientnet_lite0 wants tiles of 224 px, not \(256, 256\)"):
        encoder(tiles(1, 256))


def test_code_of_other_encoders_does_not_count(monkeypatch):
    before = {name: encoders.code(REGISTRY[name]) for name in ("efficientnet_lite0", "phikon_v2", "keep")}
    monkeypatch.setitem(key_maps.RULES, "hf_dinov2", {})
    monkeypatch.setitem(encoders.KEY_MAPS, "keep", (key_maps.conch,))
    after = {name: encoders.code(REGISTRY[name]) for name in before}
    assert [before[name] == after[name] for name in before] == [True, False, False]
