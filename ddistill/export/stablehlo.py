"""A sampler as StableHLO: noise in, images out, for programs that have JAX but not ddistill.

The batch size is symbolic, and the platforms are CPU, CUDA and TPU. Students of a partition by
level are one program, with one student in each step; students of a partition by class are one
program each, and ddistill.json maps classes to programs.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import Network, as_sampled
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.trees import Params, flatten, unflatten
from ddistill.interop.tensors import write_tensors
from ddistill.networks.convolution import for_platform
from ddistill.runtime.files import write_bytes, write_text
from ddistill.samplers import get_sampler
from ddistill.students import RoutedDenoiser

PLATFORMS = ("cpu", "cuda", "tpu")
# Samplers with at most so many steps are unrolled: XLA on CPU runs convolutions in loops slowly.
STRAIGHT = 16


def write(exported: Exported, out: Path, inside: bool = True) -> str:
    """Writes sampler.stablehlo (one per group of classes), ddistill.json and README.md.

    Args:
      exported: the network to export.
      out: the folder to write.
      inside: whether the weights are constants of the program. Otherwise they are written to
        weights.safetensors and are the first argument of the program.

    Returns:
      A short description of the files.

    Raises:
      ConfigError: the package `flatbuffers` is not installed.
    """
    _need_flatbuffers()
    out.mkdir(parents=True, exist_ok=True)
    networks, owner_of, programs = [exported.network], np.zeros(1, np.int64), []
    if isinstance(exported.network, RoutedDenoiser):
        partition = exported.network.partition
        networks = [exported.network.of_group(g) for g in range(partition.groups)]
        if len(networks) > 1:
            owner_of = np.asarray(partition.group(np.arange(exported.num_classes)))
    for g, network in enumerate(networks):
        ending = f"_{g}" if len(networks) > 1 else ""
        _write_one(exported, network, out, ending, inside)
        programs.append(f"sampler{ending}.stablehlo")
    manifest = {
        **exported.manifest(),
        "programs": programs,
        "program_of_class": owner_of.tolist(),
        "weights_inside": inside,
        "arguments": _names(exported, inside),
    }
    write_text(out / "ddistill.json", json.dumps(manifest, indent=2) + "\n")
    write_text(
        out / "README.md",
        model_card(exported, _example(exported, inside), "ddistill", ("jax", "stablehlo")),
    )
    return (
        f"{len(programs)} StableHLO program{'s' * (len(programs) > 1)} for {', '.join(PLATFORMS)}"
    )


def _write_one(exported: Exported, network: Network, out: Path, ending: str, inside: bool) -> None:
    flat = flatten(jax.device_get(_params(network)))
    run = _program(exported, network, inside, flat)
    batch = jax_export.symbolic_shape("batch")
    image = exported.sampler_run.plan.image_shape
    arguments: list[Params] = [jax.ShapeDtypeStruct((*batch, *image), jnp.float32)]
    if exported.conditional:
        arguments.append(jax.ShapeDtypeStruct(batch, jnp.int32))
    arguments += [jax.ShapeDtypeStruct((), jnp.float32) for _ in exported.chosen_inputs]
    if _draws(exported):
        arguments.append(jax.ShapeDtypeStruct((), jnp.uint32))
    if not inside:
        shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in flat.items()}
        arguments.insert(0, shapes)
        write_tensors(out / f"weights{ending}.safetensors", flat)
    with jax.default_matmul_precision("float32"):
        made = jax_export.export(jax.jit(run), platforms=PLATFORMS)(*arguments)
    write_bytes(out / f"sampler{ending}.stablehlo", bytes(made.serialize()))


def _program(
    exported: Exported, network: Network, inside: bool, flat: dict[str, np.ndarray]
) -> Callable[..., jax.Array]:
    """(weights), noise, (labels), (guidance), (seed) -> uint8 images."""
    sampler_run, sampler = exported.sampler_run, get_sampler(exported.sampler_run.sampler)
    loop = "unroll" if sampler_run.steps <= STRAIGHT else "scan"

    def run(*arguments: Params) -> jax.Array:
        rest = list(arguments)
        params = unflatten(flat if inside else rest.pop(0))
        noise = rest.pop(0)
        cond = rest.pop(0) if exported.conditional else None
        chosen = {name: rest.pop(0) for name in exported.chosen_inputs}
        key = jax.random.key(rest.pop(0)) if rest else None
        inputs = {**sampler_run.inputs, **chosen}
        denoiser = as_sampled(_with_params(network, params), replace(sampler_run, inputs=inputs))
        clip = exported.clip or None
        images = sampler(denoiser, sampler_run.levels, noise, key, cond=cond, clip=clip, loop=loop)
        # Equal to `evaluation.metrics.pixels.quantise`: clip, x * 127.5 + 128, floor.
        whole = jnp.clip(jnp.clip(images, -1.0, 1.0) * 127.5 + 128.0, 0.0, 255.0)
        return whole.astype(jnp.uint8)

    return run


def _draws(exported: Exported) -> bool:
    """Whether the sampler draws noise in its steps."""
    sampler_run = exported.sampler_run
    return sampler_run.sampler == "ddpm" or (
        sampler_run.sampler == "renoise" and sampler_run.steps > 1
    )


def _params(network: Network) -> Params:
    return (network.students if isinstance(network, RoutedDenoiser) else network).params


def _with_params(network: Network, params: Params) -> Network:
    """The network with other parameters and with convolutions that all platforms support."""
    if isinstance(network, RoutedDenoiser):
        return network.replace(students=_with_params(network.students, params))  # type: ignore[attr-defined]
    return _portable(network).replace(params=params)  # type: ignore[attr-defined]


def _portable(denoiser: Denoiser) -> Denoiser:
    apply = denoiser.apply_fn
    module = getattr(apply, "module", None)
    if module is None:
        return denoiser
    return denoiser.replace(apply_fn=type(apply)(for_platform(module, "tpu", False)))  # type: ignore[attr-defined]


def _names(exported: Exported, inside: bool) -> list[str]:
    image = ", ".join(map(str, exported.sampler_run.plan.image_shape))
    names = [] if inside else ["weights by name"]
    names.append(f"noise [batch, {image}] float32, standard normal")
    names += ["labels [batch] int32"] if exported.conditional else []
    names += [f"{name} [] float32" for name in exported.chosen_inputs]
    return names + (["seed [] uint32"] if _draws(exported) else [])


def _example(exported: Exported, inside: bool) -> str:
    shape = ", ".join(["16", *map(str, exported.sampler_run.plan.image_shape)])
    several = isinstance(exported.network, RoutedDenoiser) and exported.network.partition.groups > 1
    ending = "_0" if several else ""
    arguments = [] if inside else ["weights"]
    arguments.append("noise")
    arguments += ["labels"] if exported.conditional else []
    inputs = exported.sampler_run.inputs
    arguments += [f"numpy.float32({inputs[name]:g})" for name in exported.chosen_inputs]
    arguments += ["numpy.uint32(0)"] if _draws(exported) else []
    lines = [
        "import jax",
        "import numpy",
        *([] if inside else ["from safetensors.numpy import load_file"]),
        "",
        f'program = open("sampler{ending}.stablehlo", "rb").read()',
        "sample = jax.jit(jax.export.deserialize(bytearray(program)).call)",
        *([] if inside else [f'weights = load_file("weights{ending}.safetensors")']),
        f"noise = numpy.random.default_rng(0).standard_normal(({shape}), numpy.float32)",
        *(["labels = numpy.zeros(16, numpy.int32)"] if exported.conditional else []),
        f"images = numpy.asarray(sample({', '.join(arguments)}))  # uint8",
    ]
    return "\n".join(lines).replace("import jax\n", "import jax.export\n")


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--to=stablehlo needs the package flatbuffers, with which JAX writes programs: "
            "pip install 'ddistill[export]'."
        ) from None
