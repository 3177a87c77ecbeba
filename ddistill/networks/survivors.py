"""Layers of a U-Net that remain in one with fewer blocks, without a middle or with fewer levels.

Block removal (BK-SDM, arXiv 2305.15798): of every level the first blocks remain, and on the way up
the last one, which is given the same skip in both networks.
"""

from typing import TypeAlias

from flax import linen as nn
from flax import traverse_util

from ddistill.typing import Params

Path: TypeAlias = tuple[str, ...]
# The options in which networks with common layers can differ.
REMOVED = ("widths", "multipliers", "blocks", "attends", "depth", "heads", "middle")


def survivors(params: Params, ours: nn.Module, theirs: nn.Module) -> Params:
    """The parameters of `theirs` that are left in `ours`, under the names that they have there.

    Args:
      params: of the larger network, perhaps of K students, or their shapes.
      ours: a U-Net with the options `REMOVED`; other networks keep all parameters.
      theirs: the larger one.
    """
    if type(ours) is not type(theirs) or not hasattr(ours, "blocks") or _same(ours, theirs):
        return params
    flat = traverse_util.flatten_dict(params)
    named = {path: _renamed(path, ours, theirs) for path in flat}
    kept = {new: flat[path] for path, new in named.items() if new is not None}
    return traverse_util.unflatten_dict(kept)  # type: ignore[no-any-return]


def _same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(getattr(ours, k, None) == getattr(theirs, k, None) for k in REMOVED)


def _renamed(path: Path, ours: nn.Module, theirs: nn.Module) -> Path | None:
    """The path of a parameter in the smaller network; None where it is gone."""
    way, *numbers = path[0].split("_")
    if way == "mid":
        return path if getattr(ours, "middle", True) else None
    if way not in ("down", "up") or not numbers[0].isdecimal():
        return path
    level, last = int(numbers[0]), _levels(ours) - 1
    if level > last:
        return None
    if not numbers[1].isdecimal():  # a resampling layer, which the innermost level lacks down
        return None if way == "down" and level == last else path
    block, more = int(numbers[1]), way == "up"
    count, before = (_blocks(net, level) + more for net in (ours, theirs))
    if more and block == before - 1:
        block = count - 1
    elif block >= count - more:
        return None
    return "_".join([way, numbers[0], str(block), *numbers[2:]]), *path[1:]


def _levels(net: nn.Module) -> int:
    return len(getattr(net, "widths", None) or net.multipliers)  # type: ignore[attr-defined]


def _blocks(net: nn.Module, level: int) -> int:
    """Blocks of a level on the way down."""
    blocks: int | tuple[int, ...] = net.blocks  # type: ignore[attr-defined]
    if isinstance(blocks, int):
        return blocks
    return blocks[level if len(blocks) > 1 else 0]
