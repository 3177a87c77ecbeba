"""Times one training step (forward, backward, Adam, EMA) of the U-Nets, beside torch's.

    python benchmarks/train_step.py --networks digits,cifar --markdown

Variants of one network are interleaved in one process: every round runs each of them once, and
what is compared is the ratio within a round, because a shared machine's speed drifts more from
minute to minute than two variants differ. "jax" is what the trainer runs; on CPU it spreads the
batch over the cores, and "jax, one device" lets them share every operation instead. torch is timed
where it is installed (extra `parity`); on a GPU, bfloat16 rows are added. GFLOP/s counts the
multiplications and additions of convolutions and matrix products only, three times the forward
pass, and is set against the rate of a large square float32 matrix product in the same process.
"""

import argparse
import os
import statistics
import time
from typing import Any

# torch and XLA share the cores: an idle thread pool must not spin, and neither may take all memory.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Variant, jaxpr_flops, machine, measure, print_table

from ddistill import networks
from ddistill.runtime.compilation import compiler_options, is_wide
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.sharding import (
    data_mesh,
    over_data,
    replicate,
    replicated,
    use_cores_as_devices,
)

NETWORKS: dict[str, dict[str, Any]] = {
    "digits": {
        "size": 8,
        "image": 1,
        "channels": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (4,),
        "norm_groups": 8,
    },
    "cifar": {
        "size": 32,
        "image": 3,
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "norm_groups": 32,
    },
}
# CIFAR steps take seconds on a CPU; the batch is small there, and the table says so.
BATCH = {"cpu": {"digits": 64, "cifar": 8}, "gpu": {"digits": 256, "cifar": 128}}


def jax_variant(
    name: str, spec: dict[str, Any], batch: int, devices: int = 0, **options: Any
) -> Variant:
    """The step as the trainer compiles it, for a U-Net of these fields.

    `devices` limits the devices that share the batch; 0 is the trainer's own choice.
    """
    module = build(spec, **options)
    mesh = data_mesh(batch, jax.devices()[: devices or None])
    x, t = jax.device_put(inputs(spec, batch), over_data(mesh))
    params = jax.jit(module.init)(jax.random.key(0), x[:1], t[:1])["params"]
    optimizer = optax.adam(1e-4)
    state = (params, optimizer.init(params), jax.tree.map(jnp.copy, params))
    state = replicate(mesh, state)

    def step(state, x, t):
        params, moments, ema = state

        def loss(params):
            return jnp.mean(jnp.square(module.apply({"params": params}, x, t) - x))

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        params = optax.apply_updates(params, updates)
        return params, moments, optax.incremental_update(params, ema, 1e-3)

    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(wide=is_wide(params)),
    )
    start = time.perf_counter()
    compiled = jitted.lower(state, x, t).compile()
    seconds = time.perf_counter() - start

    def run():
        nonlocal state
        state = jax.block_until_ready(compiled(state, x, t))

    return Variant(name, run, seconds)


def jax_forward(name: str, spec: dict[str, Any], batch: int, **options: Any) -> Variant:
    """The forward pass alone, as sampling and teachers use it."""
    module = build(spec, **options)
    mesh = data_mesh(batch)
    x, t = jax.device_put(inputs(spec, batch), over_data(mesh))
    params = replicate(mesh, jax.jit(module.init)(jax.random.key(0), x[:1], t[:1])["params"])
    apply = jax.jit(
        lambda params, x, t: module.apply({"params": params}, x, t),
        compiler_options=compiler_options(wide=is_wide(params)),
    )
    start = time.perf_counter()
    compiled = apply.lower(params, x, t).compile()
    seconds = time.perf_counter() - start
    return Variant(name, lambda: jax.block_until_ready(compiled(params, x, t)), seconds)


def torch_variant(
    name: str, spec: dict[str, Any], batch: int, layout: str, half: bool, parameters: int
) -> Variant:
    """The same step in eager torch, with the fused Adam and one fused EMA update."""
    import torch
    from torch_unet import Fields, UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    fields = {k: v for k, v in spec.items() if k != "image"}
    net = UNet(spec["image"], Fields(**fields)).to(device, memory_format=memory)
    if parameters != sum(p.numel() for p in net.parameters()):
        raise SystemExit("The torch U-Net and ours differ in size; the comparison means nothing.")
    x, t = (torch.from_numpy(np.array(v)) for v in inputs(spec, batch))
    x = x.permute(0, 3, 1, 2).contiguous().to(device, memory_format=memory)
    t = t.to(device)
    weights = list(net.parameters())
    ema = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, 1e-4, fused=True)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            out = net(x, t)
        torch.mean(torch.square(out.float() - x)).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, weights, 1e-3)
        if device == "cuda":
            torch.cuda.synchronize()

    return Variant(name, run, float("nan"))


