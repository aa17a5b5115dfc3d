"""Frozen encoders, built from registry entries: networks with their weights, and what is pooled from them."""

import importlib.util
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from isoslide.registry import Encoder


class EncoderError(Exception):
    """The encoder cannot be loaded; the message is one line with the remedy."""


def weights_path(entry: Encoder, folder: str | Path) -> Path:
    """Return the weights file of an entry.

    Raises:
        EncoderError: saying what to put where.
    """
    if entry.weights.startswith("package:"):
        package, _, inside = entry.weights.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EncoderError(f"encoder {entry.id}: package {package} is not installed: pip install {package}")
        return Path(spec.submodule_search_locations[0], inside)
    path = Path(folder, entry.weights)
    if not path.exists():
        gate = " (gated: ask for access on its page first)" if entry.gated else ""
        raise EncoderError(
            f"encoder {entry.id}: no weights at {path}: put there the file of hub model {entry.hub}{gate}"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a state dict from a safetensors file or a PyTorch one; code in a pickle is never run."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise EncoderError(f"{path} holds more than tensors and is not opened: get the safetensors file") from error


def build_timm(entry: Encoder, path: Path) -> nn.Module:
    """Return the timm model of an entry with the weights of `path`, every key matched."""
    arguments = dict(entry.arguments)
    for name, choices in NAMED_LAYERS.items():
        if name in arguments:
            arguments[name] = choices[arguments[name]]
    network = timm.create_model(entry.model, pretrained=False, num_classes=0, **arguments)
    state = KEY_MAPS[entry.key_map](read_weights(path), network)
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise EncoderError(f"encoder {entry.id}: {path} does not fit {entry.model}: {first}") from error
    return network


def same_names(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the weights as they are."""
    return state


def by_position(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename weights whose order is the network's but whose names are not; a classifier at the end is dropped."""
    names = list(network.state_dict())
    return dict(zip(names, list(state.values())[: len(names)], strict=True))


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every BatchNorm that follows its convolution, in the order of definition, into that convolution.

    Relative change of the features below 1e-4 in float32 (rounding).
    """
    for parent in network.modules():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                conv.requires_grad_(False)
                # timm keeps the activation inside its BatchNorm layer
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
                setattr(parent, conv_name, conv)


def pool_model(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return the network's own pooled output."""
    return network(pixels)


def pool_cls(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return the class token."""
    return network.forward_features(pixels)[:, 0]


def pool_cls_patch_mean(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return the class token beside the mean of the patch tokens, register tokens left out."""
    tokens = network.forward_features(pixels)
    return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(dim=1)], dim=1)


LOADERS: dict[str, Callable[[Encoder, Path], nn.Module]] = {"timm": build_timm}
KEY_MAPS: dict[str, Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]] = {
    "": same_names,
    "by_position": by_position,
}
POOLINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "model": pool_model,
    "cls": pool_cls,
    "cls_patch_mean": pool_cls_patch_mean,
}
NAMED_LAYERS: dict[str, dict[str, Any]] = {
    "mlp_layer": {"SwiGLUPacked": timm.layers.SwiGLUPacked},
    "act_layer": {"SiLU": nn.SiLU},
}
