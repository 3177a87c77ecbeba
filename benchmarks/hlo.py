"""Reads compiled programs: which devices exchange what, and how long the compiler thinks it takes.

A compiled program names devices by their place in the mesh, counted row by row.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_EXCHANGES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
    "recv",
)
_INSTRUCTION = re.compile(rf"^.* = .* ({'|'.join(_EXCHANGES)})(?:-start)?\(.*$", re.MULTILINE)

Groups = list[list[int]]


def exchanges(text: str, mesh: Mapping[str, int]) -> Counter[tuple[str, tuple[str, ...]]]:
    """How often the program exchanges what over which axes of the mesh.

    Args:
      text: `compiled.as_text()`.
      mesh: sizes of its axes by name, in order.

    Returns:
      Counts by (operation, names of the axes in which the devices of a group differ).

    Raises:
      ValueError: an operation that this cannot read: it is not to be taken for harmless.
    """
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for match in _INSTRUCTION.finditer(text):
        groups = _groups(match[0], int(np.prod(list(mesh.values()))))
        found[match[1], crossed(groups, mesh)] += 1
    return found


def crossed(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh in which devices of one group differ."""
    sizes = tuple(mesh.values())
    apart = set()
    for group in groups:
        places = np.stack(np.unravel_index(group, sizes))
        apart |= {axis for axis, row in zip(mesh, places) if len(set(row.tolist())) > 1}
    return tuple(axis for axis in mesh if axis in apart)


def _groups(line: str, devices: int) -> Groups:
    """The groups of devices of one instruction, in any of the forms that XLA writes them in."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", line)
    if pairs:
        return _lists(pairs[1])
    # Without it the numbers would be those of replicas, of which our programs have one.
    if "use_global_device_ids=true" not in line and "channel_id=" not in line:
        raise ValueError(f"Whom this exchanges with is not known: {line[:500]}")
    written = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    if written:
        return _lists(written[1]) or [list(range(devices))]
    # [2,8]<=[4,4]T(1,0): numbers of a 4 x 4 array, transposed, in 2 rows of 8.
    table = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if table:
        rows, shape, order = (_numbers(part or "") for part in table.groups())
        numbers = np.arange(np.prod(shape)).reshape(shape)
        return numbers.transpose(order or None).reshape(rows).tolist()
    # mesh['a'=4,'b'=4] {'b'}: an array with named axes, and those that a group spans; with
    # device_ids=([2,8]T(1,0)), of the numbers of a transposed array.
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?"
        r"\{([^}]*)\}",
        line,
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        spanned = re.findall(r"'(\w+)'", named[4])
        if ":" not in named[4] and spanned and sizes:
            kept = [name for name in sizes if name not in spanned]
            numbers = np.arange(np.prod(list(sizes.values())))
            if named[2]:
                order = _numbers(named[3] or "") or None
                numbers = numbers.reshape(_numbers(named[2])).transpose(order)
            numbers = numbers.reshape(list(sizes.values()))
            order = [list(sizes).index(name) for name in (*kept, *spanned)]
            width = int(np.prod([sizes[name] for name in spanned]))
            return numbers.transpose(order).reshape(-1, width).tolist()
    raise ValueError(f"Whom this exchanges with is not known: {line[:500]}")


def _lists(text: str) -> Groups:
    return [_numbers(part) for part in re.findall(r"\{([\d,]+)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def convolution_groups(text: str) -> Sequence[int]:
    """The group counts of the program's convolutions, but for 1."""
    counts = re.findall(r"(?:feature|batch)_group_count=(\d+)", text)
    return sorted({int(n) for n in counts} - {1})


def estimated_cycles(text: str) -> int:
    """The compiler's own guess at how long the program takes, loops counted once."""
    main = text[text.rindex("\nENTRY") :]
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', main))
