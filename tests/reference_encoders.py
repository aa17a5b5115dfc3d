"""The networks of the registry built another way: by transformers, torchvision, or timm called by hand.

Each with random weights, saved under the names and in the format that the hub has, for the production loader to read.
"""

import math
from collections.abc import Callable
from pathlib import Path

import timm
import timm.layers
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from isoslide.registry import Encoder

LAYERS = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "SiLU": nn.SiLU}
Features = Callable[[Tensor], Tensor]


def randomise(network: nn.Module) -> nn.Module:
    """Give every weight a random value that matters: fresh ones are zero, one or tiny where a mix-up would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.named_parameters():
            spread = 0.02 if value.ndim > 1 or name.endswith("bias") else 0.2
            value.normal_(0, spread, generator=generator)
            if value.ndim == 1 and not name.endswith("bias"):
                value.add_(1)
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
    return network.eval().requires_grad_(False)


def write(state: dict[str, Tensor], path: Path) -> None:
    """Save weights as the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def pooled(entry: Encoder, tokens: Tensor, registers: int) -> Tensor:
    """Pool the tokens of a vision transformer, by hand."""
    if entry.pooling == "cls_patch_mean":
        return torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], dim=1)
    return tokens[:, 0]


def by_timm(entry: Encoder, path: Path, small: dict) -> Features:
    """The network as its card builds it."""
    arguments = {k: LAYERS.get(v, v) if isinstance(v, str) else v for k, v in (entry.arguments | small).items()}
    network = randomise(timm.create_model(entry.model, num_classes=0, **arguments))
    write(network.state_dict(), path)
    registers = entry.arguments.get("reg_tokens", 4 if "reg4" in entry.model else 0)
    return lambda pixels: pooled(entry, network.forward_features(pixels), registers)


def by_transformers(entry: Encoder, path: Path, small: dict) -> Features:
    """The network as transformers builds it, saved by transformers."""
    import transformers

    shapes = {"vit_base": (768, 12, 12), "vit_large": (1024, 24, 16), "vit_giant": (1536, 40, 24)}
    width, depth, heads = shapes["_".join(entry.model.split("_")[:2])]
    if small:
        width, depth, heads = small["embed_dim"], small["depth"], small["num_heads"]
    patch = 14 if "patch14" in entry.model else 16
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    shape |= {"image_size": 224, "patch_size": patch, "qkv_bias": True}
    if entry.key_map == "hf_vit":
        config = transformers.ViTConfig(**shape, intermediate_size=4 * width)
        network = transformers.ViTModel(config, add_pooling_layer=True)
    elif "reg4" in entry.model:
        network = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=4)
        )
    else:
        config = transformers.Dinov2Config(**shape, use_swiglu_ffn="giant" in entry.model)
        network = transformers.Dinov2Model(config)
    randomise(network)
    network.save_pretrained(path.parent)
    return lambda pixels: pooled(entry, network(pixels).last_hidden_state, 4 if "reg4" in entry.model else 0)


def conch(entry: Encoder, path: Path, small: dict) -> Features:
    """CONCH v1.5: a transformer for 224 px whose position embedding is resampled as it runs; attention written out."""
    trunk = timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1.0, dynamic_img_size=True, **small)
    width = trunk.num_features
    parts = {"trunk": trunk, "ln_contrast": nn.LayerNorm(768)}
    parts |= {"ln_k": nn.LayerNorm(width), "ln_q": nn.LayerNorm(768), "query": nn.Embedding(1, 768)}
    parts |= {"to_q": nn.Linear(768, 768, False), "to_kv": nn.Linear(width, 1536, False)}
    parts |= {"to_out": nn.Linear(768, 768, False)}
    modules = randomise(nn.ModuleDict(parts))
    state = {}
    for name, value in modules.state_dict().items():
        first = name.split(".")[0]
        name = name if first in ("trunk", "ln_contrast") else f"attn_pool_contrast.{name}"
        state[name.replace("query.weight", "query")] = value
    write(state, path)

    def features(pixels: Tensor) -> Tensor:
        tokens = trunk.patch_embed(pixels).flatten(1, 2)
        position = trunk.pos_embed
        square = position[:, 1:].reshape(1, 14, 14, width).permute(0, 3, 1, 2)
        square = nn.functional.interpolate(square, scale_factor=28.1 / 14, mode="bicubic")
        position = torch.cat([position[:, :1], square.flatten(2).transpose(1, 2)], dim=1)
        tokens = torch.cat([trunk.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + position
        tokens = trunk.norm(trunk.blocks(tokens))
        key, value = modules["to_kv"](modules["ln_k"](tokens)).chunk(2, dim=-1)
        query = modules["to_q"](modules["ln_q"](modules["query"].weight))
        heads = []
        for part in range(8):
            of = slice(96 * part, 96 * (part + 1))
            weight = (query[:, of] @ key[..., of].transpose(1, 2) / math.sqrt(96)).softmax(dim=-1)
            heads.append(weight @ value[..., of])
        return modules["ln_contrast"](modules["to_out"](torch.cat(heads, dim=-1)[:, 0]))

    return features


def keep(entry: Encoder, path: Path, small: dict) -> Features:
    """KEEP: saved by transformers with a text tower, and with its layer scales as `weight`."""
    visual = timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1e-5, dynamic_img_size=True, **small)
    head = nn.Sequential(nn.Linear(visual.num_features, 768), nn.GELU(), nn.Linear(768, 768))
    randomise(nn.ModuleList([visual, head]))
    state = {f"visual.{name.replace('gamma', 'weight')}": value for name, value in visual.state_dict().items()}
    state |= {f"visual_head.{name}": value for name, value in head.state_dict().items()}
    write(state | {"text.embeddings.LayerNorm.weight": torch.ones(4), "logit_scale": torch.ones(())}, path)

    def features(pixels: Tensor) -> Tensor:
        projected = head(visual(pixels))
        return projected / projected.norm(dim=1, keepdim=True)

    return features


def by_torchvision(entry: Encoder, path: Path, small: dict) -> Features:
    """ResNet50 with its classifier, whose names timm has taken over."""
    network = randomise(torchvision.models.resnet50())
    write(network.state_dict(), path)
    network.fc = nn.Identity()
    return network


def reference(entry: Encoder, path: Path, small: dict) -> Features:
    """Save random weights of an entry at `path` and return what gives its features for normalised pixels.

    Args:
        entry: of the registry.
        path: of the weights file.
        small: arguments of timm that make the network small; empty for full size.
    """
    makers = {"conch": conch, "keep": keep, "resnet50": by_torchvision}
    maker = by_transformers if entry.key_map.startswith("hf_") else by_timm
    return makers.get(entry.loader, makers.get(entry.model, maker))(entry, path, small)
