"""A sampler as StableHLO: noise in, images out, for programs that have JAX but not ddistill.

The batch size is symbolic, and the platforms are CPU, CUDA and TPU. Students of a partition by
level are one program, with one student in each step; students of a partition by class are one
program each, and ddistill.json maps classes to programs; of a partition by text, one program for
each cell of texts, which are in router.safetensors. Programs of latents decode them.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export as jax_export

from ddistill.conditions import TextCondition
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling import Network, as_sampled
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.router import router_tensors
from ddistill.export.trees import Params, flatten, unflatten
from ddistill.interop.tensors import write_tensors
from ddistill.networks.convolution import for_platform
from ddistill.runtime.files import write_bytes, write_text
from ddistill.samplers import get_sampler
from ddistill.students import RoutedDenoiser

# Parameters of the decoder among those of a network.
_DECODER = "decoder"
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
        if exported.reads_text:
            write_tensors(out / "router.safetensors", router_tensors(exported))
            owner_of = np.arange(len(networks))
        elif len(networks) > 1:
            owner_of = np.asarray(partition.group(np.arange(exported.num_classes)))
    for g, network in enumerate(networks):
        ending = f"_{g}" if len(networks) > 1 else ""
        _write_one(exported, network, out, ending, inside)
        programs.append(f"sampler{ending}.stablehlo")
    manifest = {
        **exported.manifest(),
        "programs": programs,
        "program_of_cell" if exported.reads_text else "program_of_class": owner_of.tolist(),
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
    params = dict(_params(network))
    if exported.decoder is not None:
        params[_DECODER] = exported.decoder.params
    flat = flatten(jax.device_get(params))
    run = _program(exported, network, inside, flat)
    batch = jax_export.symbolic_shape("batch")
    image = exported.sampler_run.plan.image_shape
    arguments: list[Params] = [jax.ShapeDtypeStruct((*batch, *image), jnp.float32)]
    if exported.conditional:
        arguments.append(jax.ShapeDtypeStruct(batch, jnp.int32))
    if exported.reads_text:
        arguments.append(jax.ShapeDtypeStruct((*batch, *_text_shape(exported)), jnp.float32))
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
    """(weights), noise, (labels or states of texts), (guidance), (seed) -> uint8 images."""
    sampler_run, sampler = exported.sampler_run, get_sampler(exported.sampler_run.sampler)
    loop = "unroll" if sampler_run.steps <= STRAIGHT else "scan"

    def run(*arguments: Params) -> jax.Array:
        rest = list(arguments)
        params = unflatten(flat if inside else rest.pop(0))
        decoder = params.pop(_DECODER, None)
        noise = rest.pop(0)
        cond = rest.pop(0) if exported.conditional or exported.reads_text else None
        if exported.reads_text and cond is not None:
            # Every program is of one cell: nobody reads the embedding.
            cond = TextCondition(cond, cond[:, 0, :1])
        chosen = {name: rest.pop(0) for name in exported.chosen_inputs}
        key = jax.random.key(rest.pop(0)) if rest else None
        inputs = {**sampler_run.inputs, **chosen}
        sampled = replace(sampler_run, inputs=inputs)
        denoiser = as_sampled(_with_params(network, params), sampled, _null(exported))
        clip = exported.clip or None
        images = sampler(denoiser, sampler_run.levels, noise, key, cond=cond, clip=clip, loop=loop)
        if decoder is not None:
            images = _decoded(exported, decoder, images)
        # Equal to `evaluation.metrics.pixels.quantise`: clip, x * 127.5 + 128, floor.
        whole = jnp.clip(jnp.clip(images, -1.0, 1.0) * 127.5 + 128.0, 0.0, 255.0)
        return whole.astype(jnp.uint8)

    return run


def _null(exported: Exported) -> TextCondition | None:
    """The condition of the empty text, a constant of guided programs."""
    null = exported.null_text
    return None if null is None else TextCondition(null.states, null.states[:, 0, :1])


def _decoded(exported: Exported, params: Params, latents: jax.Array) -> jax.Array:
    """Pictures of latents."""
    assert exported.decoder is not None
    scaling, module = exported.decoder.scaling, _everywhere(exported.decoder.module)
    z = latents / scaling.factor + scaling.shift
    found: jax.Array = module.apply({"params": params}, z, method="decode")  # type: ignore[assignment]
    return found


def _text_shape(exported: Exported) -> tuple[int, int]:
    """(tokens, channels) of the states of a text."""
    tokenizer = exported.sampler_run.plan.tokenizer
    assert tokenizer is not None
    return tokenizer.length, exported.text_unet.context_dim


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
    return denoiser.replace(apply_fn=type(apply)(_everywhere(module)))  # type: ignore[attr-defined]


def _everywhere(module: nn.Module) -> nn.Module:
    """The module with convolutions and attention that all platforms compile."""
    found = for_platform(module, "tpu", False)
    return found.clone(attention_impl="chunked") if hasattr(found, "attention_impl") else found


def _names(exported: Exported, inside: bool) -> list[str]:
    image = ", ".join(map(str, exported.sampler_run.plan.image_shape))
    names = [] if inside else ["weights by name"]
    names.append(f"noise [batch, {image}] float32, standard normal")
    names += ["labels [batch] int32"] if exported.conditional else []
    if exported.reads_text:
        length, width = _text_shape(exported)
        names.append(f"states [batch, {length}, {width}] float32, last hidden states of texts")
    names += [f"{name} [] float32" for name in exported.chosen_inputs]
    return names + (["seed [] uint32"] if _draws(exported) else [])


def _example(exported: Exported, inside: bool) -> str:
    shape = ", ".join(["16", *map(str, exported.sampler_run.plan.image_shape)])
    several = isinstance(exported.network, RoutedDenoiser) and exported.network.partition.groups > 1
    ending = "_0" if several else ""
    arguments = [] if inside else ["weights"]
    arguments.append("noise")
    arguments += ["labels"] if exported.conditional else []
    arguments += ["states"] if exported.reads_text else []
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
        *(_states_example(exported) if exported.reads_text else []),
        f"images = numpy.asarray(sample({', '.join(arguments)}))  # uint8",
    ]
    return "\n".join(lines).replace("import jax\n", "import jax.export\n")


def _states_example(exported: Exported) -> list[str]:
    shape = ", ".join(map(str, (16, *_text_shape(exported))))
    return [
        "# The last hidden states of 16 texts, by the text encoder of the teacher's pipeline.",
        f"states = numpy.zeros(({shape}), numpy.float32)",
    ]


def _need_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--to=stablehlo needs the package flatbuffers, with which JAX writes programs: "
            "pip install 'ddistill[export]'."
        ) from None
