"""Model folders: what scores new slides elsewhere. Their card, and what they refuse. Light: the Snakefile imports it.

A folder holds `card.json`, the models as safetensors, `range.safetensors` and, where it can be had, `model.onnx`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoslide import keys, weights
from isoslide.registry import Encoder

CARD, RANGE, ONNX = "card.json", "range.safetensors", "model.onnx"
FORMAT = 1
HASH_DIGITS = 16  # of weights, as features files carry them
ENCODER = (
    "loader",
    "model",
    "arguments",
    "tile_px",
    "mpp",
    "mean",
    "std",
    "pooling",
    "input_px",
    "fit",
    "interpolation",
)
"""What of an encoder's entry makes its numbers."""


class FolderError(ValueError):
    """A model folder cannot be used here; the message is one line: where, what, how to mend it."""


def read_card(folder: str | Path) -> dict[str, Any]:
    """Return the card of a model folder, all of whose files are there.

    Raises:
        FolderError: no folder, no card, a card of another format, a file that is absent.
    """
    path = Path(folder, CARD)
    if not Path(folder).is_dir():
        raise FolderError(f"model folder {folder}: no such folder: correct the path; the target `exports` makes them")
    if not path.is_file():
        raise FolderError(
            f"model folder {folder}: no {CARD}: name a folder that the target `exports` made, results/exports/TASK/"
            "ENCODER/ARM"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        version, files = card["format"], [RANGE, *(one["file"] for one in card["models"])]
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path}: not a card of a model folder ({error}): copy the folder again") from error
    if version != FORMAT:
        raise FolderError(f"{path}: format {version!r}, this Isoslide reads {FORMAT}: export again, or update Isoslide")
    for name in files:
        if not Path(folder, name).is_file():
            raise FolderError(f"model folder {folder}: no {name}, which its card names: copy the folder again, whole")
    return card


def features_name(card: Mapping[str, Any]) -> str:
    """Return the name of the features that the models take: the encoder's, or those of its normalised tiles."""
    encoder = card["encoder"]
    return f"{encoder['id']}+{encoder['stain']}" if encoder["stain"] else encoder["id"]


