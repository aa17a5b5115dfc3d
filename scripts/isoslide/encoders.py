"""Frozen encoders around their networks: pixels as the network sees them, and what is pooled from its output."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from isoslide import keys
from isoslide.key_maps import KEY_MAPS, RULES
from isoslide.networks import LOADERS
from isoslide.registry import Encoder


def code(entry: Encoder) -> str:
    """Return the hash of the code that this entry's features come from; other loaders and poolings do not count."""
    used = (*LOADERS[entry.loader], *KEY_MAPS[entry.key_map], POOLINGS[entry.pooling])
    names = RULES.get(entry.key_map, {})
    return keys.content_key(code=keys.code_hash(fit, fold_batch_norms, *used), names=names)


def fit(pixels: Tensor, entry: Encoder) -> Tensor:
    """Return pixels (n, 3, side, side) as the network sees them: tiles shrunk as PIL does, or their middle cut out.

    PIL shrinks in two passes, across and down, each to whole values; a mean difference of 0.05 in 255 remains at most.
    """
    side = entry.side
    if entry.fit == "crop":
        start = (pixels.shape[-1] - side) // 2
        return pixels[..., start : start + side, start : start + side]
    if pixels.shape[-1] == side:
        return pixels
    for size in ((pixels.shape[-2], side), (side, side)):
        pixels = nn.functional.interpolate(pixels, size=size, mode=entry.interpolation, antialias=True)
        pixels = (pixels + 0.501).floor().clamp(0, 255)  # halves go up, whatever float makes of them
    return pixels


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


POOLINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "model": pool_model,
    "cls": pool_cls,
    "cls_patch_mean": pool_cls_patch_mean,
}
