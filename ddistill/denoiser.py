"""A network as samplers and losses see it: `(z, level, cond) -> Prediction`.

A `Denoiser` scales the input, passes the network its time and converts the output. Teachers,
students and fake scores are all `Denoiser`s, so that no code that calls them depends on the
prediction type. Any other callable of that form is a denoiser too (`DenoiserLike`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, Protocol, Self, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, PyTree

from ddistill.conditions import Condition
from ddistill.diffusion import KINDS, Prediction, clip_x0, convert, expand, input_scale
from ddistill.errors import check_choice
from ddistill.low_rank import adapting, merged
from ddistill.schedules import Level
from ddistill.typing import Features, Images, Params, PerExample, RandomKey


class DenoiserLike(Protocol):
    """The argument of samplers: any callable that predicts x0 and eps from noisy images."""

    def __call__(self, z: Images, level: Level, cond: Condition | None = None, /) -> Prediction:
        """Returns the prediction at noisy images `z` of a level `[]` or `[B]` and conditions."""
        ...


class DenoiserWithFeatures(Protocol):
    """A denoiser that also returns hidden features, as `NetworkDenoiser.with_features` makes it."""

    def __call__(
        self,
        z: Images,
        level: Level,
        cond: Condition | None = None,
        *,
        key: RandomKey | None = None,
    ) -> tuple[Prediction, Features]:
        """Returns the prediction at `z` and the features by tap."""
        ...


class NetworkDenoiser(Protocol):
    """The argument of losses: a `DenoiserLike` with dropout and hidden features.

    `Denoiser`, `GuidedDenoiser`, `ClippedDenoiser` and `ddistill.students.RoutedDenoiser` are such.
    """

    @property
    def prediction(self) -> str:
        """The prediction type: "x0", "eps", "v", "edm" or "flow"."""
        ...

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the scalars that the network is given beside its time."""
        ...

    def given(self, **values: Array | float) -> Self:
        """Returns the same denoiser with values, `[]` or `[B]`, of extra inputs."""
        ...

    def __call__(
        self,
        z: Images,
        level: Level,
        cond: Condition | None = None,
        *,
        key: RandomKey | None = None,
    ) -> Prediction:
        """Returns the prediction at `z`; with a key in train mode, with dropout from the key."""
        ...

    def with_features(self, taps: Sequence[str]) -> DenoiserWithFeatures:
        """Returns the same denoiser with the features of the named taps."""
        ...


D = TypeVar("D")
N = TypeVar("N", bound=NetworkDenoiser)


class Mode(TypedDict):
    """Keyword arguments of an `apply_fn`.

    Attributes:
      train: whether dropout is on.
      rngs: the key of "dropout" in train mode, else None.
      taps: names of the hidden features to return.
      extra: `[B, X]`, the values of the network's extra inputs, for networks with such inputs.
    """

    train: bool
    rngs: dict[str, RandomKey] | None
    taps: tuple[str, ...]
    extra: NotRequired[Array]


@dataclass(frozen=True)
class ModuleApply:
    """`apply_fn` of a Linen module. Equal modules give equal functions, so jit compiles them once.

    Attributes:
      module: `module(x, time, cond, train=, taps=)`, see `ddistill.networks`.
    """

    module: nn.Module

    def __call__(
        self,
        params: Params,
        x: Images,
        time: PerExample,
        cond: Condition | None,
        **mode: Unpack[Mode],
    ) -> PyTree:
        """Returns the network's output, or (output, features) when taps are named."""
        return self.module.apply({"params": params}, x, time, cond, **mode)


