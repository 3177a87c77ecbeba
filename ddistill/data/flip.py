"""Whether training mirrors images: a setting, or the published recipe of a data set."""

from typing import NamedTuple

from ddistill.errors import ConfigError

_DDPM = "the recipe of DDPM, arXiv 2006.11239, mirrors it"
_DDIM = "the recipe of DDIM, arXiv 2010.02502, mirrors it"
_ADM = "the recipe of ADM, arXiv 2105.05233, mirrors it"
# By the name of a TFDS set. Whatever is not listed is not mirrored: letters, charts, scans and
# instruments change their meaning when mirrored, and names do not identify all of them.
RECIPES = {
    "cifar10": _DDPM,
    "celeb_a": _DDIM,
    "celeb_a_hq": _DDPM,
    "imagenet2012": _ADM,
    "imagenet_resized": _ADM,
    "downsampled_imagenet": _ADM,
}


class Mirroring(NamedTuple):
    """Whether images are mirrored at random while training, and why."""

    on: bool
    why: str


def decide_flip(flip: object, recipe: str = "") -> Mirroring:
    """Returns `flip` where it is set, else whether the data set's own recipe mirrors.

    Args:
      flip: True, False, or None for the default of the set.
      recipe: why the set is mirrored by default; "" if it is not.

    Raises:
      ConfigError: `flip` is something else.
    """
    if flip is None:
        if recipe:
            return Mirroring(True, f"{recipe}; data.flip=False switches it off")
        return Mirroring(False, "the default; data.flip=True mirrors at random")
    if not isinstance(flip, bool):
        raise ConfigError(
            f"data.flip={flip!r} is not known. Allowed: True, False, or None for the default of "
            "the data set."
        )
    return Mirroring(flip, f"data.flip={flip}")
