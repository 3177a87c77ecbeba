"""A convolution that stays K plain convolutions when images and kernels are vmapped together.

XLA's own rule makes one grouped convolution of them, whose gradients are slow on CPU and GPU. A
primitive of its own has another rule for `vmap`, and derivatives of every mode and order.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]


def xla_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "k k C D"],
    stride: int,
    pads: Pads | None = None,
) -> Array:
    """Convolution by XLA's own operation, with `pads` or "SAME" padding."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads or "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ungrouped_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "k k C D"],
    stride: int,
    pads: Pads | None = None,
) -> Array:
    """`xla_conv`, with another rule for `vmap`: results agree, the programs do not."""
    form = _Form("output", stride, pads, x.shape, kernel.shape)
    return _bilinear_conv.bind(x, kernel, form=form)


@dataclass(frozen=True)
class _Form:
    """A map of two arrays, linear in each, made of T(x, kernel, g) = <conv(x, kernel), g>.

    Attributes:
      role: "output": (x, kernel) -> dT/dg, the convolution; "image": (kernel, g) -> dT/dx;
        "kernel": (x, g) -> dT/dkernel. The transposes of each are the other two.
      stride, pads: of the convolution.
      x_shape, kernel_shape: of its arguments.
    """

    role: str
    stride: int
    pads: Pads | None
    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]

    def __call__(self, a: Array, b: Array) -> Array:
        """The value of the map."""

        def conv(x: Array, kernel: Array) -> Array:
            return xla_conv(x, kernel, self.stride, self.pads)

        if self.role == "output":
            return conv(a, b)
        if self.role == "image":
            like = jax.ShapeDtypeStruct(self.x_shape, b.dtype)
            return jax.linear_transpose(lambda x: conv(x, a), like)(b)[0]
        like = jax.ShapeDtypeStruct(self.kernel_shape, b.dtype)
        return jax.linear_transpose(lambda kernel: conv(a, kernel), like)(b)[0]

    def bind(self, a: Array, b: Array) -> Array:
        """The value of the map, by the primitive."""
        return _bilinear_conv.bind(a, b, form=self)

    def to(self, role: str) -> "_Form":
        """The map of another role, of the same convolution."""
        return replace(self, role=role)


def _to_first(change: Array, _, b: Array, *, form: _Form) -> Array:
    """The transpose by the first argument, x or a kernel, applied to a change of the result."""
    if form.role == "output":  # b is a kernel
        return form.to("image").bind(b, change)
    if form.role == "image":  # b is a change of the output, and `change` is like x
        return form.to("kernel").bind(change, b)
    return form.to("image").bind(change, b)  # `change` is like a kernel


def _to_second(change: Array, a: Array, _, *, form: _Form) -> Array:
    """The transpose by the second argument, a kernel or a change of the output."""
    if form.role == "output":  # a is x
        return form.to("kernel").bind(a, change)
    if form.role == "image":  # a is a kernel, and `change` is like x
        return form.to("output").bind(change, a)
    return form.to("output").bind(a, change)  # a is x, and `change` is like a kernel


def _vmapped(args: tuple[Array, Array], axes: tuple, *, form: _Form) -> tuple[Array, int]:
    """One map for each entry of the mapped axis; no groups arise where one side is shared."""
    if any(axis is None for axis in axes):
        return jax.vmap(form, in_axes=tuple(axes))(*args), 0
    a, b = (jnp.moveaxis(arg, axis, 0) for arg, axis in zip(args, axes))
    return jnp.stack([form.bind(a[k], b[k]) for k in range(a.shape[0])]), 0


def _shape(a, b, *, form: _Form):
    found = jax.eval_shape(form, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b)))
    return jax.core.ShapedArray(found.shape, found.dtype)


_bilinear_conv = Primitive("ungrouped_conv")
_bilinear_conv.def_impl(lambda a, b, *, form: form(a, b))
_bilinear_conv.def_abstract_eval(_shape)
ad.defbilinear(_bilinear_conv, _to_first, _to_second)
batching.primitive_batchers[_bilinear_conv] = _vmapped
mlir.register_lowering(
    _bilinear_conv, mlir.lower_fun(lambda a, b, *, form: form(a, b), multiple_results=False)
)
