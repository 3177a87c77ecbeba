"""RDD: progressive distillation that compares how the pixels of feature maps relate to each other.

Source: arXiv 2410.07679 (relational diffusion distillation) and its released code. The target is
PD's; it is compared in the features of a classifier (CFD) and in two ways that see relations and
not features. Both take the classifier's final map and the cosines of its pixels: intra-sample
relations are those between the pixels of every two images of a batch, memory relations those to
pixels of earlier batches, which a queue keeps.

The released code cuts the rows of its queue from maps whose channels come first without moving
these last, so that a row is no pixel. Here a row is the features of one pixel.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PyTree

from ddistill.errors import ConfigError
from ddistill.networks.classifier import FINAL_MAP
from ddistill.networks.relation_head import RelationHead
from ddistill.networks.weights import Weights
from ddistill.objectives.base import filled_in
from ddistill.objectives.distillation import Compared
from ddistill.objectives.inputs import Batch
from ddistill.objectives.parts import (
    Auxiliary,
    ImageShape,
    LossAux,
    Memory,
    NetworkForm,
    Networks,
    Requirements,
    StageFacts,
    Taps,
)
from ddistill.objectives.progressive import Progressive
from ddistill.typing import Features, Index, Keys, Metrics, PerExample, RandomKey

_HEAD, _QUEUE, _WRITTEN, _NEXT = "relation_head", "queue", "queue_written", "queue_next"
_RELATIONS = ("intra", "memory")
Maps = Float[Array, "B h w D"]
Rows = Float[Array, "N D"]


@struct.dataclass
class BoundHead:
    """The student's head and its weights; calling it returns the output and new statistics."""

    weights: Weights
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, maps: Maps) -> tuple[Maps, PyTree]:
        """The output `[B, h, w, D]`, and the batch norm's running statistics after it."""
        out: Any = self.module.apply(self.weights.variables(), maps, mutable=["batch_stats"])
        return out[0], out[1]["batch_stats"]


