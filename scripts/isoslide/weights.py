"""Weights files of encoders: where they lie, what to do when they do not, whether they are what was fetched. Light."""

import importlib.util
import json
from pathlib import Path

from isoslide import keys
from isoslide.registry import Encoder

MANIFEST = "manifest.json"
PACKAGE = "package:"


class EncoderError(Exception):
    """The encoder cannot be loaded or its weights not be had; the message is one line with the remedy."""


def weights_path(entry: Encoder, folder: str | Path) -> Path:
    """Return the weights file of an entry.

    Raises:
        EncoderError: saying what to put where.
    """
    if entry.weights.startswith(PACKAGE):
        package, _, inside = entry.weights.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EncoderError(f"encoder {entry.id}: package {package} is not installed: pip install {package}")
        return Path(spec.submodule_search_locations[0], inside)
    path = Path(folder, entry.weights)
    if not path.exists():
        raise EncoderError(f"encoder {entry.id}: no weights at {path}: {remedy(entry, folder)}")
    return path


def remedy(entry: Encoder, folder: str | Path) -> str:
    """Return how to get the weights of an entry, in a few words."""
    if not entry.hub:
        return "put the file there"
    command = f"python scripts/fetch_weights.py --encoders {entry.id} --weights {folder}"
    if not entry.gated:
        return f"fetch them with: {command}"
    return f"ask for access at {page(entry.hub)}, put your token into the variable HF_TOKEN, then run: {command}"


def page(hub: str) -> str:
    """Return the address of a model's page."""
    return f"https://huggingface.co/{hub}"


def missing(entry: Encoder, folder: str | Path) -> str:
    """Return what to do about missing weights, or nothing; a package is left to the jobs' own environment."""
    if not entry.weights.startswith(PACKAGE):
        try:
            weights_path(entry, folder)
        except EncoderError as error:
            return str(error)
    return ""


def checked_hash(entry: Encoder, path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        EncoderError: it is not the file that was fetched, according to the manifest beside it.
    """
    found = keys.file_hash(path)
    known = recorded(entry, path.parent).get("sha256", found)
    if found != known:
        raise EncoderError(
            f"encoder {entry.id}: {path} is not what was fetched (SHA-256 {found[:16]}, not {known[:16]}): fetch "
            f"it again, or remove {path.parent / MANIFEST} if the file is meant to be another"
        )
    return found


def recorded(entry: Encoder, folder: Path) -> dict[str, str]:
    """Return what the manifest in the folder of an entry's weights says of their file; empty where there is none."""
    path = folder / MANIFEST
    if entry.weights.startswith(PACKAGE) or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["file"] == Path(entry.weights).name else {}
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"encoder {entry.id}: {path} is damaged: remove it and fetch the weights again") from error
