"""diffusers' `DiTTransformer2DModel` and our DiT: settings and tensors under two sets of names.

The files of the first releases call the class `Transformer2DModel`. Nothing is read or written.
"""

import functools
from collections.abc import Iterator, Mapping

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.config_values import (
    AVERAGE_NOTES,
    check_all,
    check_fixed,
    completed,
    is_number,
    is_whole,
)
from ddistill.interop.leaves import (
    Leaf,
    Table,
    names_and_shapes,
    params_of,
    table_of,
    tensors_of,
)
from ddistill.networks.dit import DiT, check_dit, dit_shapes, positions
from ddistill.typing import JsonRecord, Options, Params

KIND = "DiTTransformer2DModel"
_OLD_KIND = "Transformer2DModel"
# Defaults of `DiTTransformer2DModel` for keys that config.json lacks.
DEFAULTS: Options = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
# Defaults of `Transformer2DModel` where they differ, and its further keys.
_OLD_DEFAULTS: Options = {
    **DEFAULTS,
    **{"attention_head_dim": 88, "in_channels": None, "num_layers": 1, "sample_size": None},
    **{"attention_bias": False, "patch_size": None, "activation_fn": "geglu"},
    **{"num_embeds_ada_norm": None, "norm_type": "layer_norm", "norm_elementwise_affine": True},
    "cross_attention_dim": None,
    "num_vector_embeds": None,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "double_self_attention": False,
    "attention_type": "default",
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
}
# The values of the further keys that a DiT has.
_OLD_FIXED = {k: (v,) for k, v in _OLD_DEFAULTS.items() if k not in DEFAULTS}
# Options that our network has in one form only, and the values that stand for it.
_FIXED: dict[str, tuple[object, ...]] = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    # The network has no group norm and computes scores in float32 in any case.
    "norm_num_groups": (32,),
    "upcast_attention": (False,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
}
# A note of ddistill: the network is unconditional, and its one class is all zeros.
UNCONDITIONAL = "_unconditional"
_MLP_RATIO = 4


def read_options(config: Options, where: str) -> tuple[Options, tuple[int, int, int]]:
    """Options of our network and the image shape (H, W, C) from a config.json.

    Args:
      config: the file's content.
      where: the file's name, for messages.

    Raises:
      ConfigError: another class of network, an unknown key, or an option that our network does not
        have; the message gives its name, its value and the allowed values.
    """
    old = config.get("_class_name") == _OLD_KIND
    kind, defaults = (_OLD_KIND, _OLD_DEFAULTS) if old else (KIND, DEFAULTS)
    c = completed(config, kind, defaults, where, AVERAGE_NOTES)
    check_fixed(c, {**_FIXED, **(_OLD_FIXED if old else {})}, where)
    _check_types(c, where)
    channels = c["in_channels"]
    out = channels if c["out_channels"] is None else c["out_channels"]
    if out not in (channels, 2 * channels):
        raise ConfigError(
            f"{where}: out_channels={out} and in_channels={channels}. Allowed: {channels}, or "
            f"{2 * channels} for a network that predicts a variance too."
        )
    options = {
        "patch_size": c["patch_size"],
        "width": c["num_attention_heads"] * c["attention_head_dim"],
        "depth": c["num_layers"],
        "heads": c["num_attention_heads"],
        "mlp_ratio": _MLP_RATIO,
        "out_channels": channels,
        "learned_sigma": out != channels,
        "num_classes": 0 if is_unconditional(config) else c["num_embeds_ada_norm"],
        "dropout": float(c["dropout"]),
        "mlp_norm_eps": float(c["norm_eps"]),
    }
    try:
        check_dit(DiT(**options))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if c["sample_size"] % c["patch_size"]:
        raise ConfigError(
            f"{where}: sample_size={c['sample_size']} must divide by patch_size={c['patch_size']}."
        )
    return options, (c["sample_size"], c["sample_size"], channels)