def _head_form(shape: tuple[int, ...]) -> NetworkForm:
    def maps(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
        del image_shape, conditional
        return (jnp.zeros((1, *shape)),)

    def bind(module: nn.Module, weights: Weights, prediction: str) -> BoundHead:
        del prediction
        return BoundHead(weights, module)

    return NetworkForm("denoiser", maps, bind)


@dataclass(frozen=True)
class RDD(Progressive):
    """RDD (arXiv 2410.07679): relations between the pixels of feature maps, on PD's target.

    The head "relation_head" is trained beside the student and not handed on; its released optimiser
    is Adam at 5e-5 without schedule and clipping (the stage's `optimizers`).

    Attributes:
      intra_weight: weight of the intra-sample relations (lambda_1).
      memory_weight: weight of the memory relations (lambda_2); 0 leaves out queue and head.
      queue_rows: pixels in the queue.
      rows_per_step: pixels of the target's maps that every step writes, over the oldest ones.
      contrast_rows: pixels of the queue, evenly spaced, that a step compares with.
      contrast_temperature: the similarities to them are divided by this.
      map_shape: (h, w, D) of the classifier's final map.
    """

    classifier_weight: float = 1.0
    pixel_weight: float = 0.0
    intra_weight: float = 1.0
    memory_weight: float = 0.1
    queue_rows: int = 20_000
    rows_per_step: int = 128
    contrast_rows: int = 4096
    contrast_temperature: float = 0.1
    map_shape: tuple[int, ...] = filled_in((0, 0, 1))

    def __post_init__(self):
        super().__post_init__()
        for name, highest in (
            ("queue_rows", None),
            ("rows_per_step", self.queue_rows),
            ("contrast_rows", self.queue_rows),
        ):
            value = getattr(self, name)
            if value < 1 or (highest is not None and value > highest):
                most = "or more" if highest is None else f"to queue_rows={highest}"
                raise ConfigError(f"objective.{name}={value} must be 1 {most}.")
        if not self.contrast_temperature > 0:
            raise ConfigError(
                f"objective.contrast_temperature={self.contrast_temperature} must be above 0."
            )

    def all_terms(self) -> tuple[str, ...]:
        """Those of PD, and the relations."""
        return (*super().all_terms(), *_RELATIONS)

    def _target_of(self, name: str) -> str:
        return "target" if name in _RELATIONS else super()._target_of(name)

    @property
    def requires(self) -> Requirements:
        """The classifier for the relations, and the whole batch for those between its images."""
        found = super().requires
        used = [f"{name}_weight" for name in _RELATIONS if name in self.terms()]
        if not used:
            return found
        whole = "the intra-sample relations are between all images of a batch"
        return dataclasses.replace(
            found,
            classifier=found.classifier or f"objective.{used[0]} is above 0",
            whole_batch=found.whole_batch or (whole if self.intra_weight else ""),
        )

    @property
    def taps(self) -> Taps:
        """The classifier's final map."""
        used = (FINAL_MAP,) if self.intra_weight or self.memory_weight else ()
        return dataclasses.replace(super().taps, classifier=used)

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The head of the student's maps."""
        if not self.memory_weight:
            return super().auxiliaries
        head = Auxiliary(_head_form(self.map_shape), RelationHead(self.map_shape[-1]))
        return {**super().auxiliaries, _HEAD: head}

    @property
    def memory(self) -> Mapping[str, Memory]:
        """The queue, the row that is written next, and the rows written so far."""
        if not self.memory_weight:
            return super().memory
        queue = Memory((self.queue_rows, self.map_shape[-1]), start=_random_rows)
        counts = {name: Memory((), "int32") for name in (_NEXT, _WRITTEN)}
        return {**super().memory, _QUEUE: queue, **counts}

    def prepare(self, facts: StageFacts) -> Self:
        """Notes the shape of the classifier's map; refuses a queue that the stage cannot fill."""
        own, features = super().prepare(facts), facts.networks.classifier_features
        if features:
            own = dataclasses.replace(own, map_shape=tuple(features[FINAL_MAP]))
        if self.memory_weight and facts.steps:
            own._check_queue(facts)
        return own

    def _check_queue(self, facts: StageFacts) -> None:
        height, width, _ = self.map_shape
        pixels = facts.batch_size * height * width
        if self.rows_per_step > pixels:
            raise ConfigError(
                f"objective.rows_per_step={self.rows_per_step}, but the classifier's maps of a "
                f"batch of {facts.batch_size} have {height} x {width} pixels each, {pixels} in "
                f"all. Allowed: 1 to {pixels}."
            )
        written = facts.steps * self.rows_per_step
        if self.queue_rows > written:
            raise ConfigError(
                f"objective.queue_rows={self.queue_rows}, but {facts.steps} train steps of "
                f"rows_per_step={self.rows_per_step} write {written} rows: the queue would keep "
                f"random ones. Allowed: 1 to {written}."
            )

    def inert_hparams(self) -> tuple[str, ...]:
        """The queue's, where there is none."""
        queue = ("queue_rows", "rows_per_step", "contrast_rows", "contrast_temperature")
        return (*super().inert_hparams(), *(() if self.memory_weight else queue))

    # ------------------------------------------------------------------------------- the terms

    def classifier_terms(
        self, networks: Networks, found: Compared, batch: Batch
    ) -> tuple[dict[str, PerExample], Metrics, LossAux]:
        """The terms of the classifier's features and maps, from one call for each image."""
        if not self.taps.classifier:
            return super().classifier_terms(networks, found, batch)
        classify = networks["classifier"].with_features
        target = found.targets["target"].x0
        _, wanted, theirs = jax.lax.stop_gradient(classify(target, self.taps.classifier))
        logits, features, ours = classify(found.student.x0, self.taps.classifier)
        terms: dict[str, PerExample] = {}
        metrics: dict[str, Array] = {}
        aux = LossAux()
        if self.classifier_weight:
            terms["classifier"], own = self.divergence_of_features(logits, features, wanted)
            metrics |= own
        if self.intra_weight:
            terms["intra"] = intra_divergence(ours[FINAL_MAP], theirs[FINAL_MAP])
            metrics["intra_distance"] = jnp.mean(terms["intra"])
        if self.memory_weight:
            terms["memory"], own, aux = self._memory_term(networks, ours, theirs, batch)
            metrics |= own
        return terms, metrics, aux

    def _memory_term(
        self, networks: Networks, ours: Features, theirs: Features, batch: Batch
    ) -> tuple[PerExample, Metrics, LossAux]:
        """The memory relations to the queue, into which the target's pixels are written first."""
        projected, statistics = networks[_HEAD](ours[FINAL_MAP])
        wanted = unit(theirs[FINAL_MAP])
        fresh = random_pixels(batch.key("queue"), wanted, self.rows_per_step)
        queue, after = enqueue(batch.memory[_QUEUE], fresh, batch.memory[_NEXT])
        written = jnp.minimum(batch.memory[_WRITTEN] + self.rows_per_step, self.queue_rows)
        contrast = evenly_spaced(queue, self.contrast_rows)
        values = memory_divergence(projected, wanted, contrast, self.contrast_temperature)
        metrics = {
            "memory_distance": jnp.mean(values),
            "queue_filled": written / self.queue_rows,
        }
        memory = {_QUEUE: queue, _NEXT: after, _WRITTEN: written}
        return values, metrics, LossAux(statistics={_HEAD: statistics}, memory=memory)


def unit(maps: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Features of unit length, in float32."""
    maps = maps.astype(jnp.float32)
    # Under the root: a ReLU may leave a pixel with no feature at all, where a norm has no gradient.
    squared = jnp.sum(jnp.square(maps), axis=-1, keepdims=True)
    return maps * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def _divergence(ours: Float[Array, "... N"], wanted: Float[Array, "... N"]) -> Float[Array, "..."]:
    """KL(softmax(wanted) || softmax(ours)) of the last axis."""
    target, student = jax.nn.log_softmax(wanted), jax.nn.log_softmax(ours)
    return jnp.sum(jnp.exp(target) * (target - student), axis=-1)


def intra_divergence(ours: Maps, wanted: Maps) -> PerExample:
    """Intra-sample relations: what the pixels of every image see in every image of the batch.

    For all ordered pairs of images, the cosines of a pixel of the first to the pixels of the second
    are the logits of a distribution; its Kullback-Leibler divergence is averaged over the pixels of
    the first and over all second images, the first itself among them.

    Args:
      ours: the student's maps.
      wanted: the target's.

    Returns:
      One value per first image; at least 0, and 0 for equal maps.
    """

    def logits(maps: Maps) -> Float[Array, "B P B P"]:
        pixels = unit(maps).reshape(maps.shape[0], -1, maps.shape[-1])
        return jnp.einsum("bpc,dqc->bpdq", pixels, pixels)

    return jnp.mean(_divergence(logits(ours), logits(wanted)), axis=(1, 2))


def memory_divergence(ours: Maps, wanted: Maps, rows: Rows, temperature: float) -> PerExample:
    """Memory relations: what the pixels of every image see in rows of the queue.

    Args:
      ours: the student's maps, projected.
      wanted: the target's.
      rows: of unit length.
      temperature: of both distributions.

    Returns:
      The mean divergence over the pixels of each image; at least 0, and 0 for equal maps.
    """

    def logits(maps: Maps) -> Float[Array, "B P N"]:
        pixels = unit(maps).reshape(maps.shape[0], -1, maps.shape[-1])
        return pixels @ rows.T / temperature

    return jnp.mean(_divergence(logits(ours), logits(wanted)), axis=1)


def random_pixels(keys: Keys, maps: Maps, count: int) -> Rows:
    """The features of `count` different pixels of a batch, each equally likely.

    Args:
      keys: `[B]`; every image draws the ranks of its own pixels.
      maps: `[B, h, w, D]`.
      count: at most B h w.
    """
    rows = maps.reshape(-1, maps.shape[-1])
    pixels = rows.shape[0] // maps.shape[0]
    ranks = jax.vmap(lambda key: jax.random.uniform(key, (pixels,)))(keys)
    _, chosen = jax.lax.top_k(ranks.reshape(-1), count)
    return rows[chosen]


def enqueue(queue: Rows, rows: Rows, at: Index) -> tuple[Rows, Index]:
    """The queue with rows written at `at`, and where the next ones are written.

    Where fewer places are left, the rows take the last places of the queue, and writing begins
    again at its start, as in the released code.
    """
    count, size = rows.shape[0], queue.shape[0]
    begin = jnp.minimum(at, size - count)
    written = jax.lax.dynamic_update_slice_in_dim(queue, rows, begin, axis=0)
    return written, jnp.where(begin + count >= size, 0, begin + count).astype(jnp.int32)


def evenly_spaced(queue: Rows, count: int) -> Rows:
    """`count` rows of the queue at even distances, the first one first."""
    return queue[np.arange(count) * queue.shape[0] // count]


def _random_rows(key: RandomKey, shape: tuple[int, ...], dtype: str) -> Array:
    """Normal rows of unit length."""
    return unit(jax.random.normal(key, shape)).astype(dtype)
