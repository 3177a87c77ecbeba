"""The tensors of diffusers' `UNet2DConditionModel` and the parameters of our text U-Net."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.interop.leaves import Leaf, Table, params_of, table_of, tensors_of
from ddistill.networks.text_unet import TextUNet
from ddistill.networks.weights import variable_shapes
from ddistill.typing import Params

_TOP = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "guidance": "time_embedding.cond_proj",
    "added_0": "add_embedding.linear_1",
    "added_1": "add_embedding.linear_2",
    "mid_0": "mid_block.resnets.0",
    "mid_1": "mid_block.resnets.1",
    "mid_text": "mid_block.attentions.0",
}
_RESNET = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
# Inside a transformer, by the part and the module in it.
_INNER = {
    **{(f"attn{i}", x): f"attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v")},
    **{(f"attn{i}", "out"): f"attn{i}.to_out.0" for i in (1, 2)},
    ("ff", "in"): "ff.net.0.proj",
    ("ff", "out"): "ff.net.2",
}


# Tracing a full-size network takes seconds.
@functools.lru_cache(maxsize=8)
def leaves(net: TextUNet, latent_channels: int) -> Table:
    """Every parameter of `net`, with its shape; nothing is computed."""
    levels = len(net.widths)
    shapes = parameter_shapes(net, latent_channels)
    return table_of(shapes, lambda path: _leaf(path, levels, net.linear_projection))


def parameter_shapes(net: TextUNet, latent_channels: int) -> Params:
    """The shapes of the parameters of `net`."""
    net = net.clone(conv_impl="xla", attention_impl="chunked")
    side = 2 ** (len(net.widths) - 1)
    latents = jax.ShapeDtypeStruct((1, side, side, latent_channels), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    text = jax.eval_shape(net.example_condition)
    return variable_shapes(net, latents, time, text)["params"]


def _leaf(path: tuple[str, ...], levels: int, linear: bool) -> Leaf:
    """Our parameter at `path` in diffusers' terms."""
    first, *modules, last = path
    prefix = _TOP.get(first) or _numbered(first, levels)
    text = first.endswith("_text")
    inner = _in_transformer(modules) if text else [_RESNET.get(m, m) for m in modules]
    if first.endswith("_resample"):
        inner = ["conv"]
    name = ".".join([prefix, *inner, "bias" if last == "bias" else "weight"])
    if last != "kernel":
        return Leaf(path, (name,), (), "same")
    dense = first.startswith(("time_", "added_", "guidance")) or modules[-1:] == ["time"]
    if text:
        dense = linear or modules[0] not in ("proj_in", "proj_out")
    return Leaf(path, (name,), (), "dense" if dense else "conv")


def _numbered(name: str, levels: int) -> str:
    """down_1_0 is down_blocks.1.resnets.0; up_1_0 of 3 levels is up_blocks.1.resnets.0, from 2."""
    way, level, what, *text = name.split("_")
    index = int(level) if way == "down" else levels - 1 - int(level)
    if what == "resample":
        return f"{way}_blocks.{index}.{way}samplers.0"
    return f"{way}_blocks.{index}.{'attentions' if text else 'resnets'}.{what}"


def _in_transformer(modules: list[str]) -> list[str]:
    if len(modules) == 1:  # norm, proj_in, proj_out
        return modules
    block, *rest = modules
    inner = _INNER.get((rest[0], rest[-1]), rest[0])
    return [f"transformer_blocks.{block.removeprefix('block_')}", inner]


def to_params(
    net: TextUNet, latent_channels: int, tensors: Mapping[str, np.ndarray], where: str
) -> Params:
    """Our parameters from a `UNet2DConditionModel`'s tensors, as float32.

    Args:
      net: the network of `ddistill.interop.text_unet.read_options`.
      latent_channels: channels of its input.
      tensors: by diffusers' name.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`.
    """
    return params_of(leaves(net, latent_channels), tensors, where)


def to_tensors(
    net: TextUNet, latent_channels: int, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """A `UNet2DConditionModel`'s tensors by name, from our parameters; inverts `to_params`."""
    return tensors_of(leaves(net, latent_channels), params)
