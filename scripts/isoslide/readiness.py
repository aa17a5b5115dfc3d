"""Whether encoders can be used here: weights, checksum, loading, and the features of a fixed tile."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from isoslide import weights
from isoslide.registry import Encoder

OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True)
class Readiness:
    """What was found of an encoder.

    Attributes:
        encoder: its id.
        state: ok; missing (no weights yet); broken (weights that cannot be used).
        licence: of the weights.
        gate: open, or gated: whether the hub asks for consent to terms.
        dim: length of a feature vector; empty where it was not loaded.
        fingerprint: first 12 digits of the SHA-256 of the features of the fixed tile, rounded to three decimals: the
            same on machines that compute alike.
        reason: what is wrong, and what to do.
    """

    encoder: str
    state: str
    licence: str
    gate: str
    dim: str = ""
    fingerprint: str = ""
    reason: str = ""


def check(entry: Encoder, folder: str | Path) -> Readiness:
    """Return whether an encoder can be used; PyTorch is imported only where there are weights to load."""
    known = {"encoder": entry.id, "licence": entry.licence, "gate": "gated" if entry.gated else "open"}
    try:
        weights.weights_path(entry, folder)
    except weights.EncoderError as error:
        return Readiness(state=MISSING, reason=str(error), **known)
    try:
        dim, fingerprint = embed(entry, folder)
    except weights.EncoderError as error:
        return Readiness(state=BROKEN, reason=str(error), **known)
    return Readiness(state=OK, dim=str(dim), fingerprint=fingerprint, **known)


def embed(entry: Encoder, folder: str | Path) -> tuple[int, str]:
    """Return length and fingerprint of the features of the fixed tile, computed on the CPU.

    Raises:
        EncoderError: the weights do not load, or the features are not finite.
    """
    import torch

    from isoslide.tile_encoder import TileEncoder

    side = torch.arange(entry.tile_px)
    # Slopes and waves of every length: a swap of axes or channels, or a flip, shows.
    tile = (37 * side[:, None] + 91 * side[None] + side[:, None] * side[None])[..., None] + torch.tensor([0, 53, 131])
    features = TileEncoder(entry, folder)((tile % 256).to(torch.uint8)[None])[0]
    if not torch.isfinite(features).all():
        raise weights.EncoderError(f"encoder {entry.id}: its features are not finite: fetch the weights again")
    rounded = (features * 1000).round().to(torch.int64).numpy()
    return len(features), hashlib.sha256(rounded.tobytes()).hexdigest()[:12]


def table(rows: list[Readiness]) -> str:
    """Return the findings as lines of text, aligned."""
    cells = [("encoder", "state", "dim", "fingerprint", "gate", "licence")]
    cells += [(row.encoder, row.state, row.dim, row.fingerprint, row.gate, row.licence) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([*lines, *(row.reason for row in rows if row.reason)])
