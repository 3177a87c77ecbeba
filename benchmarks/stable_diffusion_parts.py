"""Operations and memory of one call of each network of Stable Diffusion 1.5, on one picture.

    python benchmarks/stable_diffusion_parts.py

Only shapes go in. Operations are XLA's count of programs with attention in one piece, because the
body of a loop counts once; memory is that of the compiled program, with attention in parts.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from timing import print_table

from ddistill.conditions import TextCondition
from ddistill.networks import attention
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_unet import TextUNet

SIDE, LATENT, TOKENS = 512, 64, 77


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def parts() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """By name a call of a network, and the shapes of its arguments, its parameters first."""
    unet, autoencoder, text = TextUNet(), AutoencoderKL(), CLIPText()
    width = unet.context_dim
    cond = TextCondition(shape(1, TOKENS, width), shape(1, width))
    latent, picture = shape(1, LATENT, LATENT, 4), shape(1, SIDE, SIDE, 3)
    ids = shape(1, TOKENS, dtype=jnp.int32)

    def params(net: Any, *given: Any) -> Any:
        return jax.eval_shape(lambda *x: net.init(jax.random.key(0), *x), *given)

    both = params(autoencoder, picture)
    inputs = (latent, shape(1), cond)
    yield "U-Net", unet.apply, (params(unet, *inputs), *inputs)
    for name, given in (("encode", picture), ("decode", latent)):
        yield name, lambda p, x, n=name: autoencoder.apply(p, x, method=n), (both, given)
    yield "text encoder", text.apply, (params(text, ids), ids)


def main() -> None:
    most = attention.MOST_SCORES
    rows = [["part", "GFLOP", "arguments MiB", "temporary MiB"]]
    for name, call, given in parts():
        attention.MOST_SCORES = 1 << 60
        # Another function, because jax keeps what it has traced of one.
        whole = jax.jit(lambda *x, call=call: call(*x)).lower(*given).cost_analysis()["flops"]
        attention.MOST_SCORES = most
        memory = jax.jit(call).lower(*given).compile().memory_analysis()
        sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
        rows.append([name, f"{whole / 1e9:.0f}", *(f"{size / 2**20:.0f}" for size in sizes)])
    print_table(rows, True)


if __name__ == "__main__":
    main()
