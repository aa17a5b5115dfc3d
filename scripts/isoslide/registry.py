"""The registry of encoders: what each one is, read from resources/encoders.yaml. Light: the Snakefile imports it."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

PROSE = ("name", "hub", "revision", "sha256", "licence", "gated", "pathology", "citation")
CHOICES = {
    "loader": ("timm", "conch", "keep", "trident"),
    "key_map": ("", "by_position", "without_head", "hf_vit", "hf_dinov2", "conch", "keep"),
    "precision": ("float32", "float16", "bfloat16"),
    "fit": ("resize", "crop"),
    "interpolation": ("bilinear", "bicubic"),
    "pooling": ("model", "cls", "cls_patch_mean"),
}
SETTINGS = "config.json"  # of a timm model, as the hub names it
TIMM = "timm:"  # what a config puts before the name of any timm model
TRIDENT = "trident:"  # and before the name of an encoder that TRIDENT builds and runs


class RegistryError(ValueError):
    """An encoder's entry is absent or wrong; the message is one line."""


@dataclass(frozen=True)
class Encoder:
    """One entry of resources/encoders.yaml, where the fields are described."""

    id: str
    name: str
    loader: str
    model: str
    weights: str
    tile_px: int
    mpp: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    dim: int
    precision: str
    licence: str
    gated: bool
    pathology: bool
    citation: str
    arguments: dict[str, Any] = field(default_factory=dict)
    input_px: int = 0
    key_map: str = ""
    hub: str = ""
    revision: str = ""
    sha256: str = ""
    fit: str = "resize"
    interpolation: str = "bilinear"

    def defining(self) -> dict[str, Any]:
        """Return the fields that define the numbers, for content keys and for what Snakefile tracks."""
        late = {item.name: item.default for item in fields(self) if item.name in ("fit", "interpolation")}
        values = {key: value for key, value in asdict(self).items() if key not in PROSE}
        # Fields that came later do not count at their default: features made before them still stand.
        return {key: value for key, value in values.items() if late.get(key, MISSING) != value}

    @property
    def tile(self) -> str:
        """Name of the tile view this encoder wants: encoders that want the same share their tiles."""
        return f"{self.tile_px}px_{self.mpp:g}um"

    @property
    def side(self) -> int:
        """Side in pixels of what the network sees."""
        return self.input_px or self.tile_px


def load(path: str | Path, names: Iterable[str] = (), weights: str | Path = "") -> dict[str, Encoder]:
    """Return all entries by id, and an entry for each of `names` that names a model of timm or TRIDENT.

    Args:
        path: the YAML file of the registry; TRIDENT's table lies beside it.
        names: encoders that are asked for, as in the config.
        weights: folder of the weights, where the settings of timm models lie.

    Raises:
        RegistryError: for an entry with an unknown, a missing or a wrong field, or a timm model that was not fetched.
    """
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    found = {name: _entry(name, entry, str(path)) for name, entry in entries.items()}
    for name in names:
        if name.startswith(TIMM):
            found[name] = timm_entry(name, weights)
        elif name.startswith(TRIDENT):
            found[name] = trident_entry(name, Path(path).with_name("trident.yaml"))
    return found


def trident_entry(name: str, path: str | Path) -> Encoder:
    """Return the entry of `trident:NAME` from the table of TRIDENT's encoders.

    Its pixels are left to TRIDENT, which gets them as they were read: hence mean 0 and standard deviation 1.

    Raises:
        RegistryError: the table has no such encoder.
    """
    model = name.removeprefix(TRIDENT)
    table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if model not in table:
        raise RegistryError(f"encoder {name}: not in {path}: use one of {[TRIDENT + key for key in sorted(table)]}")
    found = {"mpp": 0.5} | table[model]
    found |= {"name": f"{model} (by TRIDENT)", "loader": "trident", "model": model, "pooling": "model"}
    found |= {"weights": f"trident/{model}/{found['weights']}", "mean": (0, 0, 0), "std": (1, 1, 1), "pathology": True}
    found |= {"citation": "see its page; run by TRIDENT, Zhang et al. 2025, arXiv 2502.06750"}
    return _entry(name, found, str(path))


def timm_entry(name: str, weights: str | Path) -> Encoder:
    """Return the entry of `timm:NAME`, read from the settings that the hub keeps beside the weights.

    The tile is as large as the network's input, at 0.5 µm per pixel; the whole of it is seen.

    Raises:
        RegistryError: the settings are not in the folder of weights, or are not those of a timm model.
    """
    model = name.removeprefix(TIMM)
    path = Path(weights, "timm", model, SETTINGS)
    if not path.exists():
        raise RegistryError(
            f"encoder {name}: its settings are not at {path}: "
            f"fetch it with: python scripts/fetch_weights.py --encoders {name} --weights {weights}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        values = settings["pretrained_cfg"]
        interpolation = values["interpolation"]
        found = {
            "name": f"{model} (timm, not a pathology model)",
            "model": settings["architecture"],
            "arguments": settings.get("model_args", {}),
            "tile_px": values["input_size"][-1],
            "mean": values["mean"],
            "std": values["std"],
            "interpolation": interpolation if interpolation in CHOICES["interpolation"] else "bicubic",
            "licence": values.get("license", "see its page"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"encoder {name}: {path} holds no settings of a timm model ({error})") from error
    found |= {"loader": "timm", "key_map": "without_head", "weights": f"timm/{model}/model.safetensors"}
    found |= {"hub": f"timm/{model}", "mpp": 0.5, "pooling": "model", "dim": 0, "precision": "float32"}
    found |= {"gated": False, "pathology": False, "citation": f"Wightman, timm; huggingface.co/timm/{model}"}
    return _entry(name, found, str(path))


def _entry(name: str, entry: dict[str, Any], path: str) -> Encoder:
    known = {item.name for item in fields(Encoder)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise RegistryError(f"{path}: {name}: unknown field {unknown[0]!r}: use one of {sorted(known)}")
    try:
        encoder = Encoder(id=name, **entry)
    except TypeError as error:
        raise RegistryError(f"{path}: {name}: {error}") from error
    for key, allowed in CHOICES.items():
        if getattr(encoder, key) not in allowed:
            raise RegistryError(f"{path}: {name}.{key}: {getattr(encoder, key)!r} is not one of {list(allowed)}")
    if encoder.fit == "crop" and encoder.side > encoder.tile_px:
        raise RegistryError(f"{path}: {name}.fit: {encoder.side} px cannot be cut out of {encoder.tile_px} px")
    return encoder
