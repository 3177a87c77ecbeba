"""A network as samplers and losses see it: `(z, level, cond) -> Prediction`.

Scaling of the input, the time the network is told and the meaning of its output are settled here;
teachers, students and fake scores are all `Denoiser`s, and nothing after them asks what a network
predicts. Any other callable of that form is a denoiser too (`DenoiserLike`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, Key

from ddistill.diffusion import KINDS, Prediction, clip_x0, convert, expand, input_scale
from ddistill.errors import check_choice
from ddistill.schedules import Level
from ddistill.typing import Features, Images, Labels, RandomKey


class DenoiserLike(Protocol):
    """What samplers take: any callable that predicts x0 and eps from noisy images."""

    def __call__(self, z: Images, level: Level, cond: Labels | None = None, /) -> Prediction:
        """Returns the prediction at `z`, whose level is `[]` or `[B]`; class ids or None."""
        ...


class DenoiserWithFeatures(Protocol):
    """A denoiser that also returns hidden features, as `NetworkDenoiser.with_features` makes it."""

    def __call__(
        self, z: Images, level: Level, cond: Labels | None = None, *, key: RandomKey | None = None
    ) -> tuple[Prediction, Features]:
        """Returns the prediction at `z` and the features by tap."""
        ...


class NetworkDenoiser(Protocol):
    """What losses take: a `DenoiserLike` with dropout and hidden features.

    `Denoiser`, `GuidedDenoiser` and `ddistill.students.RoutedDenoiser` are such.
    """

    @property
    def prediction(self) -> str:
        """What the network predicts: "x0", "eps", "v" or "edm"."""
        ...

    def __call__(
        self, z: Images, level: Level, cond: Labels | None = None, *, key: RandomKey | None = None
    ) -> Prediction:
        """Returns the prediction at `z`; with a key in train mode, with dropout from the key."""
        ...

    def with_features(self, taps: Sequence[str]) -> DenoiserWithFeatures:
        """Returns the same denoiser with the features of the named taps."""
        ...


@dataclass(frozen=True)
class ModuleApply:
    """`apply_fn` of a Linen module. Equal modules give equal functions, so jit compiles them once.

    Attributes:
      module: `module(x, time, cond, train=, taps=)`, see `ddistill.networks`.
    """

    module: nn.Module

    def __call__(
        self, params: Any, x: Array, time: Array, cond: Any, *, train: bool, rngs: Any, taps: Any
    ) -> Any:
        """Returns the network's output, or (output, features) when taps are named."""
        variables = {"params": params}
        return self.module.apply(variables, x, time, cond, train=train, taps=taps, rngs=rngs)


