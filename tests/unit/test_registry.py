import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from isoslide import config, encoders, key_maps, networks, registry

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "resources/encoders.yaml"
REGISTRY = registry.load(FILE)
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def test_the_table_of_the_docs_is_the_registry():
    text = (ROOT / "docs/encoders.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| `.*", text, re.MULTILINE)]
    assert rows == [
        [
            f"`{entry.id}`",
            entry.name.split(" (")[0],
            f"{entry.tile_px} px, {entry.mpp:g}",
            str(entry.dim),
            entry.precision,
            entry.licence,
            "yes" if entry.gated else "no",
        ]
        for entry in REGISTRY.values()
    ]


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=list(REGISTRY))
def test_entries_are_sound(entry):
    assert entry.loader in networks.LOADERS
    assert entry.key_map in key_maps.KEY_MAPS
    assert len(entry.mean) == len(entry.std) == 3
    assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
    patch = entry.arguments.get("patch_size") or int((re.findall(r"patch(\d+)", entry.model) or [32])[0])
    assert entry.side % patch == 0
    assert bool(entry.hub) != entry.weights.startswith("package:")
    assert re.fullmatch(r"([0-9a-f]{40})?", entry.revision)
    assert re.fullmatch(r"([0-9a-f]{64})?", entry.sha256)


def test_encoders_share_views():
    views = {}
    for entry in REGISTRY.values():
        views.setdefault(entry.tile, set()).add(entry.id)
    assert views.keys() == {"224px_0.5um", "256px_0.5um", "512px_0.5um"}
    assert {"uni", "uni2_h", "prov_gigapath", "keep", "gpfm", "kaiko_b8"} <= views["256px_0.5um"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "half"}, r"uni.precision: 'half' is not one of \['float32', 'float16', 'bfloat16'\]"),
        ({"loader": "timmm"}, r"uni.loader: 'timmm' is not one of \['timm', 'conch', 'keep', 'trident'\]"),
        ({"key_map": "hf_dino"}, r"uni.key_map: 'hf_dino' is not one of \['', 'by_position', "),
        ({"pooling": "mean"}, r"uni.pooling: 'mean' is not one of"),
        ({"fit": "crop", "input_px": 512}, r"uni.fit: 512 px cannot be cut out of 256 px"),
        ({"tilepx": 3}, r"uni: unknown field 'tilepx': use one of"),
        ({"dim": None}, r"missing 1 required .*'dim'"),
    ],
)
def test_mistakes_in_an_entry_are_one_line(tmp_path, change, message):
    entry = {**yaml.safe_load(FILE.read_text())["uni"], **change}
    entry = {key: value for key, value in entry.items() if value is not None}
    (tmp_path / "encoders.yaml").write_text(yaml.safe_dump({"uni": entry}))
    with pytest.raises(registry.RegistryError, match=message) as error:
        registry.load(tmp_path / "encoders.yaml")
    assert "\n" not in str(error.value)


def test_choices_are_those_that_there_are():
    there = {"loader": networks.LOADERS, "key_map": key_maps.KEY_MAPS, "pooling": encoders.POOLINGS}
    assert {name: tuple(found) for name, found in there.items()} == {name: registry.CHOICES[name] for name in there}


def test_where_the_weights_are_published_is_not_what_defines_features():
    entry = REGISTRY["virchow2"]
    assert replace(entry, hub="x", revision="y", sha256="z", gated=False).defining() == entry.defining()
    assert replace(entry, mpp=0.25).defining() != entry.defining()
    assert replace(entry, interpolation="bilinear").defining() != entry.defining()


def test_fields_that_came_later_leave_older_features_standing():
    assert REGISTRY["efficientnet_lite0"].defining().keys() == {
        *("id", "loader", "model", "weights", "tile_px", "mpp", "mean", "std", "pooling", "dim", "precision"),
        *("arguments", "input_px", "key_map"),
    }


def test_the_size_of_a_tile_is_the_encoders_and_no_setting():
    """Nobody can ask Virchow2 for tiles of 512 px: there is no key for it, and the view follows from the entry."""
    settings = {"sheet": "s.tsv", "encoders": ["virchow2"]}
    for wrong in ({"tile_px": 512}, {"tiles": {"tile_px": 512}}, {"encoders": [{"id": "virchow2", "tile_px": 512}]}):
        with pytest.raises(config.ConfigError, match=r"unknown key|is not of type 'string'"):
            config.complete(settings | wrong, SCHEMA)
    assert REGISTRY["virchow2"].tile == "224px_0.5um"
