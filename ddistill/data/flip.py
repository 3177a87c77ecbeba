"""Whether mirrored images are still images of the set."""

from typing import Any

from ddistill.errors import ConfigError

# Characters, digits and signs change their meaning in a mirror.
_HANDED = ("mnist", "svhn", "omniglot", "digit", "letter", "character", "text", "traffic_sign")


def wants_flip(flip: Any, name: str) -> bool:
    """Returns `flip` where it is set, else whether a set of this name can be mirrored.

    Args:
      flip: True, False, or None for the default of the set.
      name: name of the set or of its folder.
    """
    if flip is None:
        return not any(word in name.lower() for word in _HANDED)
    if not isinstance(flip, bool):
        raise ConfigError(
            f"data.flip={flip!r} is not known. Allowed: True, False, or None for the default of "
            "the data set."
        )
    return flip
