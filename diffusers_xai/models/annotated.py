"""*The Annotated Diffusion Model*, whose network the thesis trains: its names of layers, and what its weights tell."""

import functools
import re
from collections.abc import Sequence

import torch


# Own module path -> path in the article's network. Applied in this order, each wherever it matches.
_ANNOTATED_NAMES = (
    (r"^conv_in$", "init_conv"),
    (r"^time_proj$", "time_mlp.0"),
    (r"^time_embedding\.linear_1$", "time_mlp.1"),
    (r"^time_embedding\.act$", "time_mlp.2"),
    (r"^time_embedding\.linear_2$", "time_mlp.3"),
    (r"^time_embedding$", "time_mlp"),
    (r"^resnet_out", "final_conv.0"),
    (r"^conv_out$", "final_conv.1"),
    (r"^mid_block\.resnets\.0", "mid_block1"),
    (r"^mid_block\.attentions\.0", "mid_attn"),
    (r"^mid_block\.resnets\.1", "mid_block2"),
    (r"^down_blocks\.", "downs."),
    (r"^up_blocks\.", "ups."),
    (r"\.resnets\.(\d+)", r".\1"),
    (r"\.attentions\.0", ".2"),
    (r"\.(down|up)samplers\.0$", ".3"),
    (r"\.attn\.group_norm$", ".fn.norm"),
    (r"\.attn\.to_", ".fn.fn.to_"),
    (r"\.attn$", ".fn"),
    (r"\.time_emb_proj$", ".mlp.1"),
    (r"\.depthwise_conv$", ".ds_conv"),
    (r"\.conv_shortcut$", ".res_conv"),
)


@functools.lru_cache(maxsize=16)  # every recording asks for it, and it takes as long as a step of a small network
def annotated_names(paths: tuple[str, ...]) -> dict[str, str]:
    """Article-style name -> module path, of the modules that have one."""
    aliases = {}
    for path in paths:
        name = path
        for pattern, replacement in _ANNOTATED_NAMES:
            name = re.sub(pattern, replacement, name)
        if name != path:
            aliases[name] = path
    for name, path in list(aliases.items()):
        if name.endswith(".fn"):
            aliases[name + ".fn"] = path
        elif name.endswith(".mlp.1"):
            aliases[name.removesuffix(".1")] = path
    aliases["final_conv"] = "conv_out"
    return aliases


def infer_annotated_config(state_dict: dict[str, torch.Tensor]) -> dict:
    """The configuration of a `ConvNextUNet2DModel` with the widths, labels and attention of an article's weights.

    Raises:
        ValueError: If they are not such a network's.
    """

    def shape(name: str) -> Sequence[int]:
        if name not in state_dict:
            raise ValueError(
                f"Expected the `state_dict` of an article-style network, with {name!r}, got {sorted(state_dict)[:5]} …"
            )
        return state_dict[name].shape

    levels = len({key.split(".")[1] for key in state_dict if key.startswith("downs.")})
    out_channels = shape("final_conv.1.weight")[0]
    first_width, conv_in = shape("init_conv.weight")[:2]
    label_channels = conv_in - out_channels
    num_heads = 4
    num_classes = {0: None, 1: 16}.get(label_channels, 2**label_channels)
    config = {
        "in_channels": out_channels,
        "out_channels": out_channels,
        "block_out_channels": tuple(shape(f"downs.{i}.0.net.4.weight")[0] for i in range(levels)),
        "conv_in_channels": first_width,
        "time_embedding_dim": shape("time_mlp.1.weight")[0],
        "time_proj_dim": shape("time_mlp.1.weight")[1],
        "num_attention_heads": num_heads,
        "attention_head_dim": shape("mid_attn.fn.fn.to_qkv.weight")[0] // (3 * num_heads),
        "mid_attention_type": "softmax" if "mid_attn.fn.fn.to_out.weight" in state_dict else "linear",
        "num_class_embeds": num_classes,
        "class_encoding": "bits" if label_channels > 1 else "integer",
    }
    if num_classes != 16:
        config["class_attributes"] = None
    return config
