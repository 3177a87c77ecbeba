"""diffusers' `AutoencoderKL` and ours: settings and tensors under two sets of names."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.config_values import (
    are_texts,
    are_whole,
    check_all,
    check_fixed,
    completed,
    is_number,
    is_whole,
)
from ddistill.interop.leaves import Leaf, Table, params_of, table_of, tensors_of
from ddistill.networks.autoencoder_kl import AutoencoderKL, check_autoencoder
from ddistill.networks.weights import variable_shapes
from ddistill.typing import JsonRecord, Options, Params

KIND = "AutoencoderKL"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

# Defaults of diffusers' `AutoencoderKL` for keys that config.json lacks.
DEFAULTS: Options = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": (_DOWN,),
    "up_block_types": (_UP,),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    # Of float16, which is not computed in here.
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclass(frozen=True)
class Scaling:
    """How latents become the input of a diffusion model: (z - shift) * factor.

    Attributes:
      factor, shift: the two numbers.
    """

    factor: float
    shift: float = 0.0


def read_options(config: Options, where: str) -> tuple[dict[str, Any], Scaling]:
    """Options of our autoencoder, and the scaling of its latents, from a config.json.

    Args:
      config: the file's content.
      where: the file's name, for messages.

    Raises:
      ConfigError: another class of network, an unknown key, or an option that our network does not
        have.
    """
    c = completed(config, KIND, DEFAULTS, where)
    check_fixed(c, _FIXED, where)
    _check_types(c, where)
    widths = tuple(c["block_out_channels"])
    for key, kind in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if tuple(c[key]) != (kind,) * len(widths):
            raise ConfigError(
                f"{where}: {key}={list(c[key])} is not supported. Allowed: {len(widths)} of "
                f"{kind}, one for each of block_out_channels."
            )
    for one, other in (("use_quant_conv", "use_post_quant_conv"), ("in_channels", "out_channels")):
        if c[one] != c[other]:
            raise ConfigError(f"{where}: {one}={c[one]} and {other}={c[other]} must be equal.")
    options = {
        "widths": widths,
        "blocks": c["layers_per_block"],
        "latent_channels": c["latent_channels"],
        "out_channels": c["out_channels"],
        "norm_groups": c["norm_num_groups"],
        "mid_attention": c["mid_block_add_attention"],
        "quant_conv": c["use_quant_conv"],
    }
    return options, Scaling(float(c["scaling_factor"]), float(c["shift_factor"] or 0.0))


def _check_types(c: Options, where: str) -> None:
    whole = (
        "in_channels",
        "out_channels",
        "layers_per_block",
        "latent_channels",
        "norm_num_groups",
    )
    flags = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    factor, shift, widths = c["scaling_factor"], c["shift_factor"], c["block_out_channels"]
    check_all(
        [
            *((key, c[key], is_whole(c[key]), "an integer above 0") for key in whole),
            *((key, c[key], isinstance(c[key], bool), "true or false") for key in flags),
            *(
                (key, c[key], are_texts(c[key]), "a list of block types")
                for key in ("down_block_types", "up_block_types")
            ),
            ("block_out_channels", widths, are_whole(widths), "a list of integers above 0"),
            ("scaling_factor", factor, is_number(factor) and factor > 0, "a number above 0"),
            ("shift_factor", shift, shift is None or is_number(shift), "a number, or null"),
        ],
        where,
    )


def write_options(net: AutoencoderKL, scaling: Scaling, side: int) -> JsonRecord:
    """config.json of the `AutoencoderKL` of diffusers that is `net`.

    Args:
      net: our autoencoder.
      scaling: of its latents.
      side: height of the pictures.
    """
    check_autoencoder(net)
    levels = len(net.widths)
    return {
        "_class_name": KIND,
        "in_channels": net.out_channels,
        "out_channels": net.out_channels,
        "down_block_types": [_DOWN] * levels,
        "up_block_types": [_UP] * levels,
        "block_out_channels": list(net.widths),
        "layers_per_block": net.blocks,
        "act_fn": "silu",
        "latent_channels": net.latent_channels,
        "norm_num_groups": net.norm_groups,
        "sample_size": side,
        "scaling_factor": scaling.factor,
        "shift_factor": scaling.shift or None,
        "force_upcast": True,
        "use_quant_conv": net.quant_conv,
        "use_post_quant_conv": net.quant_conv,
        "mid_block_add_attention": net.mid_attention,
    }


@functools.lru_cache(maxsize=8)
def leaves(net: AutoencoderKL) -> Table:
    """Every parameter of `net`, with its shape; nothing is computed."""
    net = net.clone(conv_impl="xla", attention_impl="chunked")
    side, levels = net.factor, len(net.widths)
    image = jax.ShapeDtypeStruct((1, side, side, net.out_channels), jnp.float32)
    return table_of(variable_shapes(net, image)["params"], lambda path: _leaf(path, levels))


_INNER = {"shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
_MIDDLE = {
    "mid_0": "mid_block.resnets.0",
    "mid_1": "mid_block.resnets.1",
    "mid_attention": "mid_block.attentions.0",
}
# In the attention: names since diffusers 0.16, and before.
_ATTENTION = {
    "norm": ("group_norm", "group_norm"),
    "q": ("to_q", "query"),
    "k": ("to_k", "key"),
    "v": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}


def _leaf(path: tuple[str, ...], levels: int) -> Leaf:
    """Our parameter at `path` in diffusers' terms."""
    half, *modules, last = path
    ending = "bias" if last == "bias" else "weight"
    if half in ("quant", "post_quant"):
        return Leaf(path, (f"{half}_conv.{ending}",), (), "conv" if last == "kernel" else "same")
    if modules[0] == "mid_attention":
        prefix = f"{half}.{_MIDDLE['mid_attention']}"
        new, old = (f"{prefix}.{name}.{ending}" for name in _ATTENTION[modules[1]])
        kind = "linear" if last == "kernel" else "same"
        return Leaf(path, (new,), (old,) if old != new else (), kind)
    first, *rest = modules
    prefix = _MIDDLE.get(first) or _INNER.get(first) or _numbered(first, levels)
    name = ".".join([half, prefix, *(_INNER.get(m, m) for m in rest), ending])
    return Leaf(path, (name,), (), "conv" if last == "kernel" else "same")


def _numbered(name: str, levels: int) -> str:
    if name in ("conv_in", "conv_out"):
        return name
    way, level, what = name.split("_")
    index = int(level) if way == "down" else levels - 1 - int(level)
    inner = f"{way}samplers.0.conv" if what == "resample" else f"resnets.{what}"
    return f"{way}_blocks.{index}.{inner}"


def to_params(net: AutoencoderKL, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Our parameters from the tensors of diffusers' `AutoencoderKL`, as float32.

    Args:
      net: the network of `read_options`.
      tensors: by diffusers' name; of the attention also by the names before diffusers 0.16.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`.
    """
    return params_of(leaves(net), tensors, where)


def to_tensors(net: AutoencoderKL, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of diffusers' `AutoencoderKL` by name; inverts `to_params`."""
    return tensors_of(leaves(net), params)