@struct.dataclass
class Denoiser:
    """A network, its parameters and what its output means. A pytree: only `params` is data.

    Attributes:
      params: the network's parameters.
      apply_fn: `(params, x, time, cond, *, train, rngs, taps) -> output`, or (output, {tap:
        features}) when taps are named. Hashable, since it is a static part of the pytree.
      prediction: what the output is: "x0", "eps", "v" or "edm".
      sigma_data: standard deviation of the data, for "edm".
      clip: bound on |x0| of every prediction, eps derived anew; None for none.
    """

    params: Any
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    prediction: str = struct.field(pytree_node=False, default="eps")
    sigma_data: float = struct.field(pytree_node=False, default=0.5)
    clip: float | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        params: Any,
        prediction: str = "eps",
        sigma_data: float = 0.5,
        clip: float | None = None,
    ) -> "Denoiser":
        """Joins a Linen module and its parameters.

        Raises:
          ConfigError: an unknown prediction type.
        """
        check_choice("prediction", prediction, KINDS)
        return cls(params, ModuleApply(module), prediction, sigma_data, clip)

    def __call__(
        self,
        z: Float[Array, "B H W C"],
        level: Level,
        cond: Int[Array, " B"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Prediction:
        """Predicts x0 and eps from noisy images.

        Args:
          z: noisy images, alpha x0 + sigma eps.
          level: their noise level, `[]` or `[B]`, sigma > 0.
          cond: class ids, or None.
          key: given, the network runs in train mode with dropout from this key; None is evaluation.

        Raises:
          ValueError: the network's output does not have the shape of `z`.
        """
        return self._predict(self.raw(z, level, cond, key), z, level)

    def with_features(self, taps: Sequence[str]) -> Callable[..., tuple[Prediction, dict]]:
        """The same callable, returning (prediction, {tap: features}) for the named taps."""

        def call(z, level, cond=None, *, key=None):
            output, features = self.raw(z, level, cond, key, tuple(taps))
            return self._predict(output, z, level), features

        return call

    def raw(
        self, z: Array, level: Level, cond: Any = None, key: Any = None, taps: tuple[str, ...] = ()
    ) -> Any:
        """The network's output in its own terms, at least float32; (output, features) with taps."""
        scale = input_scale(self.prediction, level, self.sigma_data)
        time = jnp.broadcast_to(level.time, z.shape[:1])
        result = self.apply_fn(
            self.params,
            expand(scale, z) * z,
            time,
            cond,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            taps=taps,
        )
        output, features = result if taps else (result, {})
        if output.shape != z.shape:
            raise ValueError(
                f"The network's output has shape {output.shape}, its input {z.shape}. They must be "
                "equal: set the network's out_channels to the images' channels."
            )
        # Conversions divide by alpha or sigma: bfloat16 must end here.
        output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        return (output, features) if taps else output

    def _predict(self, output: Array, z: Array, level: Level) -> Prediction:
        prediction = convert(self.prediction, output, z, level, self.sigma_data)
        return prediction if self.clip is None else clip_x0(prediction, z, level, self.clip)


def in_float32(denoiser: Any) -> Any:
    """A denoiser, or routed students, computing in float32, whatever they were trained in."""
    if hasattr(denoiser, "students"):
        return denoiser.replace(students=in_float32(denoiser.students))
    apply = denoiser.apply_fn
    if not isinstance(apply, ModuleApply) or not hasattr(apply.module, "dtype"):
        return denoiser
    exact = ModuleApply(apply.module.clone(dtype="float32"))
    return denoiser.replace(apply_fn=exact)  # type: ignore[attr-defined]


def with_guidance(denoiser: Any, scale: float, null_class: int) -> Any:
    """The denoiser itself where the scale is 1, else a `GuidedDenoiser`."""
    return denoiser if scale == 1.0 else GuidedDenoiser(denoiser, scale, null_class)


@struct.dataclass
class GuidedDenoiser:
    """A conditional denoiser with classifier-free guidance (arXiv 2207.12598 eq. 6).

    x0 = x0(null) + scale (x0(class) - x0(null)), and eps likewise: two network evaluations a call,
    made as one of twice the batch.

    Attributes:
      denoiser: the conditional one.
      scale: 1 is no guidance, 0 no condition; above 1 the class is followed more than it should be.
      null_class: what it is given for "no class".
    """

    denoiser: Any
    scale: float = struct.field(pytree_node=False)
    null_class: int = struct.field(pytree_node=False)

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return self.denoiser.prediction

    def __call__(
        self,
        z: Float[Array, "B H W C"],
        level: Level,
        cond: Int[Array, " B"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Prediction:
        """Predicts x0 and eps; arguments as of `Denoiser`, but `cond` is needed.

        Raises:
          ValueError: there is no class to be guided to.
        """
        return self._ask(self.denoiser, z, level, cond, key)

    def with_features(self, taps: Sequence[str]) -> Callable[..., tuple[Prediction, dict]]:
        """The same, returning (prediction, {tap: features}); features are those under the class."""
        ask = self.denoiser.with_features(taps)

        def call(z, level, cond=None, *, key=None):
            return self._ask(ask, z, level, cond, key)

        return call

    def _ask(self, ask: Callable, z: Array, level: Level, cond: Any, key: Any) -> Any:
        if cond is None:
            raise ValueError(f"Guidance of scale {self.scale} needs classes; cond is None.")
        count = z.shape[0]
        cond = jnp.broadcast_to(cond, (count,))
        null = jnp.full_like(cond, self.null_class)
        levels = jax.tree.map(lambda x: jnp.tile(jnp.broadcast_to(x, (count,)), 2), level)
        both = ask(jnp.concatenate([z, z]), levels, jnp.concatenate([cond, null]), key=key)
        found, features = both if isinstance(both, tuple) else (both, None)
        guided = jax.tree.map(lambda x: x[count:] + self.scale * (x[:count] - x[count:]), found)
        if features is None:
            return guided
        return guided, {tap: x[:count] for tap, x in features.items()}
