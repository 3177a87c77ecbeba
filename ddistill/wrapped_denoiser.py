"""Denoisers made of a denoiser: guided by a null condition, or with bounded x0."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from ddistill.conditions import Condition, Null, null_like
from ddistill.denoiser import DenoiserWithFeatures, NetworkDenoiser
from ddistill.diffusion import Prediction, clip_x0, expand
from ddistill.schedules import Level
from ddistill.typing import Features, Images, Params, RandomKey

N = TypeVar("N", bound=NetworkDenoiser)


def with_guidance(denoiser: N, scale: Array | float, null: Null) -> "N | GuidedDenoiser":
    """The denoiser itself where the scale is the number 1, else a `GuidedDenoiser`.

    Args:
      denoiser: a conditional denoiser.
      scale: a number, or `[B]` scales.
      null: the condition that stands for none: a class id, or a condition of 1 or B examples.
    """
    null = np.int32(null) if isinstance(null, int) else null
    if isinstance(scale, jax.Array):
        return GuidedDenoiser(denoiser, scale, null)
    return denoiser if scale == 1.0 else GuidedDenoiser(denoiser, np.float32(scale), null)


@struct.dataclass
class WrappedDenoiser:
    """Base of the denoisers that change the inputs or the predictions of another one.

    Attributes:
      denoiser: the other one.
    """

    denoiser: NetworkDenoiser

    @property
    def prediction(self) -> str:
        """The prediction type."""
        return self.denoiser.prediction

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the scalars that the network is given beside its time."""
        return self.denoiser.extras

    def given(self, **values: Array | float) -> Self:
        """Returns the same with values of extra inputs; arguments and errors as of `Denoiser`."""
        return replace(self, denoiser=self.denoiser.given(**values))

    def __call__(
        self,
        z: Images,
        level: Level,
        cond: Condition | None = None,
        *,
        key: RandomKey | None = None,
    ) -> Prediction:
        """Predicts x0 and eps; arguments as of `Denoiser`."""
        return self._changed(self.denoiser(*self._inputs(z, level, cond), key=key), z, level)

    def with_features(self, taps: Sequence[str]) -> DenoiserWithFeatures:
        """The same, returning (prediction, {tap: features}) with the features of the examples."""
        denoiser = self.denoiser.with_features(taps)

        def call(
            z: Images, level: Level, cond: Condition | None = None, *, key: RandomKey | None = None
        ) -> tuple[Prediction, Features]:
            found, features = denoiser(*self._inputs(z, level, cond), key=key)
            own = {tap: x[: z.shape[0]] for tap, x in features.items()}
            return self._changed(found, z, level), own

        return call

    def _inputs(
        self, z: Images, level: Level, cond: Condition | None
    ) -> tuple[Images, Level, Condition | None]:
        """The inputs of the other denoiser, the examples themselves first."""
        return z, level, cond

    def _changed(self, found: Prediction, z: Images, level: Level) -> Prediction:
        """The prediction at `z` from that of the other denoiser at `_inputs`."""
        raise NotImplementedError(f"{type(self).__name__} does not define its prediction.")


@struct.dataclass
class GuidedDenoiser(WrappedDenoiser):
    """A conditional denoiser with classifier-free guidance (arXiv 2207.12598 eq. 6).

    x0 = x0(null) + scale (x0(cond) - x0(null)), and eps likewise. One call evaluates the network
    once on twice the batch. Calls without conditions raise `ValueError`.

    Attributes:
      denoiser: the conditional denoiser.
      scale: `[]` or `[B]`: 1 is no guidance, 0 no condition; above 1 extrapolates away from the
        null condition.
      null: the condition that stands for none: a class id, or a condition of 1 or B examples.
    """

    scale: Array | np.float32 | float
    null: Null

    def given(self, **values: Array | float) -> Self:
        """Returns the same with values of extra inputs; arguments and errors as of `Denoiser`."""
        return super().given(
            **{k: jnp.tile(jnp.asarray(v), 2) if jnp.ndim(v) else v for k, v in values.items()}
        )

    def _inputs(
        self, z: Images, level: Level, cond: Condition | None
    ) -> tuple[Images, Level, Condition]:
        """The batch twice, with its conditions and then with the null condition."""
        if cond is None:
            raise ValueError(f"Guidance of scale {self.scale} needs conditions; cond is None.")
        count = z.shape[0]
        cond = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x)[1:])), cond)
        levels = jax.tree.map(lambda x: jnp.tile(jnp.broadcast_to(x, (count,)), 2), level)
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null_like(cond, self.null))
        return jnp.concatenate([z, z]), levels, both

    def _changed(self, found: Prediction, z: Images, level: Level) -> Prediction:
        """The guided prediction from those with the conditions and with the null condition."""
        count = z.shape[0]
        scale = expand(jnp.asarray(self.scale), z)
        return jax.tree.map(lambda x: x[count:] + scale * (x[:count] - x[count:]), found)


def network_params(denoiser: NetworkDenoiser) -> Params:
    """The parameters of a network, also of a wrapped one."""
    while isinstance(denoiser, WrappedDenoiser):
        denoiser = denoiser.denoiser
    return denoiser.params  # type: ignore[attr-defined]


@struct.dataclass
class ClippedDenoiser(WrappedDenoiser):
    """A denoiser with x0 clipped to the range of the data, and eps derived anew.

    Attributes:
      denoiser: the denoiser.
      bound: on |x0|.
    """

    bound: float = struct.field(pytree_node=False, default=1.0)

    def _changed(self, found: Prediction, z: Images, level: Level) -> Prediction:
        """The clipped prediction."""
        return clip_x0(found, z, level, self.bound)
