"""One- and few-step students as generators: their inputs, and statistics of their images.

A student is a denoiser whose x0 at a level of its grid is an image: at the noisiest level it makes
one from noise, at the others it makes a better one from an image that was noised again.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from ddistill.conditions import Condition
from ddistill.denoiser import DenoiserLike
from ddistill.diffusion import Prediction, add_noise
from ddistill.objectives.distances import ClassifierLike
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import draw_condition, normal, uniform_index
from ddistill.objectives.states import State
from ddistill.runtime.rng import named_keys
from ddistill.schedules import Level
from ddistill.typing import Images, Keys, Metrics, PerExample

BACKWARD = ("none", "data", "rollout")


@struct.dataclass
class GeneratorInput:
    """The input of a student for one image.

    Attributes:
      z: `[B, H, W, C]`.
      level: its noise level, `[B]`.
      cond: `[B]` classes, or None.
    """

    z: Images
    level: Level
    cond: Condition | None


def generate(student: DenoiserLike, given: GeneratorInput) -> Images:
    """The student's images from its inputs."""
    return student(given.z, given.level, given.cond).x0


def initial_input(noise: Images, tables: LevelTables, cond: Condition | None) -> GeneratorInput:
    """The input that sampling starts from: noise at the student's noisiest level."""
    top = tables.student.at(jnp.broadcast_to(tables.count, noise.shape[:1]))
    return GeneratorInput(noise * jnp.maximum(1.0, top.sigma[0]), top, cond)


def generator_input(
    student: DenoiserLike,
    batch: Batch,
    keys: Keys,
    tables: LevelTables,
    backward: str,
    steps: int,
) -> GeneratorInput:
    """The input for every example.

    Args:
      student: for "rollout".
      batch: for "data".
      keys: `[B]`.
      tables: the student's levels and classes.
      backward: source of the noisy images below the noisiest level: "data" adds noise to real
        images, which the student does not see when it samples; "rollout" samples with the student
        down to the level, without gradient (backward simulation, arXiv 2405.14867 section 4.5);
        "none" is for students of one step.
      steps: N, the student's steps.
    """
    noise = normal(named_keys(keys, "noise"), batch.image)
    class_keys, walk_keys = named_keys(keys, "class"), named_keys(keys, "walk")
    if backward == "none":
        return initial_input(noise, tables, draw_condition(class_keys, batch, tables))
    if backward == "data":
        state = data_state(batch, keys, tables)
        return GeneratorInput(state.z, state.level, state.cond)
    index = uniform_index(named_keys(keys, "level"), tables.low, tables.high)
    level = tables.student.at(index)
    now = initial_input(noise, tables, draw_condition(class_keys, batch, tables))
    found = now.z
    for i in range(steps, 1, -1):
        there = tables.student.at(jnp.full_like(index, i - 1))
        fresh = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(walk_keys)
        z = add_noise(generate(student, now), normal(fresh, noise), there)
        now = GeneratorInput(z, there, now.cond)
        found = jnp.where(_like(index == i - 1, z), z, found)
    return GeneratorInput(jax.lax.stop_gradient(found), level, now.cond)


def data_state(batch: Batch, keys: Keys, tables: LevelTables) -> State:
    """Images of the batch, noised; noise alone at the noisiest level. `keys` are `[B]`."""
    noise = normal(named_keys(keys, "noise"), batch.image)
    index = uniform_index(named_keys(keys, "level"), tables.low, tables.high)
    level = tables.student.at(index)
    top = initial_input(noise, tables, batch.cond)
    at_top = _like(index == tables.count, noise)
    return State(
        z=jnp.where(at_top, top.z, add_noise(batch.image, noise, level)),
        index=index,
        level=level,
        teacher_level=tables.teacher.at(tables.grid[index]),
        cond=batch.cond,
        data=Prediction(x0=batch.image, eps=noise),
    )


def _like(flags: Array, images: Array) -> Array:
    return flags.reshape(-1, *(1,) * (images.ndim - 1))


def with_gradient(value: PerExample, image: Images, gradient: Images) -> PerExample:
    """`value` with `gradient` as its derivative with respect to `image`.

    Losses that are given as gradients at the image can so be measured one by one, added up, and
    differentiated through the student once.
    """
    value, gradient = jax.lax.stop_gradient((value, gradient))
    moved = image - jax.lax.stop_gradient(image)
    return value + jnp.sum(gradient * moved, axis=tuple(range(1, image.ndim)))


def root_mean_square(values: Array) -> Array:
    """Root mean square over everything."""
    return jnp.sqrt(jnp.mean(jnp.square(values)))


# Pixels beyond so many times the largest of the data, at least 1, are outside of their range.
SATURATED = 1.1
# Statistics of fewer images are meaningless.
FEWEST = 4


def image_health(images: Images, data: Images, classifier: ClassifierLike | None = None) -> Metrics:
    """Cheap statistics of generated against real images; meaningful for small batches.

    Args:
      images: `[B, H, W, C]`, generated.
      data: `[B, H, W, C]` of the same classes.
      classifier: images -> (logits, features); None compares pixels.

    Returns:
      saturation: the share of pixels beyond `SATURATED` times the largest of the data. Latents have
        no fixed range.
      mean_drift: mean of the pixels minus that of the data's.
      std_ratio: standard deviation of the pixels over that of the data's.
      diversity: variance of features over the batch, over that of the data's; 0 where all images
        are one.
      diagonal_fd: Frechet distance between Gaussians with diagonal covariances in feature space,
        which selects checkpoints; with few images it is above 0 for the data themselves.
      The last two are left out where there are fewer than `FEWEST` images.
    """
    images, data = jax.lax.stop_gradient((images, data))
    bound = SATURATED * jnp.maximum(1.0, jnp.max(jnp.abs(data)))
    pixels = {
        "saturation": jnp.mean((jnp.abs(images) > bound).astype(jnp.float32)),
        "mean_drift": jnp.mean(images) - jnp.mean(data),
        "std_ratio": jnp.std(images) / jnp.maximum(jnp.std(data), 1e-6),
    }
    if len(images) < FEWEST:
        return pixels
    ours, theirs = (
        x.reshape(len(x), -1) if classifier is None else classifier(x)[1] for x in (images, data)
    )
    mean, std = jnp.mean(ours, axis=0), jnp.std(ours, axis=0)
    wanted_mean, wanted_std = jnp.mean(theirs, axis=0), jnp.std(theirs, axis=0)
    spread = jnp.sum(jnp.square(wanted_std))
    return pixels | {
        "diversity": jnp.sum(jnp.square(std)) / jnp.maximum(spread, 1e-12),
        "diagonal_fd": jnp.sum(jnp.square(mean - wanted_mean) + jnp.square(std - wanted_std)),
    }
