import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from isoslide import encoders, registry, slide
from isoslide.tile_encoder import TileEncoder

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry.load(ROOT / "resources/encoders.yaml")
# Depth 2 and width 96: the same classes and keyword arguments as the full network, in a second.
SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 4}


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


def build(entry, **arguments):
    """The network of an entry with random weights, built as the entry says but without our loader."""
    layers = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": torch.nn.SiLU}
    kwargs = {k: layers.get(v, v) if isinstance(v, str) else v for k, v in (entry.arguments | arguments).items()}
    torch.manual_seed(1)
    return timm.create_model(entry.model, num_classes=0, **kwargs).eval()


def test_embedded_encoder_against_plain_timm():
    """The network without our folding of BatchNorm, channels-last and batching, on the same pixels."""
    entry = REGISTRY["efficientnet_lite0"]
    path = encoders.weights_path(entry, "unused")
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


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.model.startswith("vit")])
def test_loading_of_every_vision_transformer(tmp_path, name):
    """Weights saved as the hub has them come back through the production loader, every key matched."""
    small = SMALL | ({"mlp_ratio": 4} if "mlp_ratio" in REGISTRY[name].arguments else {})
    entry = REGISTRY[name]
    network = build(entry, **small)
    width = 96 * (2 if entry.pooling == "cls_patch_mean" else 1)
    entry = replace(entry, arguments=entry.arguments | small, dim=width)
    path = tmp_path / entry.weights
    path.parent.mkdir()
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    features = TileEncoder(entry, tmp_path)(tiles(2, entry.tile_px))
    pixels = tiles(2, entry.tile_px).permute(0, 3, 1, 2).float()
    if entry.input_px:
        pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (entry.mean, entry.std))
    with torch.inference_mode():
        tokens = network.forward_features((pixels / 255 - mean) / std)
    skip = 1 + entry.arguments.get("reg_tokens", 4 if "reg4" in entry.model else 0)
    expected = tokens[:, 0]
    if entry.pooling == "cls_patch_mean":
        expected = torch.cat([expected, tokens[:, skip:].mean(1)], dim=1)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.model.startswith("vit")])
def test_full_size_dimension(name):
    """The registry's `dim` is what the architecture at full size gives (built without memory)."""
    entry = REGISTRY[name]
    with torch.device("meta"):
        network = build(entry)
        pixels = torch.empty(1, 3, 224, 224)
    assert encoders.POOLINGS[entry.pooling](network, pixels).shape == (1, entry.dim)


def test_absent_and_foreign_weights_are_refused_in_one_line(tmp_path):
    entry = REGISTRY["uni"]
    with pytest.raises(encoders.EncoderError, match=r"encoder uni: no weights at .*MahmoodLab/UNI \(gated"):
        TileEncoder(entry, tmp_path)
    (tmp_path / "uni").mkdir()
    torch.save(build(entry, **SMALL).state_dict(), tmp_path / "uni/pytorch_model.bin")
    entry = replace(entry, arguments=entry.arguments | SMALL | {"depth": 1})
    with pytest.raises(encoders.EncoderError, match="does not fit vit_large_patch16_224") as error:
        TileEncoder(entry, tmp_path)
    assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return (Path("/nonexistent/evil").touch, ())


def test_code_in_a_pickle_is_not_run(tmp_path):
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(encoders.EncoderError, match="holds more than tensors"):
        encoders.read_weights(tmp_path / "evil.bin")