@struct.dataclass
class Denoiser:
    """A network, its parameters and its prediction type. A pytree: `params` and `extra` are data.

    Attributes:
      params: the network's parameters; with a `base`, the factors of `ddistill.low_rank`.
      apply_fn: `(params, x, time, cond, *, train, rngs, taps) -> output`, or (output, {tap:
        features}) when taps are named. Hashable, since it is a static part of the pytree.
      prediction: type of the output: "x0", "eps", "v", "edm" or "flow".
      sigma_data: standard deviation of the data, for "edm".
      clip: bound on |x0| of every prediction, eps derived anew; None for none.
      extra: by name, the values `[]` or `[B]` of the network's extra inputs; `given` sets them.
      base: the parameters that `params` are factors for; None for a network without factors.
    """

    params: Params
    apply_fn: Callable[..., PyTree] = struct.field(pytree_node=False)
    prediction: str = struct.field(pytree_node=False, default="eps")
    sigma_data: float = struct.field(pytree_node=False, default=0.5)
    clip: float | None = struct.field(pytree_node=False, default=None)
    extra: Mapping[str, Array] = struct.field(default_factory=dict)
    base: Params | None = None

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        params: Params,
        prediction: str = "eps",
        sigma_data: float = 0.5,
        clip: float | None = None,
        base: Params | None = None,
    ) -> "Denoiser":
        """Joins a Linen module and its parameters.

        Raises:
          ConfigError: an unknown prediction type.
        """
        check_choice("prediction", prediction, KINDS)
        return cls(params, ModuleApply(module), prediction, sigma_data, clip, base=base)

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the scalars that the network is given beside its time."""
        return tuple(getattr(getattr(self.apply_fn, "module", None), "extras", ()))

    def given(self, **values: Array | float) -> Self:
        """Returns the same denoiser with values of extra inputs, for example `guidance=3.0`.

        Args:
          values: by name, a number or array, `[]` or `[B]`.

        Raises:
          ValueError: the network has no such input.
        """
        for name in values:
            if name not in self.extras:
                raise ValueError(f"The network has no input {name!r}; it has {self.extras}.")
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
        return replace(self, extra={**self.extra, **arrays})

    def __call__(
        self,
        z: Images,
        level: Level,
        cond: Condition | None = None,
        *,
        key: RandomKey | None = None,
    ) -> Prediction:
        """Predicts x0 and eps from noisy images.

        Args:
          z: noisy images, alpha x0 + sigma eps.
          level: their noise level, `[]` or `[B]`, sigma > 0.
          cond: conditions of the examples, such as class ids; or None.
          key: given, the network runs in train mode with dropout from this key; None is evaluation.

        Raises:
          ValueError: the network's output does not have the shape of `z`, or an extra input has no
            value.
        """
        return self._predict(self.raw(z, level, cond, key), z, level)

    def with_features(self, taps: Sequence[str]) -> DenoiserWithFeatures:
        """The same callable, returning (prediction, {tap: features}) for the named taps."""

        def call(
            z: Images, level: Level, cond: Condition | None = None, *, key: RandomKey | None = None
        ) -> tuple[Prediction, Features]:
            output, features = self._apply(z, level, cond, key, tuple(taps))
            return self._predict(output, z, level), features

        return call

    def raw(
        self, z: Images, level: Level, cond: Condition | None = None, key: RandomKey | None = None
    ) -> Images:
        """The network's output as its `prediction` type says, at least float32."""
        return self._apply(z, level, cond, key, ())[0]

    def _apply(
        self,
        z: Images,
        level: Level,
        cond: Condition | None,
        key: RandomKey | None,
        taps: tuple[str, ...],
    ) -> tuple[Images, Features]:
        """The raw output and the features of the taps."""
        scale = input_scale(self.prediction, level, self.sigma_data)
        time = jnp.broadcast_to(level.time, z.shape[:1])
        # Only equal modules are known to compute the same: other functions are called as they are.
        call = _traced_once if isinstance(self.apply_fn, ModuleApply) else _call
        inputs = (expand(scale, z) * z, time, cond)
        extra = self._extra_values(z.shape[0])
        result = call(self.apply_fn, taps, (self.params, self.base), inputs, key, extra)
        output, features = result if taps else (result, {})
        if output.shape != z.shape:
            raise ValueError(
                f"The network's output has shape {output.shape}, its input {z.shape}. They must be "
                "equal: set the network's out_channels to the images' channels."
            )
        # Conversions divide by alpha or sigma: bfloat16 must end here.
        return output.astype(jnp.promote_types(output.dtype, jnp.float32)), features

    def _extra_values(self, count: int) -> dict[str, Array]:
        """The argument `extra` of a network that has extra inputs."""
        if not self.extras:
            return {}
        for name in self.extras:
            if name not in self.extra:
                raise ValueError(
                    f"The network's input {name!r} has no value: use given({name}=..)."
                )
        columns = [jnp.broadcast_to(self.extra[name], (count,)) for name in self.extras]
        return {"extra": jnp.stack(columns, axis=-1)}

    def _predict(self, output: Array, z: Array, level: Level) -> Prediction:
        prediction = convert(self.prediction, output, z, level, self.sigma_data)
        return prediction if self.clip is None else clip_x0(prediction, z, level, self.clip)


def _call(
    apply_fn: Callable[..., PyTree],
    taps: tuple[str, ...],
    weights: tuple[Params, Params | None],
    inputs: tuple[Images, PerExample, Condition | None],
    key: RandomKey | None,
    extra: Mapping[str, Array],
) -> PyTree:
    """The network's result for (parameters or factors, base) and (input, time, condition)."""
    params, base = weights
    factors = contextlib.nullcontext() if base is None else adapting(base, params)
    with factors:
        return apply_fn(
            params if base is None else base,
            *inputs,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            taps=taps,
            **extra,
        )


# Losses call a network several times, and Python takes longer to trace it than XLA takes to inline
# what was traced. Derivatives and batches of what was traced are made once too.
_traced_once = functools.partial(jax.jit, static_argnums=(0, 1))(_call)


def whole(denoiser: Denoiser) -> Denoiser:
    """The same network without a base: its factors are added to the kernels.

    Args:
      denoiser: one network, or a stack of students `[K, ...]`.
    """
    if denoiser.base is None:
        return denoiser
    return replace(denoiser, params=merged(denoiser.base, denoiser.params), base=None)


def in_float32(denoiser: D) -> D:
    """A `Denoiser` or routed students, computing in float32 whatever dtype they were trained in."""
    if hasattr(denoiser, "students"):
        return _replace(denoiser, students=in_float32(denoiser.students))
    apply = denoiser.apply_fn  # type: ignore[attr-defined]
    if not isinstance(apply, ModuleApply) or not hasattr(apply.module, "dtype"):
        return denoiser
    return _replace(denoiser, apply_fn=ModuleApply(apply.module.clone(dtype="float32")))


def forward_mode(denoiser: D) -> D:
    """The same denoiser in a form that `jax.jvp` can differentiate on every device.

    cuDNN's attention has reverse-mode derivatives alone; its place is taken by attention in chunks.
    For losses with a derivative of a network, which call the network again for gradients and there
    use the denoiser itself. Every other part of the networks has derivatives of both modes.

    Args:
      denoiser: a `Denoiser`, routed students, or a denoiser that wraps one.
    """
    for part in ("students", "denoiser"):
        if hasattr(denoiser, part):
            return _replace(denoiser, **{part: forward_mode(getattr(denoiser, part))})
    apply = getattr(denoiser, "apply_fn", None)
    if not isinstance(apply, ModuleApply) or not hasattr(apply.module, "attention_impl"):
        return denoiser
    return _replace(denoiser, apply_fn=ModuleApply(apply.module.clone(attention_impl="chunked")))


def _replace(denoiser: D, /, **changes: object) -> D:
    return dataclasses.replace(denoiser, **changes)  # type: ignore[type-var]
