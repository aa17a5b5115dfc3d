"""From the names that weights are published under to the names of timm's networks: why no other library is needed."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def same_names(state: State, network: nn.Module) -> State:
    """Return the weights as they are."""
    return state


def by_position(state: Mapping[str, Tensor], network: nn.Module) -> State:
    """Rename weights whose order is the network's but whose names are not; a classifier at the end is dropped."""
    names = list(network.state_dict())
    return dict(zip(names, list(state.values())[: len(names)], strict=True))


def without_head(state: State, network: nn.Module) -> State:
    """Drop the classifier that the network was published with."""
    named = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    return {name: value for name, value in state.items() if not name.startswith(heads)}


def hf_vit(state: State, network: nn.Module) -> State:
    """Rename the weights of transformers' ViTModel."""
    return join_qkv(rename(state, RULES["hf_vit"]))


def hf_dinov2(state: State, network: nn.Module) -> State:
    """Rename the weights of transformers' Dinov2Model and Dinov2WithRegistersModel.

    With registers, timm adds no position to the class token: it is added here once and for all.
    """
    renamed = join_qkv(rename(state, RULES["hf_dinov2"]))
    if "reg_token" in renamed:
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


def conch(state: State, network: nn.Module) -> State:
    """Bring the position embedding of CONCH v1.5 to the size of the input, once, by the formula that it was used with.

    That is: bicubic without antialiasing, at a scale from a side that is 0.1 patches too large. Other resampling
    changes features by 0.9e-3 of 22e-3.
    """
    position = state["trunk.pos_embed"]
    side = network.trunk.patch_embed.grid_size[0]
    before = round((position.shape[1] - 1) ** 0.5)
    if before == side:
        return state
    grid = position[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / before
    grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    patches = grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    return state | {"trunk.pos_embed": torch.cat([position[:, :1], patches], dim=1)}


def keep(state: State, network: nn.Module) -> State:
    """Drop the text tower of KEEP; its layer scales are published under another name."""
    image = {name: value for name, value in state.items() if name.startswith(("visual.", "visual_head."))}
    return {re.sub(r"\.ls([12])\.weight$", r".ls\1.gamma", name): value for name, value in image.items()}


def rename(state: State, rules: Mapping[str, str]) -> State:
    """Return the weights under the names that the first fitting rule gives; an empty name drops them.

    Args:
        state: weights by name.
        rules: replacement by regular expression, which has to fit the whole name.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules.items():
            if match := re.fullmatch(pattern, name):
                if replacement:
                    renamed[match.expand(replacement)] = value
                break
        else:
            renamed[name] = value
    return renamed


def join_qkv(state: State) -> State:
    """Put query, key and value of each block into one matrix, as timm has them."""
    joined = {}
    for name, value in state.items():
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            joined[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            joined[name] = value
    return joined


BLOCK = r"(?:\w+\.)?encoder\.layer\.(\d+)\."  # some files put the name of the model before it
COMMON = {
    r"(?:\w+\.)?embeddings\.cls_token": "cls_token",
    r"(?:\w+\.)?embeddings\.position_embeddings": "pos_embed",
    r"(?:\w+\.)?embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    BLOCK + r"attention\.attention\.([qkv])\w+\.(\w+)": r"blocks.\1.attn.\2.\3",
    BLOCK + r"attention\.output\.dense\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"(?:\w+\.)?layernorm\.(\w+)": r"norm.\1",
}
RULES = {
    "hf_vit": COMMON
    | {
        BLOCK + r"layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
        BLOCK + r"layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
        BLOCK + r"intermediate\.dense\.(\w+)": r"blocks.\1.mlp.fc1.\2",
        BLOCK + r"output\.dense\.(\w+)": r"blocks.\1.mlp.fc2.\2",
        r"(?:\w+\.)?pooler\..*": "",
    },
    "hf_dinov2": COMMON
    | {
        r"(?:\w+\.)?embeddings\.mask_token": "",
        r"(?:\w+\.)?embeddings\.register_tokens": "reg_token",
        BLOCK + r"norm([12])\.(\w+)": r"blocks.\1.norm\2.\3",
        BLOCK + r"layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
        BLOCK + r"mlp\.(?:fc1|weights_in)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
        BLOCK + r"mlp\.(?:fc2|weights_out)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    },
}

# By the registry's `key_map`: the function, then what it calls; a change of any of them makes the features again.
KEY_MAPS: dict[str, tuple[Callable, ...]] = {
    "": (same_names,),
    "by_position": (by_position,),
    "without_head": (without_head,),
    "hf_vit": (hf_vit, rename, join_qkv),
    "hf_dinov2": (hf_dinov2, rename, join_qkv),
    "conch": (conch,),
    "keep": (keep,),
}
