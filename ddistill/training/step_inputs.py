"""What a train step is given, and the batch that it makes of images and conditions."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array

from ddistill.conditions import Tokens, null_like
from ddistill.data import random_flip, to_unit
from ddistill.data.encodings import EncoderFacts
from ddistill.data.latents.posterior import draw_latents
from ddistill.networks.latent_encoding import LatentEncoder
from ddistill.networks.text_encoding import TextEncoder
from ddistill.objectives import Batch, LevelTables, Objective
from ddistill.objectives.inputs import Pairs
from ddistill.objectives.parts import Bound
from ddistill.objectives.sampling import draw_pair
from ddistill.runtime.rng import named_keys
from ddistill.runtime.sharding import Layout, constrain, over_data
from ddistill.typing import Labels, Params


@struct.dataclass
class StepInputs:
    """What a step reads and never changes.

    Attributes:
      teacher: the teacher network, or None.
      tables: the levels of the stage.
      classifier: the network whose features are compared, or None.
      pairs: all pairs of the stage, of which every batch draws some, or None.
      text_encoder: the encoder of the captions; None for classes, and for a network that learns its
        text encoder.
      latent_encoder: the encoder of the images; None for networks that see what the data have.
      bases: by name of a network of low rank, the frozen parameters that it adapts, which all
        students share; a network that is not listed adapts the teacher's.
    """

    teacher: Bound
    tables: LevelTables
    classifier: Bound = None
    pairs: Pairs | None = None
    text_encoder: TextEncoder | None = None
    latent_encoder: LatentEncoder | None = None
    bases: Mapping[str, Params] = struct.field(default_factory=dict)


# The vmap axes of `StepInputs` in a stage of many students.
STEP_INPUT_AXES = StepInputs(teacher=None, tables=0, bases=None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepSettings:
    """The static part of a train step.

    Attributes:
      objective: the method.
      modules: Linen module by network name.
      prediction: prediction type of the networks.
      optimizers: by network name.
      accumulate: gradients of this many equal parts of the batch are averaged.
      ema_warmup: see `update_ema`.
      conditional: whether networks are given labels.
      flip: whether images are mirrored at random.
      unroll: True runs accumulation as straight code (CPU), False as a scan.
      layout: devices over which weights and batches are spread; None leaves them where they are.
      freeze: whether a student of many whose loss is no longer finite is left as it was.
      image_shape: (H, W, C), for objectives that learn from noise alone.
      encoder: what made the images, where the data are moments or latents.
      null_tokens: the token ids of the empty text, for networks that read texts; () for others.
      low_rank: the networks of which the parameters are factors for a base.
    """

    objective: Objective
    modules: Mapping[str, nn.Module]
    prediction: str
    optimizers: Mapping[str, optax.GradientTransformation]
    accumulate: int = 1
    ema_warmup: bool = True
    conditional: bool = False
    flip: bool = False
    unroll: bool = True
    layout: Layout | None = None
    freeze: bool = False
    image_shape: tuple[int, int, int] = (0, 0, 0)
    encoder: EncoderFacts | None = None
    null_tokens: tuple[int, ...] = ()
    low_rank: tuple[str, ...] = ()


def make_batch(
    s: StepSettings,
    images: Array | None,
    conditions: Labels | tuple[Labels, Tokens],
    key: Array,
) -> Batch:
    """Normalises and flips images, or draws latents; every example gets its own random key."""
    flip_key, loss_key = jax.random.split(key)
    labels, tokens = conditions if isinstance(conditions, tuple) else (conditions, None)
    count = labels.shape[0]
    keys = jax.random.split(loss_key, count)
    if images is None:
        x = jnp.zeros((count, *s.image_shape))
    elif s.encoder is not None:
        x = draw_latents(named_keys(keys, "posterior"), images, s.encoder)
    else:
        x = to_unit(images)
    if s.flip and images is not None:
        x = random_flip(jax.random.split(flip_key, count), x)
    if tokens is None:
        return spread(s, Batch(x, labels, labels if s.conditional else None, keys))
    null = Tokens(jnp.broadcast_to(jnp.asarray(s.null_tokens, jnp.int32), tokens.ids.shape))
    return spread(s, Batch(x, labels, tokens, keys, null=null))


def with_texts(s: StepSettings, batch: Batch, encoder: TextEncoder) -> Batch:
    """The batch with its texts as the encoder reads them."""
    assert isinstance(batch.cond, Tokens)
    assert isinstance(batch.null, Tokens)
    cond, empty = encoder(batch.cond.ids), encoder(batch.null.ids[:1])
    null = null_like(cond, empty)
    return spread(s, dataclasses.replace(batch, cond=cond, null=null))


def with_latents(s: StepSettings, batch: Batch, encoder: LatentEncoder) -> Batch:
    """The batch with latents in place of its images."""
    latents = encoder(batch.key("posterior"), batch.image)
    return spread(s, dataclasses.replace(batch, image=latents))


def with_pairs(s: StepSettings, batch: Batch, inputs: StepInputs) -> Batch:
    """The batch with as many pairs, drawn by the keys of its examples, and their texts encoded."""
    pairs, tables = inputs.pairs, inputs.tables
    assert pairs is not None
    own = bool(s.objective.requires.own_pairs)
    rows = draw_pair(batch.key("pairs"), len(pairs.label), tables, own)
    drawn = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), pairs)
    if inputs.text_encoder is not None and isinstance(drawn.text, Tokens):
        drawn = dataclasses.replace(drawn, text=inputs.text_encoder(drawn.text.ids))
    return spread(s, dataclasses.replace(batch, pairs=drawn))


def spread(s: StepSettings, batch: Batch, axis: int = 0) -> Batch:
    """Asks for dimension `axis` of the batch to be spread over the mesh."""
    return batch if s.layout is None else constrain(batch, over_data(s.layout.mesh, axis))