def complete(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the configuration with the encoders of the folders that it applies, and their cards by name.

    Raises:
        FolderError: a folder that cannot be read, or whose encoder the configuration leaves out.
    """
    cards = {name: read_card(folder) for name, folder in config["apply"].items()}
    found = list(dict.fromkeys(card["encoder"]["id"] for card in cards.values()))
    encoders = config.get("encoders", found)
    for name, card in cards.items():
        own = card["encoder"]["id"]
        if own not in encoders:
            raise FolderError(
                f"config apply.{name}: the models of {config['apply'][name]} were trained on encoder {own}, the config "
                f"has {list(encoders)}: add it to 'encoders', or leave that key out"
            )
        if card["encoder"]["imported"] and own not in config["import"]:
            raise FolderError(
                f"config apply.{name}: the models of {config['apply'][name]} were trained on imported features "
                f"{own!r}: say under import.{own} where those of these scans are"
            )
    return {**config, "encoders": encoders}, cards


def check(config: Mapping[str, Any], cards: Mapping[str, Mapping[str, Any]], registry: Mapping[str, Encoder]) -> None:
    """Refuse, before any job, models of another encoder, or slides that would be read in another way.

    Raises:
        FolderError: the first that does not fit.
    """
    if cards and not config["tasks"] and Path("results/models").is_dir():
        raise FolderError(
            "config apply: results/ holds a trained cohort, whose tables a run on other slides would overwrite: run in "
            "a folder of its own, snakemake --directory FOLDER"
        )
    for name, card in cards.items():
        encoder = card["encoder"]
        if encoder["imported"] != (encoder["id"] in config["import"]):
            raise FolderError(
                f"config import.{encoder['id']}: the models of {config['apply'][name]} were trained on features of the "
                "registry's encoder of that name: leave the block out, or give the imported ones another name"
            )
        if not encoder["imported"]:
            check_encoder(config["apply"][name], card, registry[encoder["id"]], config["weights"])
            check_reading(config["apply"][name], card, config)


def stained(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the encoder of each features variant that the models of folders take, by the variant's name."""
    return {features_name(card): card["encoder"]["id"] for card in cards.values() if card["encoder"]["stain"]}


def check_encoder(folder: str | Path, card: Mapping[str, Any], entry: Encoder, folder_of_weights: str | Path) -> None:
    """Refuse a registry entry that is not the encoder of the card, or weights that were fetched as another file.

    Raises:
        FolderError: naming the field, both values and the remedy.
    """
    known, own = card["encoder"], entry_facts(entry)
    for name in ENCODER:
        if known[name] != own[name]:
            raise FolderError(
                f"model folder {folder}: encoder {entry.id} had {name} {known[name]!r} in training and has "
                f"{own[name]!r} in resources/encoders.yaml: correct the entry, or train on it"
            )
    fetched = weights.recorded(entry, Path(folder_of_weights, entry.weights).parent).get("sha256", "")
    if fetched:
        check_weights(folder, card, fetched[:HASH_DIGITS])


def check_weights(folder: str | Path, card: Mapping[str, Any], found: str) -> None:
    """Refuse features of other weights; features that were imported may not say which.

    Raises:
        FolderError: with both hashes.
    """
    known = card["encoder"]["weights_sha256"]
    if known and found != known:
        raise FolderError(
            f"model folder {folder}: trained on features of {card['encoder']['id']} with weights {known}, here they "
            f"have {found or 'none stated'}: put the weights of the training there, and make the features again"
        )


def check_tiles(folder: str | Path, card: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Refuse features of tiles of another size, as their files say it.

    Raises:
        FolderError: with both sizes.
    """
    for name, unit in (("tile_px", "px"), ("mpp", "µm/px"), ("tile_um", "µm")):
        known, own = card["encoder"].get(name), origin.get(name)
        if known and own and abs(own / known - 1) > 1e-6:
            raise FolderError(
                f"model folder {folder}: trained on tiles of {known:g} {unit} ({name}), these are of {own:g} {unit}: "
                f"cut tiles of {known:g} {unit}"
            )


def check_dim(folder: str | Path, card: Mapping[str, Any], dim: int) -> None:
    """Refuse features of another length.

    Raises:
        FolderError: with both lengths.
    """
    known = card["encoder"]["dim"]
    if known != dim:
        raise FolderError(
            f"model folder {folder}: trained on {known} features a tile, these have {dim}: make or import features of "
            f"{card['encoder']['id']}"
        )


def check_reading(folder: str | Path, card: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse settings that would show the encoder other pixels: how slides are read, how tiles overlap.

    Raises:
        FolderError: naming the key, both values and the remedy.
    """
    for block, names in (("reading", config["reading"]), ("tiles", ("overlap",))):
        for name in names:
            known, own = card["preprocessing"][block][name], config[block][name]
            if known != own:
                raise FolderError(
                    f"model folder {folder}: trained with {block}.{name} {known!r}, the config has {own!r}: set it to "
                    f"{known!r}"
                )


def entry_facts(entry: Encoder) -> dict[str, Any]:
    """Return what a card keeps of a registry entry, as JSON has it."""
    names = ("id", "name", *ENCODER, "dim", "precision", "licence", "gated", "pathology", "hub", "revision", "citation")
    facts = {name: getattr(entry, name) for name in names}
    more = {"imported": False, "tile_um": round(entry.tile_px * entry.mpp, 6)}
    return json.loads(json.dumps(facts | more))


def imported_facts(name: str) -> dict[str, Any]:
    """Return what a card says of features that were made elsewhere."""
    licence = "that of the encoder which made the features"
    return {"id": name, "name": "features made elsewhere", "imported": True, "licence": licence, "gated": None}


def check_models(folder: str | Path, card: Mapping[str, Any]) -> None:
    """Refuse files that are not those of the card.

    Raises:
        FolderError: naming the file.
    """
    for one in [*card["models"], {"file": RANGE, "sha256": card["range"]["sha256"]}]:
        if keys.file_hash(Path(folder, one["file"])) != one["sha256"]:
            raise FolderError(
                f"model folder {folder}: {one['file']} is not the file of its card: copy the folder again"
            )
