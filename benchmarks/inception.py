"""Images a second of FID features: our network and torch-fidelity's, equal random weights.

    python benchmarks/inception.py --batch 32 --markdown

Variants are interleaved in one process; `ratio` is the median over rounds of the last row's time
over the variant's, so above 1 is faster than that row. All are given uint8 images and return 2048
features and logits, and those in float32 are checked to agree before anything is timed. Without
torch-fidelity the weights are random and there are no rows of torch. FID is defined in float32;
"default precision" is TF32 on GPUs and bfloat16 on TPUs, and "torch bfloat16" uses autocast.
"""

import argparse
import functools
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
from timing import Deadline, Variant, jaxpr_flops, machine, print_table

from ddistill.evaluation.metrics.detector import inception_detector
from ddistill.interop.inception import InceptionWeights, from_state_dict
from ddistill.networks.inception import Inception, shapes
from ddistill.runtime.compilation import forward_options
from ddistill.runtime.sharding import use_cores_as_devices

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


def torch_variant(name: str, pixels: np.ndarray) -> Variant:
    """torch-fidelity's network; the name says its layout, precision, and torch.compile."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_extractor().to(place)
    if "channels_last" in name:
        network = network.to(memory_format=torch.channels_last)
    compiled = "torch.compile" in name
    call = torch.compile(network) if compiled else network
    images = torch.tensor(pixels.transpose(0, 3, 1, 2).copy()).to(place)

    def run():
        with torch.no_grad(), torch.autocast(place, torch.bfloat16, enabled="bfloat16" in name):
            features, _ = call(images)
        return features.float().cpu().numpy()

    start = time.perf_counter()
    if compiled:
        run()
    return Variant(name, run, time.perf_counter() - start if compiled else float("nan"))


def our_variant(
    name: str, apply: Callable, pixels: np.ndarray, precision: str = "float32"
) -> Variant:
    def run():
        with jax.default_matmul_precision(precision):
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
    """Raises unless all variants in float32 give the same features."""
    exact = [v for v in variants if not any(word in v.name for word in ("precision", "bfloat16"))]
    want = exact[-1].step()
    for v in exact:
        difference = np.abs(v.step() - want).max() / np.abs(want).max()
        if not difference < 1e-4:
            raise SystemExit(f"{v.name}: features differ from {exact[-1].name} by {difference:.1e}")


def random_weights() -> InceptionWeights:
    """Random parameters that keep the variance of activations from layer to layer."""
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(x.shape) < 2:
            return np.zeros(x.shape, np.float32)
        scale = np.sqrt(2.0 / np.prod(x.shape[:-1]))
        return (scale * rng.standard_normal(x.shape)).astype(np.float32)

    return InceptionWeights(jax.tree.map(draw, shapes()), "random")


def flops() -> float:
    """Operations of convolutions and matrix products an image."""
    module, image = Inception(TAPS), jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    return jaxpr_flops(
        jax.make_jaxpr(lambda p, x: module.apply({"params": p}, x))(shapes(), image).jaxpr
    )


def has_torch_fidelity() -> bool:
    """Whether torch and torch-fidelity can be imported."""
    try:
        import torch  # noqa: F401

        import_torch_fidelity()
    except ImportError:
        return False
    return True


def variants(
    weights: InceptionWeights, pixels: np.ndarray, torch: bool, args: argparse.Namespace
) -> dict[str, Callable[[], Variant]]:
    """Every variant that this machine can run, by name; torch-fidelity's own last."""
    devices, made = jax.devices(), {}

    def ours(name: str, count: int, precision: str = "float32") -> None:
        def make() -> Variant:
            detector = inception_detector(weights, args.batch, devices=devices[:count])
            return our_variant(name, detector.apply, pixels, precision)

        made[name] = make

    ours("ours", 1)
    cpu = devices[0].platform == "cpu"
    if cpu and len(devices) > 1 and args.batch % len(devices) == 0:
        ours(f"ours, {len(devices)} CPU devices", len(devices))
    if not cpu:
        ours("ours, default precision", 1, "default")
    if forward_options() is not None and not args.no_defaults:
        name = "ours, XLA's defaults"
        made[name] = lambda: our_variant(name, plain(weights.params, None), pixels)
    names = ["torch-fidelity, channels_last", "torch-fidelity"]
    if args.torch_compile:
        halves = [] if cpu else ["torch.compile bfloat16, channels_last"]
        names = [*halves, "torch.compile, channels_last", *names]
    for name in names if torch else []:
        made[name] = functools.partial(torch_variant, name, pixels)
    return made


def table(made: list[Variant], batch: int) -> list[list[str]]:
    """The heading and a row for each variant that was timed."""
    per_image, timed = flops(), [v for v in made if v.seconds]
    rows = [["variant", "images/s", "ms/image (middle half)", "GFLOP/s", "ratio", "compile s"]]
    for v in timed:
        middle = statistics.median(v.seconds) / batch
        low, high = (1e3 * np.percentile(v.seconds, q) / batch for q in (25, 75))
        ratio = statistics.median(t / s for t, s in zip(timed[-1].seconds, v.seconds))
        took = f"{v.compile_seconds:.1f}" if v.compile_seconds == v.compile_seconds else ""
        rate = [f"{1 / middle:.2f}", f"{1e3 * middle:.3g} ({low:.3g} to {high:.3g})"]
        rows.append([v.name, *rate, f"{per_image / middle / 1e9:.0f}", f"{ratio:.2f}", took])
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of rounds")
    parser.add_argument("--seconds", type=float, default=0.0, help="of all; 0: no limit")
    parser.add_argument("--torch-compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--no-defaults", action="store_true", help="no row of XLA's defaults")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)
    deadline = Deadline(args.seconds)
    use_cores_as_devices()  # for the variant that spreads a batch over them
    torch = not args.no_torch and has_torch_fidelity()
    if torch:
        state = {name: tensor.numpy() for name, tensor in torch_extractor().state_dict().items()}
        weights = InceptionWeights(from_state_dict(state), "random")
    else:
        print("torch or torch-fidelity is not installed: no rows of torch")
        weights = random_weights()
    shape = (args.batch, args.size, args.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made: list[Variant] = []

    def show() -> None:
        print(f"{machine()}; {flops() / 1e9:.2f} GFLOP an image, batch {args.batch}")
        print_table(table(made, args.batch), args.markdown)

    deadline.watch(show)
    for name, make in variants(weights, pixels, torch, args).items():
        deadline.prepare(name, make, made)
    check(made)
    deadline.measure(made, args.rounds, args.limit)
    deadline.close()
    show()


if __name__ == "__main__":
    main()
