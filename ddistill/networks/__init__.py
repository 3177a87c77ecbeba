"""Networks by name, with settings that are checked before anything is traced."""

import dataclasses
from collections.abc import Callable, Mapping

from flax import linen as nn

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.networks.autoencoder_kl import AutoencoderKL, check_autoencoder
from ddistill.networks.captioned_unet import CaptionedUNet, check_captioned_unet
from ddistill.networks.classifier import DenseNet, DigitsClassifier, ResNet
from ddistill.networks.clip_text import CLIPText, check_clip_text
from ddistill.networks.dhariwal import DhariwalUNet
from ddistill.networks.dit import DiT, check_dit
from ddistill.networks.edm_unet import EdmUNet
from ddistill.networks.efficientnet_lite import EfficientNetLite0
from ddistill.networks.song import SongUNet
from ddistill.networks.text_unet import TextUNet, check_text_unet
from ddistill.networks.unet import UNet, check_fields
from ddistill.parsing import kind_of

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "text_unet": TextUNet,
    "captioned_unet": CaptionedUNet,
    "autoencoder_kl": AutoencoderKL,
    "clip_text": CLIPText,
    "song": SongUNet,
    "dhariwal": DhariwalUNet,
    "dit": DiT,
    "digits_classifier": DigitsClassifier,
    "resnet": ResNet,
    "densenet": DenseNet,
    "efficientnet_lite0": EfficientNetLite0,
}

# Options that change how a network computes, not what parameters it has: a student may differ in
# them from the network that it starts from, for example drop the dropout.
WITHOUT_PARAMETERS = ("dropout", "remat", "dtype", "conv_impl", "attention_impl", "side")
# Options that are off by default, and left out of the identity of a stage where they are off.
OPTIONAL: dict[str, object] = {"extras": ()}


def defaults(name: str) -> dict[str, object]:
    """All fields of the network `name` and their defaults.

    Raises:
      ConfigError: an unknown name.
    """
    check_choice("network.name", name, NETWORKS)
    fields = dataclasses.fields(NETWORKS[name])
    return {f.name: f.default for f in fields if f.name not in ("parent", "name")}


def build(name: str, **options: object) -> nn.Module:
    """Returns the network `name` with the given fields.

    Args:
      name: a key of `NETWORKS`.
      options: fields of that module; lists become tuples, so that the module can be hashed.

    Raises:
      ConfigError: the name or a field is not known (with the nearest match), a value is of another
        type than the field's default, or the values do not fit together.
    """
    check_choice("network.name", name, NETWORKS)
    cls = NETWORKS[name]
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}
    for key in options:
        if key not in fields:
            raise ConfigError(
                f"network.{key} is not a field of '{name}'.{nearest(key, fields)} "
                f"Known: {', '.join(sorted(fields))}."
            )
    make: Callable[..., nn.Module] = cls
    module = make(**{k: _convert(k, v, fields[k].default) for k, v in options.items()})
    if isinstance(module, UNet):
        check_fields(module)
    if isinstance(module, EdmUNet):
        module.check()
    if isinstance(module, CaptionedUNet):
        check_captioned_unet(module)
    elif isinstance(module, TextUNet):
        check_text_unet(module)
    if isinstance(module, DiT):
        check_dit(module)
    if isinstance(module, AutoencoderKL):
        check_autoencoder(module)
    if isinstance(module, CLIPText):
        check_clip_text(module)
    return module


# Width of the sinusoids of a guidance scale, as LCM's networks have it (arXiv 2310.04378).
_GUIDANCE_DIM = 256


def extra_inputs(network: Mapping[str, object]) -> tuple[str, ...]:
    """The scalars that a network is given beside its time, by the names of `networks.extras`.

    Args:
      network: its name and options. A U-Net of texts has the input "guidance" where its
        `guidance_dim` is above 0, and no others.
    """
    if reads_text(str(network.get("name", ""))):
        return ("guidance",) if network.get("guidance_dim") else ()
    return tuple(network.get("extras", ()))  # type: ignore[arg-type]


def with_extra_inputs(network: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    """The options of a network with other extra inputs; a U-Net of texts takes "guidance" alone."""
    if extra_inputs(network) == tuple(names):
        return dict(network)
    if reads_text(str(network.get("name", ""))):
        return {**network, "guidance_dim": _GUIDANCE_DIM if "guidance" in names else 0}
    return {**network, "extras": tuple(names)}


def reads_text(name: str) -> bool:
    """Whether the denoiser `name` is conditional on texts; False for an unknown name."""
    return bool(getattr(NETWORKS.get(name), "reads_text", False))


def _floats(key: str, values: tuple[object, ...]) -> tuple[float, ...]:
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if numbers and len(numbers) == len(values):
        return tuple(numbers)
    raise ConfigError(f"network.{key}={values!r} must be a list of numbers.")


def _convert(key: str, value: object, default: object) -> object:
    """Returns `value` as the type of the field's default."""
    if isinstance(default, tuple):
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if default and isinstance(default[0], float):
            return _floats(key, values)
        kind, what = (int, "integers") if default else (str, "names")
        if all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
            return values
        raise ConfigError(f"network.{key}={values!r} must be a list of {what}.")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(
            f"network.{key}={value!r} is {kind_of(type(value))}; "
            f"{kind_of(type(default))} is needed."
        )
    return value
