"""Times one training step (forward, backward, Adam, EMA) of the U-Nets, beside torch's.

    python benchmarks/train_step.py --networks digits,cifar --markdown

Variants of one network are interleaved in one process: every round runs each of them once, and
what is compared is the ratio within a round, because a shared machine's speed drifts more from
minute to minute than two variants differ. "jax" is what the trainer runs; on CPU it spreads the
batch over the cores, and "jax, one device" lets them share every operation instead. torch is timed
where it is installed (extra `parity`), with --torch-compile by torch.compile too; on a GPU,
bfloat16 rows are added. --seconds bounds the whole: variants that do not fit are named and left
out. GFLOP/s counts the
multiplications and additions of convolutions and matrix products only, three times the forward
pass, and is set against the rate of a large square float32 matrix product in the same process.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# torch and XLA share the cores: an idle thread pool must not spin, and neither may take all memory.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Deadline, Variant, jaxpr_flops, machine, measure, print_table

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
    # Only to try the command.
    "tiny": {
        "size": 4,
        "image": 1,
        "channels": 4,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "mid_attention": False,
        "norm_groups": 2,
    },
}
# CIFAR steps take seconds on a CPU; the batch is small there, and the table says so.
BATCH = {
    "cpu": {"digits": 64, "cifar": 8, "tiny": 4},
    "gpu": {"digits": 256, "cifar": 128, "tiny": 4},
}


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
    name: str, spec: dict[str, Any], batch: int, half: bool, compiled: bool = False
) -> Variant:
    """The same step in torch, with the fused Adam and one fused EMA update.

    The name says whether memory is channels_last. `compiled` uses torch.compile, whose first step
    counts as compilation. float32 products use TF32 on GPUs, as XLA's do.
    """
    import torch
    from torch_unet import Fields, UNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    last = "channels_last" in name
    memory = torch.channels_last if last else torch.contiguous_format
    fields = {k: v for k, v in spec.items() if k != "image"}
    net = UNet(spec["image"], Fields(**fields)).to(device, memory_format=memory)
    if forward_flops(spec, 1)[1] != sum(p.numel() for p in net.parameters()):
        raise SystemExit("The torch U-Net and ours differ in size; the comparison means nothing.")
    x, t = (torch.from_numpy(np.array(v)) for v in inputs(spec, batch))
    x = x.permute(0, 3, 1, 2).contiguous().to(device, memory_format=memory)
    t = t.to(device)
    weights = list(net.parameters())
    ema = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, 1e-4, fused=True)
    call = torch.compile(net) if compiled else net

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            out = call(x, t)
        torch.mean(torch.square(out.float() - x)).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, weights, 1e-3)
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    if compiled:
        run()
    return Variant(name, run, time.perf_counter() - start if compiled else float("nan"))


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


def variants(
    spec: dict[str, Any], batch: int, args: argparse.Namespace
) -> dict[str, Callable[[], Variant]]:
    """Every variant of one network that this machine can run, by name, the reference first."""
    gpu = jax.default_backend() == "gpu"
    made: dict[str, Callable[[], Variant]] = {}

    def ours(name: str, **options: Any) -> None:
        made[name] = lambda: jax_variant(name, spec, batch, **options)

    def theirs(name: str, **options: Any) -> None:
        half = "bfloat16" in name
        made[name] = lambda: torch_variant(name, spec, batch, half, **options)

    torch = not args.no_torch and has_torch()
    ours("jax")
    if gpu or args.bfloat16:
        ours("jax bfloat16", dtype="bfloat16")
    if args.torch_compile and torch:
        if gpu or args.bfloat16:
            theirs("torch.compile bfloat16, channels_last", compiled=True)
        theirs("torch.compile, channels_last", compiled=True)
    if not gpu and not args.bfloat16:
        ours("jax, one device", devices=1)
    for impl in args.conv_impl:
        ours(f"jax, conv_impl={impl}", conv_impl=impl)
    if args.forward:
        made["jax, forward only"] = lambda: jax_forward("jax, forward only", spec, batch)
    if torch:
        theirs("torch, contiguous")
        theirs("torch, channels_last")
        if gpu:
            theirs("torch bfloat16, channels_last")
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
    for v in [v for v in made if v.seconds]:
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits,cifar", help="of: " + ", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=0, help="0: 64 and 8 on CPU, 256, 128 on GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of rounds a network")
    parser.add_argument("--conv_impl", nargs="*", default=[], choices=("xla", "matmul"))
    parser.add_argument("--forward", action="store_true", help="time the forward pass too")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--torch-compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 rows on CPU too")
    parser.add_argument("--seconds", type=float, default=0.0, help="of all; 0: no limit")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)
    deadline = Deadline(args.seconds)
    use_quick_code(os.environ)
    use_cores_as_devices()
    kind = "gpu" if jax.default_backend() == "gpu" else "cpu"
    if not args.no_torch and not has_torch():
        print("torch is not installed: no rows of torch")
    done: list[tuple[str, dict[str, Any], int, list[Variant], float]] = []

    def show() -> None:
        print(machine())
        print_table([HEADER, *(row for one in done for row in rows(*one))], args.markdown)

    deadline.watch(show)
    for name in args.networks.split(","):
        if name not in NETWORKS:
            parser.error(f"--networks: {name!r} is not one of {', '.join(NETWORKS)}.")
        spec = NETWORKS[name]
        batch = args.batch or BATCH[kind][name]
        product, product_flops = matmul_variant()
        measure([product], 5, 10.0)
        peak = product_flops / min(product.seconds) / 1e9
        print(f"{name}: peak of a float32 matrix product here: {peak:.0f} GFLOP/s", flush=True)
        made: list[Variant] = []
        done.append((name, spec, batch, made, peak))
        for variant, make in variants(spec, batch, args).items():
            deadline.prepare(variant, make, made)
        deadline.measure(made, args.rounds, args.limit)
    deadline.close()
    show()


if __name__ == "__main__":
    main()
