"""Small networks of EDM's kinds: their options, weights and inputs, with numpy alone."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
from pickling import Instance, Named, Storage, legacy, pickled, tensor

# What torch_edm.py makes of the cases: the shapes of their tensors, and some values of x0.
NUMBERS = Path(__file__).with_name("edm_numbers.json")
SOURCE = "raise AssertionError('the source in a pickle was run')"

_SMALL = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [2, 1],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.1,
}
_NCSN = {
    **_SMALL,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
# The arguments of EDMPrecond.
CASES = {
    "ddpmpp": {**_SMALL, "augment_dim": 9},
    "ddpmpp_classes": {**_SMALL, "label_dim": 4, "num_blocks": 2, "attn_resolutions": [4, 16]},
    "ncsnpp": {**_NCSN, "augment_dim": 9, "channel_mult": [1, 2, 2]},
    "ncsnpp_classes": {**_NCSN, "label_dim": 4},
    "skip": {**_NCSN, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 2, 1]},
    "adm_classes": {
        **_SMALL,
        "model_type": "DhariwalUNet",
        "model_channels": 32,
        "channel_mult": [2, 4],
        "attn_resolutions": [32, 8],
        "label_dim": 4,
    },
}


def seeded(name, shape):
    """Weights that torch and numpy agree on: from the name, of a size that keeps signals alive."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("freqs"):
        return value
    if len(shape) > 1:
        return value / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.float32(0.2) * value + np.float32("norm" in name and name.endswith("weight"))


def inputs(case):
    """Noisy images, their sigmas, and classes (the last one null) or None."""
    side = CASES[case]["img_resolution"]
    sigma = np.array([0.05, 0.7, 20.0], np.float32)
    x = np.random.default_rng(1).standard_normal((3, side, side, 3)).astype(np.float32)
    classes = np.array([1, 3, 4]) if CASES[case].get("label_dim") else None
    return x * np.sqrt(0.25 + sigma**2)[:, None, None, None], sigma, classes


def sample(x0):
    """Values of `x0` from everywhere in it."""
    return np.asarray(x0).ravel()[::23]


def numbers(case):
    """The case's entry of `NUMBERS`."""
    return json.loads(NUMBERS.read_text())[case]


def tensors(case):
    """The case's tensors by name, without torch."""
    taps = np.asarray(CASES[case].get("resample_filter", [1, 1]), np.float32)
    square = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    return {
        name: square if name.endswith("resample_filter") else seeded(name, tuple(shape))
        for name, shape in numbers(case)["shapes"].items()
    }


def model_options(options):
    """What EDMPrecond hands to the network that it makes."""
    inner = {k: v for k, v in options.items() if k not in ("img_channels", "model_type")}
    channels = options["img_channels"]
    return {"label_dim": 0, **inner, "in_channels": channels, "out_channels": channels}


def persistent(class_name, state, source=SOURCE):
    """An object as EDM pickles those of its classes."""
    meta = {"type": "class", "version": 6, "module_src": source}
    meta |= {"class_name": class_name, "state": state}
    return Named("torch_utils.persistence._reconstruct_persistent_obj", (meta,))


def parameter(value):
    """A tensor as torch puts it into a pickle of another writer: its storage is a file of torch."""
    kind = {"f4": "Float", "f2": "Half", "f8": "Double", "i8": "Long"}[value.dtype.str[1:]]
    storage = Storage(f"torch.{kind}Storage", "0", value.ravel(), (None,))
    held = Named("torch.storage._load_from_bytes", (legacy(storage, [storage]),))
    strides = tuple(n // value.itemsize for n in np.ascontiguousarray(value).strides)
    return Named(
        "torch._utils._rebuild_parameter", (tensor(held, 0, value.shape, strides), True, {})
    )


def module(class_name, values, options=None, source=SOURCE, kinds=None):
    """A module with the tensors `values` by dotted name; `kinds` names the classes of children."""
    own = {n: parameter(v) for n, v in values.items() if "." not in n}
    children: dict[str, dict] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = value
    state = {"training": False, "_parameters": own, "_buffers": {}, "skip_scale": np.sqrt(0.5)}
    state["_modules"] = {
        n: module(*(kinds or {}).get(n, ("Linear",))[:1], v, *(kinds or {}).get(n, ("Linear",))[1:])
        if n not in ("enc", "dec")
        else Instance("torch.nn.modules.container.ModuleDict", _container(v))
        for n, v in children.items()
    }
    if options is not None:
        state |= {"_init_args": (), "_init_kwargs": options}
    return persistent(class_name, state, source)


def _container(values):
    groups: dict[str, dict] = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = value
    inner = {n: module("UNetBlock", v) for n, v in groups.items()}
    return {"training": False, "_parameters": {}, "_buffers": {}, "_modules": inner}


def write(path, options, values, outer="EDMPrecond", source=SOURCE, state=(), **others):
    """Writes a pickle of EDM's layout with these options and tensors; `others` lie beside it."""
    inner = (options["model_type"], model_options(options), source)
    net = module(outer, values, options, source, {"model": inner})
    net.args[0]["state"].update({"sigma_data": 0.5, **dict(state)})
    path.write_bytes(pickled({"ema": net, "dataset_kwargs": {"xflip": False}, **others}, 4))
    return path
