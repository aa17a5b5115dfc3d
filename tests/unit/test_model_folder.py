"""Cards of model folders: what is read, and what is refused in one line."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from isoslide import model_folder, registry

ROOT = Path(__file__).resolve().parents[2]
ENTRY = registry.load(ROOT / "resources/encoders.yaml")["uni"]
CARD = {
    "format": model_folder.FORMAT,
    "encoder": model_folder.entry_facts(ENTRY) | {"weights_sha256": "56ef09b44a25dc5c", "stain": ""},
    "preprocessing": {"reading": {"icc": "ignore", "downsampling": "fast"}, "tiles": {"overlap": 0}},
    "range": {"sha256": hashlib.sha256(b"r").hexdigest()},
    "models": [{"file": "a.safetensors", "sha256": hashlib.sha256(b"a").hexdigest()}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    (tmp_path / "range.safetensors").write_bytes(b"r")
    (tmp_path / "a.safetensors").write_bytes(b"a")
    return tmp_path


def refused(message, call, *arguments):
    with pytest.raises(model_folder.FolderError, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_a_whole_folder_is_read(folder):
    assert model_folder.read_card(folder) == CARD
    model_folder.check_models(folder, CARD)
    assert model_folder.features_name(CARD) == "uni"
    stained = CARD | {"encoder": CARD["encoder"] | {"stain": "macenko"}}
    assert model_folder.features_name(stained) == "uni+macenko"


def test_broken_folders(folder):
    refused("gone: no such folder: correct the path", model_folder.read_card, folder / "gone")
    (folder / "empty").mkdir()
    refused("no card.json: name a folder that the target `exports` made", model_folder.read_card, folder / "empty")
    (folder / "a.safetensors").write_bytes(b"b")
    refused("a.safetensors is not the file of its card", model_folder.check_models, folder, CARD)
    (folder / "a.safetensors").unlink()
    refused("no a.safetensors, which its card names", model_folder.read_card, folder)
    (folder / "card.json").write_text(json.dumps(CARD | {"format": 99}))
    refused("format 99, this Isoslide reads 1", model_folder.read_card, folder)
    (folder / "card.json").write_text("{}")
    refused(r"not a card of a model folder \('format'\)", model_folder.read_card, folder)


def check_encoder(entry, weights="w"):
    model_folder.check_encoder("f", CARD, entry, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_px": 224}, "encoder uni had tile_px 256 in training and has 224 in resources/encoders.yaml"),
        ({"mpp": 1.0}, "mpp 0.5 in training and has 1.0"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean .* in training and has .0.5, 0.5, 0.5."),
        ({"interpolation": "bicubic"}, "interpolation 'bilinear' in training and has 'bicubic'"),
        ({"pooling": "cls"}, "pooling 'model' in training and has 'cls'"),
    ],
)
def test_another_encoder_under_the_same_name(change, message):
    check_encoder(ENTRY)
    check_encoder(dataclasses.replace(ENTRY, licence="another", gated=False, weights="elsewhere/x.bin"))
    refused(message, check_encoder, dataclasses.replace(ENTRY, **change))


def test_other_weights(tmp_path):
    model_folder.check_weights("f", CARD, "56ef09b44a25dc5c")
    refused("with weights 56ef09b44a25dc5c, here they have 0123", model_folder.check_weights, "f", CARD, "0123")
    refused("here they have none stated", model_folder.check_weights, "f", CARD, "")
    unknown = CARD | {"encoder": CARD["encoder"] | {"weights_sha256": ""}}
    model_folder.check_weights("f", unknown, "0123")
    (tmp_path / "uni").mkdir()
    manifest = {"file": "pytorch_model.bin", "sha256": "56ef09b44a25dc5c" + "0" * 48}
    (tmp_path / "uni/manifest.json").write_text(json.dumps(manifest))
    check_encoder(ENTRY, tmp_path)
    (tmp_path / "uni/manifest.json").write_text(json.dumps(manifest | {"sha256": "f" * 64}))
    refused("here they have ffffffffffffffff: put the weights of the training there", check_encoder, ENTRY, tmp_path)


def test_other_tiles():
    model_folder.check_tiles("f", CARD, {"tile_px": 256, "mpp": 0.5})
    model_folder.check_tiles("f", CARD, {})
    message = r"trained on tiles of 256 px \(tile_px\), these are of 224 px: cut tiles of 256 px"
    refused(message, model_folder.check_tiles, "f", CARD, {"tile_px": 224})
    refused("tiles of 128 µm .*, these are of 256 µm", model_folder.check_tiles, "f", CARD, {"tile_um": 256.0})


def test_other_pixels():
    config = {"reading": {"icc": "ignore", "downsampling": "fast"}, "tiles": {"overlap": 0, "min_tissue": 0.9}}
    model_folder.check_reading("f", CARD, config)
    other = config | {"reading": {"icc": "srgb", "downsampling": "fast"}}
    message = "trained with reading.icc 'ignore', the config has 'srgb': set it to 'ignore'"
    refused(message, model_folder.check_reading, "f", CARD, other)
    refused(
        "tiles.overlap 0, the config has 0.5",
        model_folder.check_reading,
        "f",
        CARD,
        config | {"tiles": {"overlap": 0.5}},
    )
