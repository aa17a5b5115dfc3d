"""Networks of encoders with their weights laid on them: built without memory, the file mapped, every name matched."""

import itertools
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isoslide.key_maps import KEY_MAPS
from isoslide.registry import Encoder
from isoslide.weights import EncoderError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a safetensors or a PyTorch file, told apart by their content; no code in a file is run.

    Raises:
        EncoderError: the file is neither, is cut short, or holds more than tensors.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":
            return load_file(path)
        if start[:2] != b"PK" and start[:1] != b"\x80":
            what = "a pointer of git-lfs" if start.startswith(b"version ") else "neither safetensors nor PyTorch"
            raise EncoderError(f"{path} is {what}, not weights: fetch the file again")
        if start[:2] == b"PK" and path.suffix != ".safetensors":
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # torch takes files with that suffix for what they are not
            with open(path, "rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(f"{path} holds more than tensors and is not opened: get the safetensors file") from error
    except (RuntimeError, ValueError, EOFError, OSError, SafetensorError) as error:
        raise EncoderError(f"{path} is damaged ({str(error).splitlines()[0]}): fetch it again") from error
    for name in ("state_dict", "model", "teacher"):  # under which training code keeps the weights in a larger file
        if isinstance(state.get(name), dict):
            state = state[name]
    return state


def timm_network(entry: Encoder) -> nn.Module:
    """Return the timm network of an entry, without a classifier."""
    named: dict[str, dict[str, Any]] = {
        "mlp_layer": {"SwiGLUPacked": timm.layers.SwiGLUPacked},
        "act_layer": {"SiLU": nn.SiLU},
        "norm_layer": {"LayerNorm_eps_1e-12": partial(nn.LayerNorm, eps=1e-12)},
    }
    arguments = dict(entry.arguments)
    for name, choices in named.items():
        if arguments.get(name) in choices:
            arguments[name] = choices[arguments[name]]
    return timm.create_model(entry.model, pretrained=False, num_classes=0, **arguments)


class AttentionPooler(nn.Module):
    """The pooling of CONCH v1.5: one learned query looks at all tokens."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, width))
        self.ln_k = nn.LayerNorm(context)
        self.ln_q = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (n, width) for tokens (n, length, context)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(pooled.transpose(1, 2).flatten(2))[:, 0]


class ConchTower(nn.Module):
    """CONCH v1.5's image tower: a timm vision transformer, attention pooling to 768 numbers, normalisation."""

    def __init__(self, entry: Encoder):
        super().__init__()
        self.trunk = timm_network(entry)
        self.attn_pool_contrast = AttentionPooler(entry.dim, self.trunk.num_features, heads=8)
        self.ln_contrast = nn.LayerNorm(entry.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the image embedding (n, dim)."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(pixels)))


class KeepTower(nn.Module):
    """KEEP's image tower: a timm vision transformer, a projection of two layers, length 1."""

    def __init__(self, entry: Encoder):
        super().__init__()
        self.visual = timm_network(entry)
        width = self.visual.num_features
        self.visual_head = nn.Sequential(nn.Linear(width, entry.dim), nn.GELU(), nn.Linear(entry.dim, entry.dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the image embedding (n, dim)."""
        return nn.functional.normalize(self.visual_head(self.visual(pixels)), dim=-1)


def load(entry: Encoder, path: Path) -> nn.Module:
    """Return the network of an entry with its weights, in float32."""
    return LOADERS[entry.loader][0](entry, path)


def filled(build: Callable[[Encoder], nn.Module], entry: Encoder, path: Path) -> nn.Module:
    """Return the network of an entry with the weights of `path`, in float32.

    Built on torch's meta device and filled with the mapped file: 0.1 s for a ViT-H instead of 5 s. A network with parts
    that its constructor makes and no file keeps is built in memory.

    Raises:
        EncoderError: the file does not fit the network; the first name that does not is told.
    """
    weights = read_weights(path)
    with torch.device("meta"):
        network = _fill(build(entry), entry, path, weights)
    if any(part.is_meta for part in itertools.chain(network.parameters(), network.buffers())):
        network = _fill(build(entry), entry, path, weights)
    return network.float()


def _fill(network: nn.Module, entry: Encoder, path: Path, weights: dict[str, Tensor]) -> nn.Module:
    try:
        network.load_state_dict(KEY_MAPS[entry.key_map][0](weights, network), strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        lines = str(error).splitlines()
        first = lines[min(1, len(lines) - 1)].strip()
        raise EncoderError(f"encoder {entry.id}: {path} does not fit {entry.model}: {first}") from error
    return network


def load_timm(entry: Encoder, path: Path) -> nn.Module:
    """Return the timm network of an entry with its weights."""
    return filled(timm_network, entry, path)


def load_conch(entry: Encoder, path: Path) -> nn.Module:
    """Return the image tower of CONCH v1.5 with its weights."""
    return filled(ConchTower, entry, path)


def load_keep(entry: Encoder, path: Path) -> nn.Module:
    """Return the image tower of KEEP with its weights."""
    return filled(KeepTower, entry, path)


class TridentNetwork(nn.Module):
    """An encoder of TRIDENT, which prepares its pixels itself, from pictures, one by one."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embedding (n, dim) of tiles (n, 3, tile_px, tile_px) with values from 0 to 1."""
        tiles = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        prepared = torch.stack([self.encoder.eval_transforms(Image.fromarray(tile)) for tile in tiles])
        return self.encoder(prepared.to(pixels.device))


def load_trident(entry: Encoder, path: Path) -> nn.Module:
    """Return an encoder that TRIDENT builds, with weights that it reads.

    Raises:
        EncoderError: TRIDENT is not installed in this environment.
    """
    try:
        from trident.patch_encoder_models import encoder_factory
    except ImportError as error:
        raise EncoderError(
            f"encoder {entry.id}: TRIDENT cannot be imported ({error}): run this in the environment envs/trident.yaml, "
            "which snakemake does with --software-deployment-method conda (docs/encoders.md)"
        ) from error
    return TridentNetwork(encoder_factory(entry.model, weights_path=str(path)))


FILLED = (filled, _fill, read_weights, timm_network)
# By the registry's `loader`: the function, then what it calls; a change of any of them makes the features again.
LOADERS: dict[str, tuple[Callable, ...]] = {
    "timm": (load_timm, *FILLED),
    "conch": (load_conch, *FILLED, ConchTower, AttentionPooler),
    "keep": (load_keep, *FILLED, KeepTower),
    "trident": (load_trident, TridentNetwork),
}
