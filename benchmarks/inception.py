"""Images a second of FID features: our network and torch-fidelity's, equal random weights.

    python benchmarks/inception.py --batch 32 --markdown

Variants are interleaved in one process; `ratio` is the median over rounds of torch-fidelity's time
over the variant's, so above 1 is faster than torch-fidelity. Both are given uint8 images and return
2048 features and logits, and are checked to agree before anything is timed.
"""

import argparse
import importlib
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
from timing import Variant, jaxpr_flops, machine, measure, print_table

from ddistill.evaluation.metrics.detector import inception_detector
from ddistill.interop.inception import InceptionWeights, from_state_dict
from ddistill.networks.inception import Inception, shapes
from ddistill.runtime.compilation import forward_options

TAPS = ("2048", "logits_unbiased")


def import_torch_fidelity() -> types.ModuleType:
    """The module of torch-fidelity's network, with stand-ins where torchvision does not load."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        names = ("", ".datasets", ".models", ".transforms", ".transforms.functional")
        for name in names:
            sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
        vision = sys.modules["torchvision"]
        vision.transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
        vision.transforms.functional = sys.modules["torchvision.transforms.functional"]
        for name in ("CIFAR10", "CIFAR100", "STL10"):
            setattr(sys.modules["torchvision.datasets"], name, type(name, (), {}))
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


def torch_extractor():
    """torch-fidelity's network with torch's own first weights."""
    import torch

    made = import_torch_fidelity().FeatureExtractorInceptionV3
    torch.manual_seed(0)
    given = mock.patch("torch.load", return_value={})
    with given, mock.patch.object(made, "load_state_dict", return_value=None):
        return made("inception", list(TAPS), feature_extractor_weights_path="none")


def torch_variant(name: str, extractor, pixels: np.ndarray, place: str, last: bool) -> Variant:
    import torch

    network = extractor.to(place)
    if last:
        network = network.to(memory_format=torch.channels_last)
    images = torch.tensor(pixels.transpose(0, 3, 1, 2).copy()).to(place)

    def run():
        with torch.no_grad():
            features, _ = network(images)
        return features.cpu().numpy()

    return Variant(name, run, float("nan"))


def our_variant(name: str, apply: Callable, pixels: np.ndarray) -> Variant:
    def run():
        with jax.default_matmul_precision("float32"):
            return np.asarray(apply(pixels)[0])

    start = time.perf_counter()
    run()
    return Variant(name, run, time.perf_counter() - start)


def plain(params, options) -> Callable:
    """The network on one device, with the given options of the compiler."""
    module = Inception(TAPS)
    compiled = jax.jit(
        lambda params, x: module.apply({"params": params}, x), compiler_options=options
    )
    params = jax.device_put(params)

    def apply(pixels):
        found = compiled(params, pixels)
        return found["2048"], found["logits_unbiased"]

    return apply


def check(variants: list[Variant]) -> None:
    """Raises unless all give the same features."""
    want = variants[-1].step()
    for v in variants:
        difference = np.abs(v.step() - want).max() / np.abs(want).max()
        if not difference < 1e-4:
            raise SystemExit(f"{v.name}: features differ from torch-fidelity's by {difference:.1e}")


def flops() -> float:
    """Operations of convolutions and matrix products an image."""
    module, image = Inception(TAPS), jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    return jaxpr_flops(
        jax.make_jaxpr(lambda p, x: module.apply({"params": p}, x))(shapes(), image).jaxpr
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of rounds")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    # Virtual devices of a CPU, for the variant that spreads a batch over them.
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    import torch

    extractor = torch_extractor()
    state = {name: tensor.numpy() for name, tensor in extractor.state_dict().items()}
    weights = InceptionWeights(from_state_dict(state), "random")
    shape = (args.batch, args.size, args.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    devices = jax.devices()
    one = inception_detector(weights, args.batch, devices=devices[:1])
    variants = [our_variant("ours", one.apply, pixels)]
    if devices[0].platform == "cpu" and len(devices) > 1 and args.batch % len(devices) == 0:
        many = inception_detector(weights, args.batch, devices=devices)
        variants.append(our_variant(f"ours, {len(devices)} CPU devices", many.apply, pixels))
    if forward_options() is not None:
        variants.append(our_variant("ours, XLA's defaults", plain(weights.params, None), pixels))
    place = "cuda" if torch.cuda.is_available() else "cpu"
    for last in (True, False):
        name = "torch-fidelity, channels_last" if last else "torch-fidelity"
        variants.append(torch_variant(name, torch_extractor(), pixels, place, last))
    check(variants)
    measure(variants, args.rounds, args.limit)
    per_image = flops()
    print(machine(), f"torch {torch.__version__}; {per_image / 1e9:.2f} GFLOP an image")
    table = [["variant", "images/s", "ms/image (middle half)", "GFLOP/s", "ratio", "compile s"]]
    for v in variants:
        middle = statistics.median(v.seconds) / args.batch
        low, high = (1e3 * np.percentile(v.seconds, q) / args.batch for q in (25, 75))
        ratio = statistics.median(t / s for t, s in zip(variants[-1].seconds, v.seconds))
        took = f"{v.compile_seconds:.1f}" if v.compile_seconds == v.compile_seconds else ""
        rate = [f"{1 / middle:.2f}", f"{1e3 * middle:.0f} ({low:.0f} to {high:.0f})"]
        table.append([v.name, *rate, f"{per_image / middle / 1e9:.0f}", f"{ratio:.2f}", took])
    print_table(table, args.markdown)


if __name__ == "__main__":
    main()
