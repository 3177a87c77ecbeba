"""Variational diffusion distillation in the plane: a teacher's score into K Gaussian experts.

    python benchmarks/vdd_toy.py
    python benchmarks/vdd_toy.py --without-responsibilities

VDD (arXiv 2406.12538) distils a diffusion policy into a mixture of Gaussians. Its toy has no state:
the teacher is the diffusion of a mixture of 8 Gaussians in the plane, and the student is a mixture
of K Gaussians with full covariances. The teacher is used through its denoiser alone: its score at
one noise level, lowered during the training, and samples that DDIM makes of it for the gate.

The divergence KL(student || teacher) of a mixture is bounded by one term for each expert,

    E_a [log p(a) + log q(k | a)] + entropy of expert k,     a from expert k,

which is tight where the responsibilities q(k | a) are those of the student itself. An E step takes
them from the current student as constants, an M step is a gradient step of every expert, with the
score times a in place of log p(a), and the gate moves to the mean responsibilities of the teacher's
samples. Prints a Markdown table; docs/vdd_toy.md has it, measured on two CPU cores.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float
from timing import machine, print_table

from ddistill.diffusion import Prediction, expand, from_x0
from ddistill.samplers import ddim
from ddistill.schedules import Level, karras

SCHEDULE = karras(64, sigma_min=0.02, sigma_max=20.0)
MODES = 8
MEASURES = ("KL(student, teacher)", "KL(teacher, student)", "modes")
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
      counts: values of K.
      steps: of the training; each is an E and an M step.
      samples: of every expert in a step.
      bank: teacher's samples, for the gate.
      measured: points for each divergence.
      noise: first and last noise level of the score; it falls geometrically over two thirds of the
        steps.
      rate: Adam's learning rate, which falls to 0 as a cosine.
      gate_rate: share of the new mean responsibilities in the gate, in a step.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    steps: int = 2000
    samples: int = 32
    bank: int = 2**10
    measured: int = 2**15
    noise: tuple[float, float] = (0.5, 0.05)
    rate: float = 2e-2
    gate_rate: float = 0.02


FULL = Size()
QUICK = Size(counts=(1, 8), steps=400, samples=16, bank=2**8, measured=2**12)


# --------------------------------------------------------------------------------- mixtures


@struct.dataclass
class Mixture:
    """A mixture of Gaussians in D dimensions.

    Attributes:
      weights: `[K]` logits of the components' shares.
      means: `[K, D]`.
      factors: `[K, D, D]` lower triangular; entry (i, i) is the logarithm of the standard
        deviation of dimension i given the dimensions before it.
    """

    weights: Float[Array, " K"]
    means: Float[Array, "K D"]
    factors: Float[Array, "K D D"]

    @property
    def cholesky(self) -> Float[Array, "K D D"]:
        """The Cholesky factors of the covariances."""
        scale = jnp.exp(jnp.diagonal(self.factors, axis1=-2, axis2=-1))
        return jnp.tril(self.factors, -1) + scale[..., None] * jnp.eye(scale.shape[-1])

    @property
    def entropies(self) -> Float[Array, " K"]:
        """Of the components, in nats."""
        spread = jnp.trace(self.factors, axis1=-2, axis2=-1)
        return spread + 0.5 * self.means.shape[-1] * (1.0 + LOG_2PI)

    def log_components(self, a: Float[Array, "B D"]) -> Float[Array, "B K"]:
        """The logarithm of share times density of every component."""
        identity = jnp.broadcast_to(jnp.eye(a.shape[-1]), self.factors.shape)
        inverse = jax.scipy.linalg.solve_triangular(self.cholesky, identity, lower=True)
        white = jnp.einsum("kij,bkj->bki", inverse, a[:, None] - self.means)
        size = jnp.trace(self.factors, axis1=-2, axis2=-1) + 0.5 * a.shape[-1] * LOG_2PI
        return jax.nn.log_softmax(self.weights) - 0.5 * jnp.sum(white**2, axis=-1) - size

    def log_density(self, a: Float[Array, "B D"]) -> Float[Array, " B"]:
        """Of points."""
        return jax.nn.logsumexp(self.log_components(a), axis=-1)

    def log_responsibilities(self, a: Float[Array, "B D"]) -> Float[Array, "B K"]:
        """log q(k | a)."""
        return jax.nn.log_softmax(self.log_components(a), axis=-1)

    def from_components(self, noise: Float[Array, "N K D"]) -> Float[Array, "N K D"]:
        """Points of every component, made of standard normal noise."""
        return self.means + jnp.einsum("kij,nkj->nki", self.cholesky, noise)

    def sample(self, key: Array, count: int) -> Float[Array, "N D"]:
        """Points of the mixture."""
        which, draw = jax.random.split(key)
        k = jax.random.categorical(which, self.weights, shape=(count,))
        noise = jax.random.normal(draw, (count, *self.means.shape))
        return self.from_components(noise)[jnp.arange(count), k]


@struct.dataclass
class Teacher:
    """The exact denoiser of a mixture: all that the distillation sees of it.

    Attributes:
      data: the mixture.
      axes, variances: `[K, D, D]` and `[K, D]`, the eigenvectors (columns) and eigenvalues of its
        covariances.
    """

    data: Mixture
    axes: Float[Array, "K D D"]
    variances: Float[Array, "K D"]

    @classmethod
    def of(cls, data: Mixture) -> "Teacher":
        """The denoiser of a mixture."""
        factor = data.cholesky
        variances, axes = jnp.linalg.eigh(factor @ jnp.swapaxes(factor, -1, -2))
        return cls(data, axes, variances)

    def __call__(self, z: Array, level: Level, cond: Array | None = None) -> Prediction:
        """The posterior mean of the clean points `[B, D]`."""
        del cond
        alpha = jnp.broadcast_to(level.alpha, z.shape[:1])[:, None, None]
        sigma = jnp.broadcast_to(level.sigma, z.shape[:1])[:, None, None]
        noisy = alpha**2 * self.variances + sigma**2
        apart = jnp.einsum("kij,bki->bkj", self.axes, z[:, None] - alpha * self.data.means)
        log = self.data.weights - 0.5 * jnp.sum(apart**2 / noisy + jnp.log(noisy), axis=-1)
        moved = jnp.einsum("kij,bkj->bki", self.axes, alpha * self.variances * apart / noisy)
        x0 = jnp.einsum("bk,bki->bi", jax.nn.softmax(log), self.data.means + moved)
        return from_x0(x0, z, level)


def score(teacher: Callable[..., Prediction], a: Float[Array, "B D"], sigma: Array) -> Array:
    """The gradient of log p at noise `sigma`: -eps / sigma."""
    level = Level(jnp.ones(len(a)), jnp.full(len(a), sigma), jnp.log(sigma) / 4 * jnp.ones(len(a)))
    return -teacher(a, level).eps / expand(level.sigma, a)


def make_data() -> Mixture:
    """Eight long Gaussians on a circle of radius 2 with unequal shares."""
    angle = 2 * np.pi * np.arange(MODES) / MODES
    means = 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    turn = angle + 0.9
    axes = np.stack([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(
        2, 0, 1
    )
    factor = np.linalg.cholesky(axes @ np.diag([0.4**2, 0.15**2]) @ axes.transpose(0, 2, 1))
    diagonal = np.diagonal(factor, axis1=-2, axis2=-1)
    logs = np.tril(factor, -1) + np.log(diagonal)[..., None] * np.eye(2)
    weights = np.log(np.where(np.arange(MODES) % 2, 1.0, 2.0))
    return Mixture(*(jnp.asarray(x, jnp.float32) for x in (weights, means, logs)))


# ------------------------------------------------------------------------------------ training


def fresh(key: Array, count: int) -> Mixture:
    """A student of `count` wide experts of equal shares."""
    means = jax.random.normal(key, (count, 2))
    return Mixture(jnp.zeros(count), means, jnp.zeros((count, 2, 2)))


def bound(
    experts: Mixture, old: Mixture, scores: Callable[[Array], Array], noise: Array, em: bool
) -> Array:
    """The negative bound of all experts, weighted by their shares.

    Args:
      experts: the student; gradients go through its means and factors.
      old: the student of the E step, a constant.
      scores: points `[B, D]` -> the teacher's scores there.
      noise: `[N, K, D]`, standard normal.
      em: whether the term of the responsibilities is taken.
    """
    n, count, size = noise.shape
    a = experts.from_components(noise)
    flat = a.reshape(-1, size)
    direction = jax.lax.stop_gradient(scores(flat))
    values = jnp.sum(direction * flat, axis=-1).reshape(n, count)
    if em:
        own = old.log_responsibilities(flat).reshape(n, count, count)
        values = values + jnp.diagonal(own, axis1=-2, axis2=-1)
    share = jax.nn.softmax(old.weights)
    return -jnp.sum(share * (jnp.mean(values, axis=0) + experts.entropies))


@partial(jax.jit, static_argnames=("count", "size", "em"))
def distill(
    teacher: Teacher, bank: Array, key: Array, count: int, size: Size, em: bool = True
) -> Mixture:
    """A student of `count` experts.

    Args:
      teacher: whose score it is given.
      bank: `[B, D]`, the teacher's samples.
      key: of the initial experts and of all draws.
      count: K.
      size: how much.
      em: see `bound`.
    """
    student = fresh(jax.random.fold_in(key, 0), count)
    optimizer = optax.adam(optax.cosine_decay_schedule(size.rate, size.steps))
    first, last = size.noise

    def step(carry: tuple[Mixture, optax.OptState], i: Array):
        student, memory = carry
        progress = jnp.minimum(1.5 * i / size.steps, 1.0)
        scores = partial(score, teacher, sigma=first * (last / first) ** progress)
        noise = jax.random.normal(jax.random.fold_in(key, i + 1), (size.samples, count, 2))
        gradient = jax.grad(bound)(student, student, scores, noise, em)
        changes, memory = optimizer.update(gradient, memory)
        moved = optax.apply_updates(student, changes)
        mean = jnp.mean(jnp.exp(student.log_responsibilities(bank)), axis=0)
        gate = (1 - size.gate_rate) * jax.nn.softmax(student.weights) + size.gate_rate * mean
        return (moved.replace(weights=jnp.log(gate)), memory), None

    begin = (student, optimizer.init(student))
    (student, _), _ = jax.lax.scan(step, begin, jnp.arange(size.steps))
    return student


def teach(teacher: Teacher, count: int) -> Array:
    """Samples that DDIM makes of the teacher."""
    noise = np.asarray(jax.random.normal(jax.random.key(99), (count, 2)))
    return jnp.asarray(ddim(teacher, SCHEDULE, noise, loop="scan"))


# ----------------------------------------------------------------------------------- measuring


@partial(jax.jit, static_argnames=("count",))
def measure(data: Mixture, student: Mixture, key: Array, count: int) -> Float[Array, " 3"]:
    """`MEASURES`: two divergences in nats, and the modes with at least half of their share."""
    own, theirs = jax.random.split(key)
    a, b = student.sample(own, count), data.sample(theirs, count)
    reverse = jnp.mean(student.log_density(a) - data.log_density(a))
    forward = jnp.mean(data.log_density(b) - student.log_density(b))
    found = jnp.mean(jnp.exp(data.log_responsibilities(a)), axis=0)
    covered = jnp.sum(found >= 0.5 * jax.nn.softmax(data.weights))
    return jnp.stack([reverse, forward, covered.astype(jnp.float32)])


def run(seeds: Sequence[int], size: Size, em: bool = True) -> np.ndarray:
    """`[K, seed, measure]` of the students of all K and seeds."""
    data = make_data()
    teacher = Teacher.of(data)
    bank = teach(teacher, size.bank)
    found = np.zeros((len(size.counts), len(seeds), len(MEASURES)))
    for i, count in enumerate(size.counts):
        for j, seed in enumerate(seeds):
            student = distill(teacher, bank, jax.random.key(seed), count, size, em)
            found[i, j] = measure(data, student, jax.random.key(1000), size.measured)
    return found


def table(found: np.ndarray, counts: Sequence[int]) -> list[list[str]]:
    """Mean and standard deviation over seeds, the heading first."""
    spread = found.std(axis=1, ddof=min(1, found.shape[1] - 1))
    mean = found.mean(axis=1)
    rows = [["K", *MEASURES]]
    for i, count in enumerate(counts):
        cells = [f"{mean[i, m]:.3f} ± {spread[i, m]:.3f}" for m in range(2)]
        rows.append([str(count), *cells, f"{mean[i, 2]:.1f} ± {spread[i, 2]:.1f}"])
    return rows


def main(argv: Sequence[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="K = 1, 8 and less training")
    parser.add_argument(
        "--without-responsibilities",
        action="store_true",
        help="every expert follows the score alone",
    )
    args = parser.parse_args(argv)
    size, start = QUICK if args.quick else FULL, time.perf_counter()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    found = run(seeds, size, not args.without_responsibilities)
    print(f"{machine()}; {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(f"seeds {args.seeds}, {size}\n")
    print_table(table(found, size.counts), True)
    return found


if __name__ == "__main__":
    main()