def is_unconditional(config: Options) -> bool:
    """Whether config.json says that the network is unconditional."""
    return bool(config.get(UNCONDITIONAL))


def _check_types(c: Options, where: str) -> None:
    whole = (
        *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers"),
        *("sample_size", "patch_size", "num_embeds_ada_norm"),
    )
    out = c["out_channels"]
    check_all(
        [
            *((key, c[key], is_whole(c[key]), "an integer above 0") for key in whole),
            ("out_channels", out, out is None or is_whole(out), "an integer above 0, or null"),
            *(
                (key, c[key], is_number(c[key]) and low <= c[key] < 1, f"a number in {text}")
                for key, low, text in (("dropout", 0, "[0, 1)"), ("norm_eps", 1e-30, "(0, 1)"))
            ),
        ],
        where,
    )


def write_options(net: DiT, image_shape: tuple[int, ...]) -> JsonRecord:
    """config.json of the `DiTTransformer2DModel` that is `net`, for images of a shape (H, W, C).

    Raises:
      ConfigError: an option that diffusers does not have.
    """
    check_dit(net)
    height, width, channels = image_shape
    for name, value, allowed in (
        ("qk_norm", net.qk_norm, False),
        ("double_norm", net.double_norm, False),
        ("includes_last", net.includes_last, True),
        ("mlp_ratio", net.mlp_ratio, _MLP_RATIO),
        ("extras", net.extras, ()),
    ):
        if value != allowed:
            raise ConfigError(
                f"network.{name}={value!r} is not an option of {KIND}, which has {allowed!r}. Use "
                "--to=stablehlo or --to=safetensors."
            )
    if height != width:
        raise ConfigError(f"{KIND} has square images; these are {height} x {width}.")
    return {
        "_class_name": KIND,
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "in_channels": channels,
        "out_channels": net.out_channels * (2 if net.learned_sigma else 1),
        "num_layers": net.depth,
        "dropout": net.dropout,
        "norm_num_groups": 32,
        "attention_bias": True,
        "sample_size": height,
        "patch_size": net.patch_size,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": net.num_classes or 1,
        "upcast_attention": False,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": net.mlp_norm_eps,
        **({} if net.num_classes else {UNCONDITIONAL: True}),
    }


# ------------------------------------------------------------------------------------- tensors

_TOP = {
    "patches": "pos_embed.proj",
    "modulation_out": "proj_out_1",
    "dense_out": "proj_out_2",
}
# Every block of diffusers has an embedding of time and class; all are copies of one.
_EMBEDDING = "transformer_blocks.{}.norm1.emb."
_SHARED = {
    "time_0": "timestep_embedder.linear_1",
    "time_1": "timestep_embedder.linear_2",
    "class": "class_embedder.embedding_table",
}
_INNER = {
    "modulation": ("norm1.linear",),
    "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention_out": ("attn1.to_out.0",),
    "mlp_0": ("ff.net.0.proj",),
    "mlp_1": ("ff.net.2",),
}
_CLASS_TABLE = "class_embedder.embedding_table.weight"
# A constant, which files of some versions hold.
_POSITIONS = "pos_embed.pos_embed"


@functools.lru_cache(maxsize=8)
def leaves(net: DiT, channels: int) -> Table:
    """Every parameter of `net`, with its shape; names of the embedding are those of block 0."""
    return table_of(dit_shapes(net, channels), _leaf)


def _leaf(path: tuple[str, ...]) -> Leaf:
    first, last = path[0], path[-1]
    end = "bias" if last == "bias" else "weight"
    if first in _SHARED:
        names: tuple[str, ...] = (_EMBEDDING.format(0) + _SHARED[first],)
    elif first in _TOP:
        names = (_TOP[first],)
    else:
        block = first.removeprefix("block_")
        names = tuple(f"transformer_blocks.{block}.{inner}" for inner in _INNER[path[1]])
    kind = "same"
    if last == "kernel":
        kind = "conv" if first == "patches" else "dense"
    return Leaf(path, tuple(f"{name}.{end}" for name in names), (), kind)


