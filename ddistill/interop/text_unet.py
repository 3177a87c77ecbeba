"""diffusers' `UNet2DConditionModel` and our text U-Net: settings under two sets of names.

Stable Diffusion 1.4, 1.5, 2.1 and XL, and the block-removed networks of BK-SDM. Tensors are in
`text_unet_weights`; nothing is read or written.
"""

from ddistill.errors import ConfigError, nearest
from ddistill.interop.config_values import (
    AVERAGE_NOTES,
    are_texts,
    are_whole,
    check_all,
    check_fixed,
    completed,
    is_number,
    is_whole,
)
from ddistill.networks.text_unet import TextUNet, check_text_unet
from ddistill.typing import JsonRecord, Options

KIND = "UNet2DConditionModel"
_MIDDLE = "UNetMidBlock2DCrossAttn"
# (on the way down, on the way up) of levels without and with a transformer.
_PLAIN = ("DownBlock2D", "UpBlock2D")
_TEXT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")

# Defaults of `UNet2DConditionModel` for keys that config.json lacks.
DEFAULTS: Options = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (*(_TEXT[:1] * 3), _PLAIN[0]),
    "mid_block_type": _MIDDLE,
    "up_block_types": (_PLAIN[1], *(_TEXT[1:] * 3)),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}

# Options that our network has in one form only, and the values that stand for it.
_FIXED: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": (_MIDDLE, None),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False, None),
    "resnet_out_scale_factor": (1.0, None),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}


