"""The smallest network with everything that objectives and train steps look at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddistill.denoiser import Denoiser
from ddistill.diffusion import from_x0
from ddistill.networks.convolution import traced_once
from ddistill.objectives import Batch, LevelTables, make_level_tables
from ddistill.objectives.states import State
from ddistill.schedules import cosine, make_grid

IMAGE = (4, 4, 1)
LECUN = traced_once(nn.initializers.lecun_normal())


class TinyNet(nn.Module):
    """Two layers, time and label conditioning, dropout, and a "last" tap before the final conv.

    Extra inputs have no effect before training.
    """

    out_channels: int = 1
    width: int = 6
    num_classes: int = 0
    dropout: float = 0.0
    extras: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=(), extra=None):
        h = nn.Dense(self.width, kernel_init=LECUN)(x)
        times = jnp.stack([time / 10, jnp.sin(time)], -1)
        h = h + nn.Dense(self.width, kernel_init=LECUN)(times)[:, None, None]
        if self.num_classes:
            h = h + nn.Embed(self.num_classes + 1, self.width)(cond)[:, None, None]
        for i, name in enumerate(self.extras):
            value = jnp.zeros((len(x), 1)) if extra is None else extra[:, i, None]
            embed = nn.Dense(self.width, kernel_init=nn.initializers.zeros, name=f"extra_{name}")
            h = h + embed(value)[:, None, None]
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.tanh(h))
        out = nn.Dense(self.out_channels, kernel_init=LECUN, name="final")(h)
        return (out, {"last": h}) if taps else out


class TinyAutoencoder(nn.Module):
    """Squares of 2x2 pixels to moments and back, by one matrix each."""

    latent_channels: int = 2
    out_channels: int = 1

    def setup(self):
        self.to_moments = nn.Dense(2 * self.latent_channels, kernel_init=LECUN)
        self.to_pixels = nn.Dense(4 * self.out_channels, kernel_init=LECUN)

    def __call__(self, images):
        return self.decode(self.encode(images)[..., : self.latent_channels])

    def encode(self, images):
        count, height, width, channels = images.shape
        squares = images.reshape(count, height // 2, 2, width // 2, 2, channels)
        squares = jnp.moveaxis(squares, 2, 3).reshape(count, height // 2, width // 2, -1)
        return self.to_moments(squares)

    def decode(self, latents):
        count, height, width, _ = latents.shape
        squares = self.to_pixels(latents).reshape(count, height, width, 2, 2, self.out_channels)
        return jnp.moveaxis(squares, 3, 2).reshape(count, 2 * height, 2 * width, -1)


def tiny_params(seed: int = 0, module: TinyNet | None = None):
    # Arrays of their own for each caller: train steps take over the memory of what they are given.
    return jax.tree.map(jnp.array, _tiny_params(seed, module or TinyNet()))


@functools.cache
def _tiny_params(seed: int, module: TinyNet):
    inputs = jnp.zeros((1, *IMAGE)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    return jax.tree.map(np.asarray, module.init(jax.random.key(seed), *inputs)["params"])


def tiny_denoiser(seed: int = 0, prediction: str = "v", module: TinyNet | None = None) -> Denoiser:
    module = module or TinyNet()
    return Denoiser.from_module(module, tiny_params(seed, module), prediction)


def batch(count: int = 6, seed: int = 0, conditional: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    labels = jnp.asarray(rng.integers(0, 3, count), jnp.int32)
    return Batch(
        image=jnp.asarray(rng.uniform(-1, 1, (count, *IMAGE)), jnp.float32),
        label=labels,
        cond=labels if conditional else None,
        keys=jax.random.split(jax.random.key(seed), count),
    )


def tables(steps: int = 32, levels: int = 4, spacing: str = "trailing", time: str = "mapped"):
    schedule = cosine(steps)
    return make_level_tables(schedule, make_grid(schedule, levels, spacing), time)


def state(z, index, tables: LevelTables, teacher=None) -> State:
    """Noisy images at rows `index` of the student's levels, as a method's `target` is given them.

    The clean images behind them are zeros.
    """
    z, index = jnp.asarray(z, jnp.float32), jnp.asarray(index)
    level = tables.student.at(index)
    return State(
        z=z,
        index=index,
        level=level,
        teacher_level=tables.teacher.at(tables.grid[index]),
        cond=None,
        data=from_x0(jnp.zeros_like(z), z, level),
        teacher=teacher,
    )