def build(spec: dict[str, Any], **options: Any):
    fields = {k: v for k, v in spec.items() if k not in ("size", "image")}
    return networks.build("unet", out_channels=spec["image"], **fields, **options)


def inputs(spec: dict[str, Any], batch: int):
    x = jax.random.normal(jax.random.key(1), (batch, spec["size"], spec["size"], spec["image"]))
    return x, jnp.linspace(0.0, 999.0, batch)


def forward_flops(spec: dict[str, Any], batch: int) -> tuple[int, int]:
    """Multiplications and additions of one forward pass, and the number of parameters."""
    module = build(spec, conv_impl="xla")
    x, t = inputs(spec, batch)
    params = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
    jaxpr = jax.make_jaxpr(lambda p: module.apply({"params": p}, x, t))(params)
    return jaxpr_flops(jaxpr.jaxpr), sum(p.size for p in jax.tree.leaves(params))


def matmul_variant() -> tuple[Variant, float]:
    """A large float32 matrix product and its floating-point operations."""
    n = 8192 if jax.default_backend() == "gpu" else 1024
    a = jnp.ones((n, n)) / n
    product = jax.jit(lambda a: jnp.dot(a, a))
    product(a)
    return Variant("matmul", lambda: jax.block_until_ready(product(a)), 0.0), 2.0 * n**3


def variants(name: str, spec: dict[str, Any], batch: int, args: argparse.Namespace):
    """Every variant of one network that this machine can run, the reference first."""
    gpu = jax.default_backend() == "gpu"
    parameters = forward_flops(spec, 1)[1]
    made = [jax_variant("jax", spec, batch)]
    if not gpu:
        made.append(jax_variant("jax, one device", spec, batch, devices=1))
        for impl in args.conv_impl:
            made.append(jax_variant(f"jax, conv_impl={impl}", spec, batch, conv_impl=impl))
    if gpu:
        made.append(jax_variant("jax bfloat16", spec, batch, dtype="bfloat16"))
    if args.forward:
        made.append(jax_forward("jax, forward only", spec, batch))
    if not args.no_torch and has_torch():
        for layout in ("contiguous", "channels_last"):
            made.append(torch_variant(f"torch, {layout}", spec, batch, layout, False, parameters))
        if gpu:
            half = torch_variant(
                "torch bfloat16, channels_last", spec, batch, "channels_last", True, parameters
            )
            made.append(half)
    return made


def has_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    torch.set_num_threads(os.cpu_count() or 1)
    return True


def rows(name: str, spec: dict[str, Any], batch: int, made: list[Variant], peak: float):
    """One table row a variant: the median, the middle half, and the paired ratio to the first."""
    flops, _ = forward_flops(spec, batch)
    for v in made:
        median = statistics.median(v.seconds)
        low, high = np.percentile(v.seconds, [25, 75])
        ratios = [a / b for a, b in zip(v.seconds, made[0].seconds)]
        rate = flops * (1 if "forward" in v.name else 3) / median / 1e9
        yield [
            name,
            v.name,
            str(batch),
            f"{1e3 * median:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})",
            f"{batch / median:.0f}",
            f"{statistics.median(ratios):.2f}",
            "" if np.isnan(v.compile_seconds) else f"{v.compile_seconds:.1f}",
            f"{rate:.0f} ({100 * rate / peak:.0f} %)",
        ]


HEADER = ["network", "variant", "batch", "ms/step (middle half)", "images/s", "ratio"]
HEADER += ["compile s", "GFLOP/s (of peak)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits,cifar", help="of: " + ", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=0, help="0: 64 and 8 on CPU, 256, 128 on GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of rounds a network")
    parser.add_argument("--conv_impl", nargs="*", default=[], choices=("xla", "matmul"))
    parser.add_argument("--forward", action="store_true", help="time the forward pass too")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    use_quick_code(os.environ)
    use_cores_as_devices()
    kind = "gpu" if jax.default_backend() == "gpu" else "cpu"
    table: list[list[str]] = []
    for name in args.networks.split(","):
        if name not in NETWORKS:
            parser.error(f"--networks: {name!r} is not one of {', '.join(NETWORKS)}.")
        spec = NETWORKS[name]
        batch = args.batch or BATCH[kind][name]
        made = variants(name, spec, batch, args)
        product, product_flops = matmul_variant()
        measure([*made, product], args.rounds, args.limit)
        peak = product_flops / min(product.seconds) / 1e9
        table += rows(name, spec, batch, made, peak)
        print(f"{name}: peak of a float32 matrix product here: {peak:.0f} GFLOP/s", flush=True)
    print(machine())
    print_table([HEADER, *table], args.markdown)


if __name__ == "__main__":
    main()
