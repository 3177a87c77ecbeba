"""Fits the cells of a partition of texts on the embeddings of captions.

Directions, centres and biases are fitted on a sample, and thresholds on one number per axis and
caption. A million captions are therefore a matrix `[n, d]`; nothing of size n x n is made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.partitions.classes import spread_out
from ddistill.partitions.texts import TEXT_SPLITS, Cells, Cuts, PowerDiagram

# The splits by cuts at medians.
BY_CUTS = ("quadrants", "principal")
# Captions of which directions, centres and biases are fitted.
SAMPLE = 20_000
# Captions that are embedded in one call.
CHUNK = 4096
# Rounds of k-means, and rounds over the biases in each of them.
_ROUNDS, _BALANCING = 50, 200

Embeddings = Float[np.ndarray, "n D"]
Owners = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Captions:
    """The captions of a set, as a partition is fitted on them.

    Attributes:
      count: n.
      embed: rows -> `[rows, D]`, float32, the pooled embeddings of these captions.
      seed: of the sample, and of the first centres.
      groups: `[n]` in 0 .. K-1, for the split "listed".
    """

    count: int
    embed: Callable[[Int[np.ndarray, " r"]], Embeddings]
    seed: int = 0
    groups: Owners | None = None

    def chunks(self) -> Iterator[Embeddings]:
        """The embeddings of all captions, in order."""
        for start in range(0, self.count, CHUNK):
            yield self._embed(np.arange(start, min(start + CHUNK, self.count)))

    def sample(self) -> tuple[Int[np.ndarray, " s"], Embeddings]:
        """At most `SAMPLE` captions: rows and embeddings."""
        rows = np.arange(self.count)
        if self.count > SAMPLE:
            rng = np.random.default_rng(self.seed)
            rows = np.sort(rng.choice(self.count, SAMPLE, replace=False))
        parts = [self._embed(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        return rows, np.concatenate(parts)

    def _embed(self, rows: Int[np.ndarray, " r"]) -> Embeddings:
        found = np.asarray(self.embed(rows), np.float32)
        if not np.isfinite(found).all():
            raise ConfigError("students: an embedding of a caption is not finite.")
        return found


def fit_cells(split: str, students: int, captions: Captions) -> tuple[Cells, Owners]:
    """The cells of K students, and the student of every caption.

    Args:
      split: "quadrants": cuts at medians along the first log2 K axes of the embeddings;
        "principal": the same along the principal axes; "clusters": balanced k-means; "listed": the
        cells around the means of `captions.groups`, of the sizes of the groups.
      students: K.
      captions: the set.

    Raises:
      ConfigError: an unknown split, a K that is no power of two for cuts or needs more axes than
        embeddings have, a student without captions, or embeddings that are not finite.
    """
    check_choice("students.text_split", split, TEXT_SPLITS)
    if captions.count < students:
        raise ConfigError(
            f"students.count={students}, but there are {captions.count} captions to partition; "
            f"allowed: 1 to {captions.count}."
        )
    if split in BY_CUTS:
        return _occupied(*_fit_cuts(students, captions, principal=split == "principal"))
    diagram = (_fit_clusters if split == "clusters" else _fit_listed)(students, captions)
    found = [np.asarray(diagram(jnp.asarray(x))) for x in captions.chunks()]
    return _occupied(diagram, np.concatenate(found))


def _occupied(cells: Cells, owners: Owners) -> tuple[Cells, Owners]:
    """Its arguments; raises `ConfigError` where a cell has no caption."""
    students = cells.count
    empty = np.flatnonzero(np.bincount(owners, minlength=students) == 0)
    if empty.size:
        raise ConfigError(
            f"students: no caption belongs to student {int(empty[0])} of {students}, because too "
            "many captions have one embedding. Use fewer students or another text_split."
        )
    return cells, owners


def shares(owners: Owners, students: int) -> Float[np.ndarray, " K"]:
    """The share of every student among texts with these owners."""
    return np.bincount(owners, minlength=students) / max(1, len(owners))


# ------------------------------------------------------------------------------------------- cuts


def check_cuts(students: int) -> int:
    """Returns log2 K; raises `ConfigError` where K is no power of two."""
    depth = students.bit_length() - 1
    if students != 2**depth:
        raise ConfigError(
            f"students.count={students} is no power of two, and every cut at medians halves all "
            "cells. Use 2, 4, 8, ... students of texts, or text_split='clusters'."
        )
    return depth


def _fit_cuts(students: int, captions: Captions, principal: bool) -> tuple[Cuts, Owners]:
    depth = check_cuts(students)
    if principal:
        axes = _principal_axes(captions.sample()[1], depth)
    else:
        width = captions.embed(np.arange(1)).shape[1]
        axes = np.eye(depth, width, dtype=np.float32)
    if len(axes) < depth:
        raise ConfigError(
            f"students.count={students} needs {depth} axes, and embeddings have {len(axes)}."
        )
    scores = np.concatenate([_scores(x, axes) for x in captions.chunks()])
    thresholds = np.zeros((depth, max(1, students // 2)), np.float32)
    cells = np.zeros(captions.count, np.int64)
    for j in range(depth):
        for cell in range(2**j):
            thresholds[j, cell] = _median(scores[cells == cell, j])
        cells = 2 * cells + (scores[:, j] > thresholds[j][cells])
    return Cuts(jnp.asarray(axes), jnp.asarray(thresholds)), cells


def _scores(pooled: Embeddings, axes: Float[np.ndarray, "d D"]) -> Float[np.ndarray, "n d"]:
    return np.asarray(pooled @ axes.T, np.float32)


def _principal_axes(points: Embeddings, count: int) -> Float[np.ndarray, "d D"]:
    """Directions of the largest variance, the largest entry of each above 0."""
    centred = np.asarray(points, np.float64) - points.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors.T[::-1][:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axes * np.sign(largest), np.float32)


def _median(values: Float[np.ndarray, " n"]) -> np.float32:
    """A number with half of the values above it, and half of them, or one more, not above it."""
    if not len(values):
        return np.float32(0.0)
    place = (len(values) + 1) // 2
    if place == len(values):
        return np.float32(values[0])
    ordered = np.partition(values, (place - 1, place))
    below, above = ordered[place - 1], ordered[place]
    middle = np.float32(0.5 * (np.float64(below) + np.float64(above)))
    # Between neighbouring floats there is none: `below` itself is not above it.
    return middle if middle < above else np.float32(below)


# ----------------------------------------------------------------------------------- power diagrams


def _fit_clusters(students: int, captions: Captions) -> PowerDiagram:
    """Balanced k-means: centres and biases in turn, until no caption changes its cell."""
    _, points = captions.sample()
    x = np.asarray(points, np.float64)
    middle = x.mean(axis=0)
    x = x - middle
    centres = x[spread_out(x, students, np.random.default_rng(captions.seed))]
    sizes = np.diff(np.arange(students + 1) * len(x) // students)
    biases, owners = np.zeros(students), np.full(len(x), -1)
    for _ in range(_ROUNDS):
        biases, new = _balanced(_costs(x, centres), sizes, biases)
        if np.array_equal(new, owners):
            break
        owners = new
        centres = np.stack([x[owners == k].mean(axis=0) for k in range(students)])
    else:  # the biases are those of earlier centres
        biases, _ = _balanced(_costs(x, centres), sizes, biases)
    return _diagram(centres + middle, biases)


def _fit_listed(students: int, captions: Captions) -> PowerDiagram:
    """Cells around the means of given groups, of the sizes of the groups."""
    assert captions.groups is not None
    rows, points = captions.sample()
    groups = captions.groups[rows]
    sizes = np.bincount(groups, minlength=students)
    if not sizes.all():
        raise ConfigError(
            f"students: no caption of group {int(np.argmin(sizes))} is in the sample of "
            f"{len(rows)} captions. Use fewer groups."
        )
    x = np.asarray(points, np.float64)
    middle = x.mean(axis=0)
    x = x - middle
    centres = np.stack([x[groups == k].mean(axis=0) for k in range(students)])
    biases, _ = _balanced(_costs(x, centres), sizes, np.zeros(students))
    return _diagram(centres + middle, biases)


def _diagram(centres: Float[np.ndarray, "K D"], biases: Float[np.ndarray, " K"]) -> PowerDiagram:
    return PowerDiagram(jnp.asarray(centres, jnp.float32), jnp.asarray(biases, jnp.float32))


def _costs(x: Float[np.ndarray, "n D"], centres: Float[np.ndarray, "K D"]) -> np.ndarray:
    """`[n, K]` squared distances, less |x|^2, on which no assignment depends."""
    return np.sum(np.square(centres), axis=1) - 2.0 * x @ centres.T


def _balanced(
    costs: Float[np.ndarray, "n K"], sizes: Int[np.ndarray, " K"], biases: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], Owners]:
    """Biases with which cells have given sizes, and the cell of every point.

    The dual of the assignment of least cost with these sizes is concave in the biases. One bias at
    a time is set to its maximum, which is where its cell has its size; with all sizes right, the
    assignment is the cheapest one.
    """
    biases = biases.copy()
    for _ in range(_BALANCING):
        reduced = costs - biases
        owners = reduced.argmin(axis=1)
        off = np.bincount(owners, minlength=len(sizes)) - sizes
        if not off.any():
            break
        k = int(np.abs(off).argmax())
        reduced[:, k] = np.inf
        # A point is in cell k where the bias is above what it would cost more than elsewhere.
        needed = np.partition(costs[:, k] - reduced.min(axis=1), (sizes[k] - 1, sizes[k]))
        biases[k] = 0.5 * (needed[sizes[k] - 1] + needed[sizes[k]])
    biases -= biases.mean()
    return biases, (costs - biases).argmin(axis=1)
