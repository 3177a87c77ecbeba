"""diffusers' `UNet2DModel` and our U-Net: the same network under two sets of names.

Both are DDPM's (arXiv 2006.11239) with ADM's options (arXiv 2105.05233). Settings are turned into
each other here, tensors in `unet2d_weights`; nothing is read or written.
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
from ddistill.networks.unet import UNet, check_fields
from ddistill.typing import JsonRecord, Options

# Block types by (way, attention, resample); diffusers takes the resampling of a block with
# attention from `downsample_type` and `upsample_type`.
_PLAIN = {
    "DownBlock2D": ("down", "conv"),
    "ResnetDownsampleBlock2D": ("down", "resnet"),
    "UpBlock2D": ("up", "conv"),
    "ResnetUpsampleBlock2D": ("up", "resnet"),
}
_ATTENDING = {"AttnDownBlock2D": "down", "AttnUpBlock2D": "up"}

# Defaults of `UNet2DModel` for keys that config.json lacks.
DEFAULTS: Options = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

# Options that our U-Net has in one form only, and the values that stand for it.
_FIXED: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "downsample_padding": (0, 1),
    "freq_shift": (0, 1),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
}


def read_options(config: Options, where: str) -> tuple[Options, tuple[int, ...]]:
    """Options of our U-Net and the image shape (H, W, C) from a `UNet2DModel`'s config.json.

    `num_classes` counts every row of the class table, see `to_params`.

    Args:
      config: the file's content; keys that begin with "_" are diffusers' own notes, and
        `AVERAGE_NOTES` say how an average was taken.
      where: the file's name, for messages.

    Raises:
      ConfigError: another class of network, an unknown key, or an option that our U-Net does not
        have; the message gives its name, its value and the allowed values.
    """
    c = completed(config, "UNet2DModel", DEFAULTS, where, AVERAGE_NOTES)
    _check_types(c, where)
    check_fixed(c, _FIXED, where)
    shape = _image_shape(c, where)
    attention, resample = _levels(c, where)
    widths = tuple(c["block_out_channels"])
    if any(w % widths[0] for w in widths):
        raise ConfigError(
            f"{where}: block_out_channels={widths}; every width must be a multiple of the first."
        )
    scale_shift = c["resnet_time_scale_shift"] == "scale_shift"
    groups = c["norm_num_groups"]
    options = {
        "channels": widths[0],
        "multipliers": tuple(w // widths[0] for w in widths),
        "blocks": c["layers_per_block"],
        "attention": tuple(shape[0] >> i for i, attends in enumerate(attention) if attends),
        "mid_attention": bool(c["add_attention"]),
        "mid_norm": c["attn_norm_num_groups"] is not None or not scale_shift,
        "head_dim": c["attention_head_dim"] or 0,
        "out_channels": c["out_channels"],
        "resample": {"conv": "conv", "resnet": "resblock"}[resample],
        "symmetric": c["downsample_padding"] == 1 and resample == "conv",
        "time_conditioning": "scale_shift" if scale_shift else "additive",
        "cosines_first": bool(c["flip_sin_to_cos"]),
        "includes_last": c["freq_shift"] == 1,
        "num_classes": c["num_class_embeds"] or 0,
        "dropout": float(c["dropout"]),
        "norm_groups": groups,
        "norm_eps": float(c["norm_eps"]),
    }
    for key, ours, wanted in (
        ("attn_norm_num_groups", c["attn_norm_num_groups"], (None, groups)),
        ("time_embedding_dim", c["time_embedding_dim"], (None, 4 * widths[0])),
    ):
        if ours not in wanted:
            raise ConfigError(f"{where}: {key}={ours!r} is not supported. Allowed: {wanted}.")
    return options, shape


def _check_types(c: Options, where: str) -> None:
    """Raises `ConfigError` for a value of another type than its key has."""
    whole = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
    maybe = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds", "time_embedding_dim")
    names, widths, size = (
        ("down_block_types", "up_block_types"),
        "block_out_channels",
        "sample_size",
    )

    wanted = [
        *((key, c[key], is_whole(c[key]), "an integer above 0") for key in whole),
        *(
            (key, c[key], c[key] is None or is_whole(c[key]), "an integer above 0, or null")
            for key in maybe
        ),
        *((key, c[key], are_texts(c[key]), "a list of block types") for key in names),
        (widths, c[widths], are_whole(c[widths]), "a list of integers above 0"),
        (
            size,
            c[size],
            c[size] is None or is_whole(c[size]) or are_whole(c[size], (2,)),
            "an integer above 0, or [height, width]",
        ),
        *(
            (key, c[key], is_number(c[key]) and low <= c[key] < 1, f"a number in {text}")
            for key, low, text in (("dropout", 0, "[0, 1)"), ("norm_eps", 1e-30, "(0, 1)"))
        ),
        *(
            (key, c[key], isinstance(c[key], bool), "true or false")
            for key in ("add_attention", "flip_sin_to_cos")
        ),
    ]
    check_all(wanted, where)


def _image_shape(c: Options, where: str) -> tuple[int, int, int]:
    size = c["sample_size"]
    if size is None:
        raise ConfigError(
            f"{where}: sample_size is missing; write the height of the training images there."
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if c["in_channels"] != c["out_channels"]:
        raise ConfigError(
            f"{where}: in_channels={c['in_channels']}, out_channels={c['out_channels']}. They must "
            "be equal: a network that also predicts a variance, or that is given a second image, "
            "is not supported."
        )
    return height, width, c["in_channels"]


def _levels(c: Options, where: str) -> tuple[list[bool], str]:
    """Whether each level attends, outermost first, and how all of them resample."""
    down, up = c["down_block_types"], tuple(reversed(c["up_block_types"]))
    if not len(down) == len(up) == len(c["block_out_channels"]):
        raise ConfigError(
            f"{where}: {len(down)} down_block_types, {len(up)} up_block_types and "
            f"{len(c['block_out_channels'])} block_out_channels; as many of each are needed."
        )
    attention: list[bool] = []
    kinds: dict[str, str] = {}
    for i, (first, second) in enumerate(zip(down, up)):
        found = [_block(name, c, where) for name in (first, second)]
        ways = [way for way, _, _ in found]
        if ways != ["down", "up"] or found[0][1] != found[1][1]:
            raise ConfigError(
                f"{where}: level {i} is {first} on the way down and {second} on the way up; "
                "attention has to be in both or in neither."
            )
        attention.append(found[0][1])
        # The innermost level is not halved, the outermost not doubled.
        kinds |= {first: found[0][2]} if i < len(down) - 1 else {}
        kinds |= {second: found[1][2]} if i > 0 else {}
    if len(set(kinds.values())) > 1:
        raise ConfigError(
            f"{where}: {kinds} resample in different ways; all levels have to do it alike."
        )
    return attention, next(iter(kinds.values()), "conv")


def _block(name: str, c: Options, where: str) -> tuple[str, bool, str]:
    """(way, whether it attends, how it resamples) of a block type."""
    name = name.removeprefix("UNetRes")
    if name in _PLAIN:
        way, kind = _PLAIN[name]
        return way, False, kind
    if name in _ATTENDING:
        way = _ATTENDING[name]
        return way, True, c[f"{way}sample_type"]
    allowed = sorted([*_PLAIN, *_ATTENDING])
    raise ConfigError(
        f"{where}: block type {name!r} is not supported.{nearest(name, allowed)} Allowed: "
        f"{', '.join(allowed)}."
    )


def write_options(net: UNet, image_shape: tuple[int, ...]) -> JsonRecord:
    """config.json of the `UNet2DModel` that is `net`, for images of that shape (H, W, C).

    Raises:
      ConfigError: an option that diffusers does not have.
    """
    check_fields(net)
    height, width, channels = image_shape
    attends = [height >> i in net.attention for i in range(len(net.multipliers))]
    resnet = net.resample == "resblock"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    names = plain if resnet else ("DownBlock2D", "UpBlock2D")
    scale_shift = net.time_conditioning == "scale_shift"
    if not net.mid_norm and not scale_shift:
        raise ConfigError(
            "network.mid_norm=False with additive time conditioning is not an option of "
            "UNet2DModel; it leaves the norm out with scale_shift only."
        )
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": net.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 1 if net.includes_last else 0,
        "flip_sin_to_cos": net.cosines_first,
        "down_block_types": ["AttnDownBlock2D" if a else names[0] for a in attends],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if a else names[1] for a in reversed(attends)],
        "block_out_channels": [net.channels * m for m in net.multipliers],
        "layers_per_block": net.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1 if net.symmetric or resnet else 0,
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": net.dropout,
        "act_fn": "silu",
        "attention_head_dim": net.head_dim or None,
        "norm_num_groups": net.norm_groups,
        "attn_norm_num_groups": net.norm_groups if net.mid_norm and scale_shift else None,
        "norm_eps": net.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "add_attention": net.mid_attention,
        "num_class_embeds": net.num_classes + 1 if net.num_classes else None,
    }
