"""Fetching weights from the Hugging Face hub: pinned, checked and recorded; refusals are explained. Light."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from isoslide import atomic, keys, registry, weights
from isoslide.registry import Encoder
from isoslide.weights import EncoderError

SHA256_DIGITS = 64
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Source:
    """A file on the hub: of which encoder, where, and at which revision; empty revision: the newest."""

    encoder: str
    hub: str
    name: str
    revision: str = ""
    sha256: str = ""


def timm_entry(name: str, folder: str | Path, token: str | None) -> Encoder:
    """Fetch the settings of `timm:NAME` from the hub, where they are not in `folder` yet, and return its entry."""
    model = name.removeprefix(registry.TIMM)
    place = Path(folder, "timm", model)
    if not (place / registry.SETTINGS).exists():
        _fetch_file(Source(name, f"timm/{model}", registry.SETTINGS), place, token)
    return registry.timm_entry(name, folder)


def fetch(entry: Encoder, folder: str | Path, token: str | None) -> dict[str, str]:
    """Fetch the weights of an entry, whole or not at all, and return hub, revision and SHA-256 of the file.

    A file that is there with the recorded checksum is kept, a damaged one replaced; a connection that breaks is taken
    up again. The token is passed on and kept nowhere.

    Raises:
        EncoderError: the hub refuses or cannot be reached, or the file is not the one that the registry means.
    """
    place, name = Path(folder, entry.weights).parent, Path(entry.weights).name
    known = weights.recorded(entry, place)
    damaged = False
    if known and (place / name).exists():
        damaged = keys.file_hash(place / name) != known["sha256"]
        if not damaged:
            return known
    source = Source(entry.id, entry.hub, name, entry.revision, entry.sha256)
    found = _fetch_file(source, place, token, anew=damaged)
    atomic.write_json(place / weights.MANIFEST, {"encoder": entry.id, "file": name} | found)
    return found


def _fetch_file(source: Source, place: Path, token: str | None, anew: bool = False) -> dict[str, str]:
    with _explained(source, token):
        url = huggingface_hub.hf_hub_url(source.hub, source.name, revision=source.revision or None)
        remote = huggingface_hub.get_hf_file_metadata(url, token=token or False)
        revision = str(remote.commit_hash)
        huggingface_hub.hf_hub_download(
            source.hub, source.name, revision=revision, local_dir=place, token=token or False, force_download=anew
        )
    path = place / source.name
    found = keys.file_hash(path)
    for checksum in (remote.etag or "", source.sha256):  # small files of the hub carry a shorter one, that of git
        if len(checksum) == SHA256_DIGITS and checksum != found:
            path.unlink()
            raise EncoderError(
                f"encoder {source.encoder}: {source.name} of {source.hub} has SHA-256 {found[:16]}, "
                f"not {checksum[:16]}: fetch it again; if it stays so, the registry's revision and sha256 do not match"
            )
    return {"hub": source.hub, "revision": revision, "sha256": found}


@contextmanager
def _explained(source: Source, token: str | None) -> Iterator[None]:
    """Turn what the hub answers into one line that says what to do."""
    try:
        yield
    except (errors.HTTPError, errors.EntryNotFoundError, OSError) as error:
        raise EncoderError(f"encoder {source.encoder}: {_reason(source, token, error)}") from None


def _reason(source: Source, token: str | None, error: Exception) -> str:
    answer = getattr(error, "response", None)
    code = answer.status_code if answer is not None else 0
    hub, page = source.hub, weights.page(source.hub)
    refused = code in (401, 403)
    cases = (
        (
            refused and not token,
            f"{hub} is not given without a token ({code}): ask for access at {page}, make a token that may read at "
            f"{TOKENS} and put it into the variable HF_TOKEN",
        ),
        (
            isinstance(error, errors.GatedRepoError),
            f"access to {hub} is not granted to your token ({code}): ask at {page} with the account that the token "
            "belongs to and wait for approval; every model has its own gate",
        ),
        (refused, f"the token in HF_TOKEN is refused ({code}): make a new one that may read at {TOKENS}"),
        (
            isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError),
            f"{hub} has no file {source.name} at {source.revision or 'main'}: correct the registry, see {page}",
        ),
        (isinstance(error, errors.RepositoryNotFoundError), f"the hub has no model {hub}: correct the registry"),
        (code, f"the hub answers {code} for {hub}: try again later"),
        (getattr(error, "strerror", None), f"{source.name} cannot be written: {getattr(error, 'strerror', '')}"),
        (
            True,
            "the download broke off or the hub cannot be reached: run it again, where there is a network",
        ),
    )
    return next(text for holds, text in cases if holds)
