"""The tensors of diffusers' `UNet2DModel` and the parameters of our U-Net."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddistill.errors import ConfigError, nearest
from ddistill.interop.tensors import full_precision
from ddistill.networks.unet import UNet
from ddistill.typing import Params


@dataclass(frozen=True)
class Leaf:
    """One of our parameters and its names in diffusers.

    Attributes:
      path: in our tree.
      names: the tensors it is made of; several for the joint projection of an attention.
      old: their names before diffusers 0.15.
      kind: "same", "dense", "conv", "pointwise" (a 1 x 1 convolution there is a linear layer).
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    old: tuple[str, ...]
    kind: str


def leaves(net: UNet, image_shape: tuple[int, ...]) -> list[tuple[Leaf, tuple[int, ...]]]:
    """Every parameter of `net`, with its shape; no device is asked for, which "auto" would."""
    net = net.clone(conv_impl="xla")
    shapes = jax.eval_shape(
        lambda: net.init(jax.random.key(0), jnp.zeros((1, *image_shape)), jnp.zeros(1))
    )["params"]
    flat = traverse_util.flatten_dict(shapes)
    levels = len(net.multipliers)
    return [(_leaf(path, levels), tuple(x.shape)) for path, x in sorted(flat.items())]


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


_FROM: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "dense": lambda x: x.T,
    "conv": lambda x: x.transpose(2, 3, 1, 0),
    "pointwise": lambda x: x.reshape(x.shape[:2]).T[None, None],
}
_TO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "dense": lambda x: x.T,
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "pointwise": lambda x: x[0, 0].T,
}


def to_params(
    net: UNet, image_shape: tuple[int, ...], tensors: Mapping[str, np.ndarray], where: str
) -> Params:
    """Our parameters from a `UNet2DModel`'s tensors, as float32.

    float16 and bfloat16 become float32, which loses nothing; float64 is rounded. A class table of
    as many rows as `net` has classes gets a row of zeros for the null class, which diffusers does
    not have.

    Args:
      net: the network of `read_options`.
      image_shape: (H, W, C).
      tensors: by diffusers' name.
      where: the file's name, for messages.

    Raises:
      ConfigError: a tensor is missing, left over, of another shape, not of floating point, of 8
        bits, or not finite.
    """
    flat: dict[tuple[str, ...], np.ndarray] = {}
    used: set[str] = set()
    for leaf, shape in leaves(net, image_shape):
        names = leaf.names
        if leaf.old and not any(n in tensors for n in names):
            names = leaf.old
        parts = [_take(name, tensors, where) for name in names]
        used.update(names)
        if leaf.path[0] == "class" and parts[0].shape[0] == shape[0] - 1:
            parts = [np.concatenate([parts[0], np.zeros_like(parts[0][:1])])]
        wanted = np.empty((*shape[:-1], shape[-1] // len(names)), np.bool_)
        for name, part in zip(names, parts):
            theirs = _TO[leaf.kind](wanted).shape
            if part.shape not in (theirs, (*theirs, 1, 1)):
                raise ConfigError(
                    f"{where}: {name} has shape {part.shape}; the config.json beside it asks for "
                    f"{theirs}."
                )
        made = np.concatenate([_FROM[leaf.kind](x) for x in parts], axis=-1)
        flat[leaf.path] = np.ascontiguousarray(made, np.float32)
    left = sorted(set(tensors) - used)
    if left:
        raise ConfigError(
            f"{where}: {len(left)} tensors have no place in the network of config.json: "
            f"{_some(left)}. Are the two files of one model?"
        )
    return traverse_util.unflatten_dict(flat)


def _take(name: str, tensors: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    if name not in tensors:
        raise ConfigError(
            f"{where}: the tensor {name!r} is missing.{nearest(name, tensors)} "
            "Are weights and config.json of one model?"
        )
    return full_precision(f"{where}: {name}", np.asarray(tensors[name]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def to_tensors(
    net: UNet, image_shape: tuple[int, ...], params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """A `UNet2DModel`'s tensors by name, from our parameters; the inverse of `to_params`."""
    flat = traverse_util.flatten_dict(params)
    for leaf, _ in leaves(net, image_shape):
        whole = np.asarray(flat[leaf.path], np.float32)
        for name, part in zip(leaf.names, np.split(whole, len(leaf.names), axis=-1)):
            yield name, np.ascontiguousarray(_TO[leaf.kind](part))
