"""Scaled dot-product attention that does not hold the scores of all pairs of positions at once.

A 64 x 64 latent has 4,096 positions: 64 MiB of float32 scores per head and image. Where cuDNN has
a fused kernel, it is used; elsewhere queries are taken in chunks, in the backward pass too.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

ATTENTION_IMPLS = ("auto", "chunked", "cudnn")
# Scores of one image that are in memory at the same time: 32 MiB in float32.
MOST_SCORES = 1 << 23
# Of cuDNN's kernels on every GPU since Ampere.
_LARGEST_HEAD = 128


def attend(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    *,
    causal: bool = False,
    upcast: bool = False,
    impl: str = "auto",
) -> Float[Array, "B Q H D"]:
    """softmax(q k^T / sqrt(D)) v for every head.

    Scores and softmax are float32, the second product has the dtype of `v`.

    Args:
      q, k, v: queries, keys and values.
      causal: whether query i sees keys 0 to i alone.
      upcast: compute q k^T of float32 inputs with all digits, also where matrix products have fewer
        by default (TPUs, TF32 of GPUs). Products of bfloat16 inputs are exact in any case.
      impl: one of `ATTENTION_IMPLS`; "auto" is "cudnn" for bfloat16 on GPUs that have the kernel,
        else "chunked".
    """
    if _implementation(impl, q) == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    return _chunked(q, k, v, causal, upcast)


def _implementation(impl: str, q: Array) -> str:
    """Resolves "auto" while tracing, from the default backend, as `conv_impl` does."""
    if impl != "auto":
        return impl
    head = q.shape[-1]
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and head % 8 == 0 and head <= _LARGEST_HEAD
    if not fits or jax.default_backend() != "gpu":
        return "chunked"
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    return "cudnn" if float(capability) >= 8.0 else "chunked"


def _chunked(q: Array, k: Array, v: Array, causal: bool, upcast: bool) -> Array:
    """Attention by `MOST_SCORES` of scores at a time; scores are computed again for gradients."""
    batch, queries, heads, head = q.shape
    rows = max(1, MOST_SCORES // (heads * k.shape[1]))
    if rows >= queries:
        return _plain(q, k, v, jnp.arange(queries) if causal else None, upcast)
    count = -(-queries // rows)
    rows = -(-queries // count)
    # Rows of zeros fill the last chunk; their results are cut off.
    q = jnp.pad(q, ((0, 0), (0, count * rows - queries), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(q.reshape(batch, count, rows, heads, head), 1, 0)

    @jax.checkpoint
    def chunk(start: Array, part: Array) -> Array:
        return _plain(part, k, v, start + jnp.arange(rows) if causal else None, upcast)

    starts = jnp.arange(count) * rows
    out = jax.lax.map(lambda pair: chunk(*pair), (starts, chunks))
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * rows, heads, head)[:, :queries]


def _plain(q: Array, k: Array, v: Array, positions: Array | None, upcast: bool) -> Array:
    """Attention of some queries, at `positions` of the sequence where it is causal."""
    precise = upcast and q.dtype == jnp.float32
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk",
        q,
        k,
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if precise else None,
    )
    scores = scores * q.shape[-1] ** -0.5
    if positions is not None:
        seen = jnp.arange(k.shape[1]) <= positions[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def heads_of(x: Float[Array, "B L C"], heads: int) -> Float[Array, "B L H D"]:
    """Channels split into heads of neighbouring channels."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
