"""The tensors of diffusers' `UNet2DModel` and the parameters of our U-Net."""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.interop.leaves import Leaf, Table, params_of, table_of, tensors_of
from ddistill.networks.unet import UNet
from ddistill.networks.weights import variable_shapes
from ddistill.typing import Params


def leaves(net: UNet, image_shape: tuple[int, ...]) -> Table:
    """Every parameter of `net`, with its shape; no device is asked for, which "auto" would."""
    net = net.clone(conv_impl="xla")
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    levels = len(net.multipliers)
    return table_of(variable_shapes(net, image, time)["params"], lambda path: _leaf(path, levels))


_TOP = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "time_0": "time_embedding.linear_1",
    "time_1": "time_embedding.linear_2",
    "class": "class_embedding",
    "mid_0": "mid_block.resnets.0",
    "mid_1": "mid_block.resnets.1",
    "mid_attention": "mid_block.attentions.0",
}
_INNER = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}


def _leaf(path: tuple[str, ...], levels: int) -> Leaf:
    """Our parameter at `path` in diffusers' terms."""
    *modules, last = path
    prefix = _TOP.get(modules[0]) or _numbered(modules[0], levels)
    if modules[0].endswith("attention"):
        return _attention(path, prefix, modules[1], last)
    inner = [_INNER.get(name, name) for name in modules[1:]]
    if modules[0].endswith("_resample") and not inner:
        inner = ["conv"]  # a bare convolution there has a module of its own around it
    name = ".".join([prefix, *inner])
    if last == "embedding":
        return Leaf(path, (f"{name}.weight",), (), "same")
    if last in ("scale", "bias"):
        return Leaf(path, (f"{name}.{'weight' if last == 'scale' else 'bias'}",), (), "same")
    dense = modules[-1] in ("time", "time_0", "time_1")
    return Leaf(path, (f"{name}.weight",), (), "dense" if dense else "conv")


def _numbered(name: str, levels: int) -> str:
    """down_1_0 is down_blocks.1.resnets.0; up_1_0 of 3 levels is up_blocks.1.resnets.0, from 2."""
    way, level, what, *attention = name.split("_")
    index = int(level) if way == "down" else levels - 1 - int(level)
    if what == "resample":
        return f"{way}_blocks.{index}.{way}samplers.0"
    return f"{way}_blocks.{index}.{'attentions' if attention else 'resnets'}.{what}"


def _attention(path: tuple[str, ...], prefix: str, part: str, last: str) -> Leaf:
    ending = "bias" if last == "bias" else "weight"
    if part == "norm":
        return Leaf(path, (f"{prefix}.group_norm.{ending}",), (), "same")
    kind = "same" if last == "bias" else "pointwise"
    called = {"qkv": (("to_q", "to_k", "to_v"), ("query", "key", "value"))}
    both = called.get(part, (("to_out.0",), ("proj_attn",)))
    made = [tuple(f"{prefix}.{n}.{ending}" for n in names) for names in both]
    return Leaf(path, made[0], made[1], kind)


def to_params(
    net: UNet, image_shape: tuple[int, ...], tensors: Mapping[str, np.ndarray], where: str
) -> Params:
    """Our parameters from a `UNet2DModel`'s tensors, as float32.

    A class table of as many rows as `net` has classes gets a row of zeros for the null class, which
    diffusers does not have.

    Args:
      net: the network of `read_options`.
      image_shape: (H, W, C).
      tensors: by diffusers' name.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`.
    """
    name = "class_embedding.weight"
    rows = tensors.get(name)
    if rows is not None and net.num_classes and len(rows) == net.num_classes:
        tensors = {**tensors, name: np.concatenate([rows, np.zeros_like(rows[:1])])}
    return params_of(leaves(net, image_shape), tensors, where)


def to_tensors(
    net: UNet, image_shape: tuple[int, ...], params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """A `UNet2DModel`'s tensors by name, from our parameters; the inverse of `to_params`."""
    return tensors_of(leaves(net, image_shape), params)
