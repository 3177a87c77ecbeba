"""EDM's teachers (arXiv 2206.00364): their pickles as networks of ours, with every weight placed.

Networks with EDM's preconditioning (`EDMPrecond`) around DDPM++, NCSN++ or ADM are supported. Its F
is the prediction type "edm", and its time input is c_noise = ln(sigma) / 4.
"""

import hashlib
from pathlib import Path

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.interop.edm_pickles import Record, read_objects
from ddistill.interop.edm_weights import place
from ddistill.interop.imported import Imported
from ddistill.interop.torch_files import open_file
from ddistill.runtime.files import expand
from ddistill.typing import Options

LICENCE = (
    "CC BY-NC-SA 4.0 (EDM's code and its own weights: not for commercial use, and what is made of "
    "them under the same licence)"
)
_SIGMA_DATA = 0.5

# EDM's options: our name and the default of EDM's class. `_ELSEWHERE` lists the options that are no
# fields of a network here: they are checked below, or belong to training.
_COMMON: dict[str, tuple[str, object]] = {
    "channel_mult_emb": ("embedding_multiplier", 4),
    "dropout": ("dropout", 0.10),
    "label_dim": ("num_classes", 0),
    "augment_dim": ("augment_dim", 0),
    "out_channels": ("out_channels", None),
}
_SONG: dict[str, tuple[str, object]] = {
    **_COMMON,
    "model_channels": ("channels", 128),
    "channel_mult": ("multipliers", (1, 2, 2, 2)),
    "num_blocks": ("blocks", 4),
    "attn_resolutions": ("attention", (16,)),
    "embedding_type": ("embedding", "positional"),
    "channel_mult_noise": ("noise_multiplier", 1),
    "encoder_type": ("encoder", "standard"),
    "decoder_type": ("decoder", "standard"),
    "resample_filter": ("resample_filter", (1, 1)),
}
_DHARIWAL: dict[str, tuple[str, object]] = {
    **_COMMON,
    "model_channels": ("channels", 192),
    "channel_mult": ("multipliers", (1, 2, 3, 4)),
    "num_blocks": ("blocks", 3),
    "attn_resolutions": ("attention", (32, 16, 8)),
}
_ELSEWHERE = ("img_resolution", "in_channels", "label_dropout")
_NETWORKS = {"SongUNet": ("song", _SONG), "DhariwalUNet": ("dhariwal", _DHARIWAL)}
_OTHER_PRECONDITIONING = {
    "VPPrecond": "score-SDE's variance-preserving one",
    "VEPrecond": "score-SDE's variance-exploding one",
    "iDDPMPrecond": "improved DDPM's, which also predicts variances",
    "Precond": "EDM2's, whose network is not one that is known here",
}


def read_teacher(path: Path) -> Imported:
    """The averaged network of one of EDM's pickles.

    Args:
      path: the `.pkl` file.

    Raises:
      ConfigError: the file is missing, damaged, names code, holds another kind of network or an
        option that is not supported, or its tensors do not fit its options.
    """
    given, path = path, expand(path)
    if path.is_dir():
        there = [file.name for file in sorted(path.glob("*.pkl"))]
        named = f"give one of {', '.join(there[:5])}" if there else "there is no .pkl file in it"
        raise ConfigError(f"{path} is a folder; one of EDM's network pickles is needed: {named}.")
    found = read_objects(path)
    net = found.get("ema")
    if not isinstance(net, Record):
        raise ConfigError(
            f"{path} has no network 'ema'; it holds {', '.join(map(repr, found)) or 'nothing'}. "
            "Give one of EDM's network pickles."
        )
    try:
        network, image_shape = describe(net)
        params = place(network, net.tensors(), image_shape)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Imported(
        network=network,
        params=params,
        prediction="edm",
        # The only schedule with c_noise as times. The file gives neither the number of levels nor
        # their range: in training EDM draws a level for every image.
        schedule={"name": "karras"},
        image_shape=image_shape,
        num_classes=network["num_classes"],
        digest=_digest(path),
        source=f"edm:{given}",
        licence=LICENCE,
    )


def describe(net: Record) -> tuple[Options, tuple[int, int, int]]:
    """The network inside of EDM's preconditioning as a config has it, and the shape of its images.

    Raises:
      ConfigError: the preconditioning, the network or an option is not supported.
    """
    _check_preconditioning(net)
    model = net.child("model")
    if model is None:
        raise ConfigError("its EDMPrecond has no 'model'.")
    check_choice("the class of its network", model.class_name, _NETWORKS)
    name, table = _NETWORKS[model.class_name]
    given = model.options
    for key in given:
        if key not in table and key not in _ELSEWHERE:
            raise ConfigError(
                f"its {model.class_name} has the option {key}={given[key]!r}, which is not "
                f"supported.{nearest(key, table)} Known: {', '.join((*table, *_ELSEWHERE))}."
            )
    side, inputs, outputs = (
        _count(model, key) for key in ("img_resolution", "in_channels", "out_channels")
    )
    if inputs != outputs:
        raise ConfigError(
            f"its network makes {outputs} channels of {inputs}; "
            "only networks whose output has the shape of their input are supported."
        )
    network = {"name": name, **{ours: _plain(given.get(k, d)) for k, (ours, d) in table.items()}}
    network["attention"] = _sizes_there(network["attention"], side, network["multipliers"])
    return network, (side, side, inputs)


def _count(model: Record, key: str) -> int:
    value = model.options.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"its {model.class_name} has {key}={value!r}.")
    return value


def _check_preconditioning(net: Record) -> None:
    """Raises `ConfigError` unless the preconditioning is EDM's, with sigma_data 1/2."""
    if net.class_name != "EDMPrecond":
        what = _OTHER_PRECONDITIONING.get(net.class_name, "not one that is known here")
        raise ConfigError(
            f"its preconditioning is {net.class_name}, {what}. Supported is EDMPrecond alone, "
            "which all files edm-*.pkl of EDM's release have."
        )
    sigma_data = net.state.get("sigma_data", _SIGMA_DATA)
    if sigma_data != _SIGMA_DATA:
        raise ConfigError(f"its sigma_data is {sigma_data!r}; supported is {_SIGMA_DATA} alone.")


def _plain(value: object) -> object:
    """Lists as tuples, and numpy's numbers as Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value.item() if hasattr(value, "item") else value


def _sizes_there(sizes: object, side: int, multipliers: object) -> tuple[int, ...]:
    """The sizes of attention that the network meets: EDM's list may name others, ours may not."""
    if not isinstance(sizes, tuple) or not isinstance(multipliers, tuple):
        raise ConfigError(f"attn_resolutions={sizes!r} and channel_mult={multipliers!r}: no lists.")
    levels = [side >> i for i in range(len(multipliers))]
    return tuple(size for size in sizes if size in levels)


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
