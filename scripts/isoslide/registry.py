"""The registry of encoders: what each one is, read from resources/encoders.yaml. Light: the Snakefile imports it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml


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

    def defining(self) -> dict[str, Any]:
        """Return the fields that define the numbers, for content keys and for what Snakefile tracks."""
        prose = ("name", "hub", "licence", "gated", "pathology", "citation")
        return {key: value for key, value in asdict(self).items() if key not in prose}

    @property
    def tile(self) -> str:
        """Name of the tile view this encoder wants: encoders that want the same share their tiles."""
        return f"{self.tile_px}px_{self.mpp:g}um"


def load(path: str | Path) -> dict[str, Encoder]:
    """Return all entries by id.

    Raises:
        RegistryError: for an entry with an unknown or a missing field.
    """
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {name: _entry(name, entry, str(path)) for name, entry in entries.items()}


def _entry(name: str, entry: dict[str, Any], path: str) -> Encoder:
    known = {item.name for item in fields(Encoder)}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise RegistryError(f"{path}: {name}: unknown field {unknown[0]!r}: use one of {sorted(known)}")
    try:
        return Encoder(id=name, **entry)
    except TypeError as error:
        raise RegistryError(f"{path}: {name}: {error}") from error