def to_params(
    net: DiT, image_shape: tuple[int, int, int], tensors: Mapping[str, np.ndarray], where: str
) -> Params:
    """Our parameters from a `DiTTransformer2DModel`'s tensors, as float32.

    Args:
      net: the network of `read_options`.
      image_shape: (H, W, C) of its images.
      tensors: by diffusers' name.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`; also blocks whose embeddings of time and
        class differ.
    """
    height, width, channels = image_shape
    left = dict(tensors)
    for i in range(1, net.depth):
        for name in [n for n in left if n.startswith(_EMBEDDING.format(i))]:
            _drop_copy(left, name, name.replace(_EMBEDDING.format(i), _EMBEDDING.format(0)), where)
    places = left.pop(_POSITIONS, None)
    if places is not None:
        ours = positions(height // net.patch_size, width // net.patch_size, net.width)
        theirs = np.asarray(places, np.float32).reshape(-1, net.width)
        # float16 has three digits.
        if theirs.shape != ours.shape or np.abs(theirs - ours).max() > 1e-3:
            raise ConfigError(
                f"{where}: {_POSITIONS} are not the sinusoids of a DiT; learned positions are not "
                "supported."
            )
    if not net.num_classes:
        table = left.pop(_EMBEDDING.format(0) + _CLASS_TABLE, None)
        if table is None or np.any(table):
            raise ConfigError(
                f"{where}: config.json says {UNCONDITIONAL}, and the class table is not zero."
            )
    _check_copies(net, tensors, where)
    return params_of(leaves(net, channels), left, where)


def _drop_copy(left: dict[str, np.ndarray], name: str, first: str, where: str) -> None:
    """Removes a tensor of an embedding that equals block 0's."""
    if first not in left:
        return  # then it stays, as a tensor without a place
    if not np.array_equal(left[name], left[first]):
        raise ConfigError(
            f"{where}: {name} differs from {first}. Blocks with embeddings of their own are not "
            "supported: a DiT has one, of which each block of diffusers keeps a copy."
        )
    del left[name]


def _check_copies(net: DiT, tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Raises `ConfigError` for a block without its copy of the embedding."""
    first = [n for n in tensors if n.startswith(_EMBEDDING.format(0))]
    for i in range(1, net.depth):
        for name in first:
            copy = name.replace(_EMBEDDING.format(0), _EMBEDDING.format(i))
            if copy not in tensors:
                raise ConfigError(f"{where}: the tensor {copy!r} is missing.")


def to_tensors(net: DiT, channels: int, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """A `DiTTransformer2DModel`'s tensors by name, from our parameters; inverts `to_params`."""
    for name, tensor in _tensors(net, channels, params):
        yield name, tensor
        if name.startswith(_EMBEDDING.format(0)):
            for i in range(1, net.depth):
                yield name.replace(_EMBEDDING.format(0), _EMBEDDING.format(i)), tensor


def _tensors(net: DiT, channels: int, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    yield from tensors_of(leaves(net, channels), params)
    if not net.num_classes:
        zeros = np.zeros((2, net.width), np.float32)
        yield _EMBEDDING.format(0) + _CLASS_TABLE, zeros


def tensor_shapes(net: DiT, channels: int) -> dict[str, tuple[int, ...]]:
    """By diffusers' name, the shape of every tensor."""
    found = names_and_shapes(leaves(net, channels))
    if not net.num_classes:
        found[_EMBEDDING.format(0) + _CLASS_TABLE] = (2, net.width)
    for name in [n for n in found if n.startswith(_EMBEDDING.format(0))]:
        for i in range(1, net.depth):
            found[name.replace(_EMBEDDING.format(0), _EMBEDDING.format(i))] = found[name]
    return found
