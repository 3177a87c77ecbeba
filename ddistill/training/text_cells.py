"""The cells of texts of a stage: fitted on its captions before it trains, and kept beside it."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddistill.data import Dataset
from ddistill.data.columns import check_column
from ddistill.errors import CheckpointError, ConfigError
from ddistill.interop.tensors import read_tensors, write_tensors
from ddistill.networks.text_encoding import TextEncoder
from ddistill.partitions import Cuts, Partition, PowerDiagram, text_part, with_cells
from ddistill.partitions.fitting import SAMPLE, Captions, fit_cells
from ddistill.partitions.texts import Cells
from ddistill.planning.plan import StagePlan

CELLS, GROUPS = "text_cells.safetensors", "text_groups.safetensors"
LABEL = "label"
# Captions that are encoded in one call of the compiled program.
_CHUNK = 256
_KINDS = {frozenset(cls.__dataclass_fields__): cls for cls in (Cuts, PowerDiagram)}


def fitted_partition(plan: StagePlan) -> Partition | None:
    """The partition of a stage's students, with the cells of texts that its training has fitted.

    Raises:
      CheckpointError: the file with the cells is missing or damaged.
    """
    partition = plan.partition
    if partition is None or text_part(partition) is None:
        return partition
    return with_cells(partition, read_cells(plan.folder / CELLS))


def read_cells(path: Path) -> Cells:
    """The cells in a file.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    try:
        found = read_tensors(path)
    except (ConfigError, OSError) as error:
        raise CheckpointError(_missing(path, str(error))) from None
    kind = _KINDS.get(frozenset(found))
    if kind is None:
        raise CheckpointError(_missing(path, f"it holds {', '.join(sorted(found))}"))
    return kind(**{name: jnp.asarray(x) for name, x in found.items()})


def write_cells(path: Path, cells: Cells) -> None:
    """Writes cells as a safetensors file with the names of their fields."""
    named = {name: np.asarray(getattr(cells, name)) for name in cells.__dataclass_fields__}
    write_tensors(path, named)


def is_fitted(plan: StagePlan) -> bool:
    """Whether the cells of a stage and the groups of its captions are on disk."""
    return (plan.folder / CELLS).is_file() and (plan.folder / GROUPS).is_file()


def read_groups(plan: StagePlan, count: int) -> Int[np.ndarray, " N"]:
    """The group of every caption of the data.

    Args:
      plan: a stage with a partition by text.
      count: N, the number of captions.

    Raises:
      CheckpointError: the file is missing or damaged, or is of other captions.
    """
    path = plan.folder / GROUPS
    try:
        groups = read_tensors(path)["groups"]
    except (ConfigError, OSError, KeyError) as error:
        raise CheckpointError(_missing(path, str(error))) from None
    if groups.shape != (count,):
        raise CheckpointError(_missing(path, f"it is of {len(groups)} captions, not {count}"))
    return groups


def fit_texts(plan: StagePlan, dataset: Dataset, encoder: TextEncoder) -> None:
    """Fits the cells of a stage on the captions of its data and writes both files.

    Raises:
      ConfigError: the captions do not fit the settings; the message names the stage.
    """
    s, texts = plan.settings.students, text_part(plan.partition)
    assert texts is not None
    assert dataset.tokens is not None
    try:
        groups = _listed(dataset, s.column, texts.count) if s.column else None
        captions = Captions(
            len(dataset.tokens), _embedder(dataset.tokens, encoder), plan.seed, groups
        )
        cells, owners = fit_cells(s.text_split, texts.count, captions)
    except ConfigError as error:  # its message begins with "students"
        raise ConfigError(f"config.stages.{plan.name}.{error}") from None
    write_tensors(plan.folder / GROUPS, {"groups": owners.astype(np.int32)})
    write_cells(plan.folder / CELLS, cells)


def _missing(path: Path, why: str) -> str:
    return (
        f"{path}, with which texts are assigned to students, cannot be read ({why}). Copy it from "
        f"where the stage was trained, or delete {CELLS}, {GROUPS} and complete.json there and "
        "give the run's command again."
    )


def _listed(dataset: Dataset, column: str, count: int) -> Int[np.ndarray, " N"]:
    """The group of every caption: the place of its value among the sorted ones of a column."""
    if column == LABEL:
        values = np.asarray(dataset.labels)
    else:
        check_column("students.column", column, (*dataset.texts, LABEL), dataset.name)
        values = np.asarray(list(dataset.texts[column]))
    known, groups = np.unique(values, return_inverse=True)
    if len(known) != count:
        raise ConfigError(
            f"students.column={column!r} has {len(known)} values, and there are {count} students. "
            f"Set as many of them, or use another column."
        )
    return groups


def _embedder(
    tokens: Int[np.ndarray, "N L"], encoder: TextEncoder
) -> Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "n D"]]:
    """Rows of captions to their embeddings; each different caption is encoded once if few are."""
    unique, inverse = np.unique(tokens, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    if len(unique) <= SAMPLE:
        known = _encode(encoder, unique)
        return lambda rows: known[inverse[rows]]
    return lambda rows: _encode(encoder, tokens[rows])


def _encode(encoder: TextEncoder, ids: Int[np.ndarray, "n L"]) -> Float[np.ndarray, "n D"]:
    """Embeddings, in chunks of one size so that one program encodes all."""
    size = min(_CHUNK, len(ids))
    filled = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % size, axis=0)])
    parts = [_pooled(encoder, filled[i : i + size]) for i in range(0, len(filled), size)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


@jax.jit
def _pooled(encoder: TextEncoder, ids: Array) -> Array:
    return encoder(ids).pooled