def read_options(config: Options, where: str) -> tuple[Options, tuple[int, int, int]]:
    """Options of our network and the shape of latents (H, W, C) from a config.json.

    `attention_head_dim` of a `UNet2DConditionModel` is the number of heads.

    Args:
      config: the file's content.
      where: the file's name, for messages.

    Raises:
      ConfigError: another class of network, an unknown key, or an option that our network does not
        have; the message gives its name, its value and the allowed values.
    """
    c = completed(config, KIND, DEFAULTS, where, AVERAGE_NOTES)
    check_fixed(c, _FIXED, where)
    _check_types(c, where)
    _check_dependent(c, where)
    size = c["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    added = c["addition_embed_type"] == "text_time"
    context = c["cross_attention_dim"]
    options = {
        "widths": tuple(c["block_out_channels"]),
        "blocks": _tuple(c["layers_per_block"]),
        "attends": _attends(c, where),
        "depth": _tuple(c["transformer_layers_per_block"]),
        "heads": _tuple(c["attention_head_dim"]),
        "context_dim": context if isinstance(context, int) else context[0],
        "middle": c["mid_block_type"] is not None,
        "linear_projection": c["use_linear_projection"],
        "upcast_attention": c["upcast_attention"],
        "guidance_dim": c["time_cond_proj_dim"] or 0,
        "added_dim": c["projection_class_embeddings_input_dim"] if added else 0,
        "out_channels": c["out_channels"],
        "dropout": float(c["dropout"]),
        "norm_groups": c["norm_num_groups"],
        "norm_eps": float(c["norm_eps"]),
    }
    try:
        check_text_unet(TextUNet(**options))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return options, (height, width, c["in_channels"])


def _tuple(x: int | list[int]) -> tuple[int, ...]:
    return (x,) if isinstance(x, int) else tuple(x)


def _check_types(c: Options, where: str) -> None:
    """Raises `ConfigError` for a value of another type than its key has."""
    levels = len(c["block_out_channels"]) if are_whole(c["block_out_channels"]) else 0
    size, context = c["sample_size"], c["cross_attention_dim"]
    per_level = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim")
    maybe = ("time_cond_proj_dim", "time_embedding_dim", "projection_class_embeddings_input_dim")
    check_all(
        [
            (
                "block_out_channels",
                c["block_out_channels"],
                levels > 0,
                "a list of integers above 0",
            ),
            *(
                (key, c[key], are_texts(c[key]), "a list of block types")
                for key in ("down_block_types", "up_block_types")
            ),
            *(
                (
                    key,
                    c[key],
                    is_whole(c[key]) or are_whole(c[key], (levels,)),
                    f"an integer above 0, or {levels} of them",
                )
                for key in per_level
            ),
            (
                "cross_attention_dim",
                context,
                is_whole(context) or (are_whole(context) and len(set(context)) == 1),
                "an integer above 0, the same for all levels",
            ),
            *(
                (key, c[key], is_whole(c[key]), "an integer above 0")
                for key in ("in_channels", "out_channels", "norm_num_groups")
            ),
            *(
                (key, c[key], c[key] is None or is_whole(c[key]), "an integer above 0, or null")
                for key in maybe
            ),
            (
                "sample_size",
                size,
                is_whole(size) or are_whole(size, (2,)),
                "the height of the latents, an integer above 0, or [height, width]",
            ),
            ("dropout", c["dropout"], is_number(c["dropout"]), "a number in [0, 1)"),
            ("norm_eps", c["norm_eps"], is_number(c["norm_eps"]), "a number in (0, 1)"),
            *(
                (key, c[key], isinstance(c[key], bool), "true or false")
                for key in ("use_linear_projection", "upcast_attention")
            ),
        ],
        where,
    )


def _check_dependent(c: Options, where: str) -> None:
    """Raises `ConfigError` for values that do not fit one another."""
    if c["in_channels"] != c["out_channels"]:
        raise ConfigError(
            f"{where}: in_channels={c['in_channels']}, out_channels={c['out_channels']}. They must "
            "be equal: networks that are given a second picture (inpainting, editing) are not "
            "supported."
        )
    widths = c["block_out_channels"]
    if c["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise ConfigError(
            f"{where}: time_embedding_dim={c['time_embedding_dim']} is not supported. Allowed: "
            f"{4 * widths[0]}, or null."
        )
    if c["addition_embed_type"] and not c["projection_class_embeddings_input_dim"]:
        raise ConfigError(
            f"{where}: addition_embed_type={c['addition_embed_type']!r} needs "
            "projection_class_embeddings_input_dim."
        )


def _attends(c: Options, where: str) -> tuple[int, ...]:
    """The levels with transformers, outermost first."""
    down, up = c["down_block_types"], tuple(reversed(c["up_block_types"]))
    if not len(down) == len(up) == len(c["block_out_channels"]):
        raise ConfigError(
            f"{where}: {len(down)} down_block_types, {len(up)} up_block_types and "
            f"{len(c['block_out_channels'])} block_out_channels; as many of each are needed."
        )
    allowed = sorted((*_PLAIN, *_TEXT))
    for name in (*down, *up):
        if name not in allowed:
            raise ConfigError(
                f"{where}: block type {name!r} is not supported.{nearest(name, allowed)} Allowed: "
                f"{', '.join(allowed)}."
            )
    for i, pair in enumerate(zip(down, up)):
        if pair not in (_PLAIN, _TEXT):
            raise ConfigError(
                f"{where}: level {i} is {pair[0]} on the way down and {pair[1]} on the way up; "
                "attention has to be in both or in neither."
            )
    return tuple(i for i, name in enumerate(down) if name == _TEXT[0])


def write_options(net: TextUNet, latent_shape: tuple[int, ...]) -> JsonRecord:
    """config.json of the `UNet2DConditionModel` that is `net`, for latents of a shape (H, W, C).

    Raises:
      ConfigError: fields that do not fit together.
    """
    check_text_unet(net)
    height, width, channels = latent_shape
    levels = range(len(net.widths))
    kinds = [_TEXT if i in net.attends else _PLAIN for i in levels]

    def each(values: tuple[int, ...]) -> int | list[int]:
        return values[0] if len(values) == 1 else list(values)

    return {
        "_class_name": KIND,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": net.out_channels,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [down for down, _ in kinds],
        "mid_block_type": _MIDDLE if net.middle else None,
        "up_block_types": [up for _, up in reversed(kinds)],
        "block_out_channels": list(net.widths),
        "layers_per_block": each(net.blocks),
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "dropout": net.dropout,
        "act_fn": "silu",
        "norm_num_groups": net.norm_groups,
        "norm_eps": net.norm_eps,
        "cross_attention_dim": net.context_dim,
        "transformer_layers_per_block": each(net.depth),
        "attention_head_dim": each(net.heads),
        "use_linear_projection": net.linear_projection,
        "upcast_attention": net.upcast_attention,
        "time_cond_proj_dim": net.guidance_dim or None,
        **(_added(net) if net.added_dim else {}),
    }


# Width of the sinusoids of each of SDXL's six numbers.
_SIZE_DIM = 256


def _added(net: TextUNet) -> JsonRecord:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_DIM,
        "projection_class_embeddings_input_dim": net.added_dim,
    }
