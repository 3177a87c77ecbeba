"""Times what comparing in a classifier's features adds to a step of progressive distillation.

    python benchmarks/classifier_step.py --markdown

A step of CFD runs the classifier forward on the target, and forward and backward on the student's
image; it may cost at most a PD step and 2.2 times the classifier's forward and backward pass. The
three are interleaved in one process and compared within a round, as in train_step.py.
"""

import argparse
import dataclasses
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from timing import Variant, machine, measure, print_table

from ddistill import data, recipes
from ddistill.data.facts import DataFacts
from ddistill.networks.weights import Weights
from ddistill.objectives.classification import Classifier
from ddistill.optimizers import make_optimizer
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import plan_stages
from ddistill.runtime.compilation import compiler_options
from ddistill.runtime.cpu import use_quick_code
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, data_mesh, over_data, replicate, use_cores_as_devices
from ddistill.settings import Settings
from ddistill.training.compiled import Chunk
from ddistill.training.initial import initial_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings


def plans(settings: Settings, image: tuple[int, int, int]) -> dict[str, StagePlan]:
    """The stages of an experiment, on made-up images of that shape."""
    images = np.zeros((256, *image), np.uint8)
    dataset = data.Dataset("made up", images, np.arange(256) % 10, 10, tuple("0123456789"))
    with TemporaryDirectory() as folder:
        made = plan_stages(settings, DataFacts.of(dataset), Path(folder), Path(folder) / "shared")
    return {plan.name: plan for plan in made}


def step_variant(plan: StagePlan, teacher: StagePlan, critic: StagePlan, batch: int) -> Variant:
    """A train step of one stage, as the loop compiles it."""
    mesh = data_mesh(batch)
    layout = Layout(mesh)
    state = initial_state(plan, layout=layout)
    there, judge = initial_state(teacher), initial_state(critic)
    denoiser = teacher.objective.trains.bind(
        teacher.module, Weights(there.params["student"]), teacher.settings.prediction
    )
    weights = Weights(judge.params["student"], judge.statistics["student"])
    classifier = critic.objective.trains.bind(critic.module, weights, "")
    needed = classifier if plan.objective.requires.classifier else None
    inputs = replicate(mesh, StepInputs(denoiser, plan.tables, needed))
    s = StepSettings(
        objective=plan.objective,
        modules=plan.modules,
        prediction=plan.settings.prediction,
        optimizers={"student": make_optimizer(plan.settings.optimizer)},
        layout=layout,
    )
    chunk = Chunk(make_step(s), 1, True, layout)
    images = jnp.zeros((256, *plan.image_shape), jnp.uint8)
    labels, batch_indices = jnp.zeros(256, jnp.int32), np.arange(batch)[None]
    key, rates = stream_key(0, "benchmark"), {"student": np.zeros(1, np.float32)}

    def run():
        nonlocal state
        state, _ = jax.block_until_ready(
            chunk(state, inputs, images, labels, batch_indices, key, rates)
        )

    start = time.perf_counter()
    run()
    return Variant(plan.settings.method.upper() + " step", run, time.perf_counter() - start)


def classifier_variant(critic: StagePlan, batch: int) -> Variant:
    """The classifier's forward pass and its gradient by the image."""
    mesh = data_mesh(batch)
    state = initial_state(critic)
    weights = Weights(state.params["student"], state.statistics["student"])
    network = replicate(mesh, Classifier(weights, critic.module))
    x = jax.device_put(jnp.zeros((batch, *critic.image_shape)), over_data(mesh))

    def both(network, x):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.square(network(x)[1])))(x)

    run = jax.jit(both, compiler_options=compiler_options())
    start = time.perf_counter()
    jax.block_until_ready(run(network, x))
    seconds = time.perf_counter() - start
    return Variant(
        "classifier, forward and backward", lambda: jax.block_until_ready(run(network, x)), seconds
    )


def experiments() -> dict[str, tuple[Settings, tuple[int, int, int], dict[str, int]]]:
    """By name: settings, image shape, batch on a CPU and elsewhere."""
    digits = recipes.digits("digits", recipes.digits_chain("cfd"))
    cifar = recipes.cfd_cifar("cfd")
    small = {**cifar.stages, "feature_classifier": recipes.feature_classifier_stage("resnet")}
    cifar = dataclasses.replace(cifar, stages=small)
    return {
        "digits": (digits, (8, 8, 1), {"cpu": 64, "gpu": 256}),
        "cifar": (cifar, (32, 32, 3), {"cpu": 4, "gpu": 128}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="digits", help="of: digits, cifar")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of rounds a network")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    use_quick_code(os.environ)
    use_cores_as_devices()
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    print(machine())
    table = [["network", "batch", "variant", "ms (middle half)", "compile s"]]
    summary = []
    for name in args.networks.split(","):
        settings, image, batches = experiments()[name]
        batch = batches[kind]
        made = plans(settings, image)
        pd = dataclasses.replace(
            made["cfd_n4"].settings, method="pd", objective=made["pd_n8"].settings.objective
        )
        pixels = dataclasses.replace(made["cfd_n4"], settings=pd, objective=made["pd_n8"].objective)
        stages = (made["teacher"], made["feature_classifier"], batch)
        variants = [
            step_variant(pixels, *stages),
            step_variant(made["cfd_n4"], *stages),
            classifier_variant(made["feature_classifier"], batch),
        ]
        measure(variants, args.rounds, args.limit)
        for v in variants:
            low, high = np.percentile(v.seconds, [25, 75])
            spread = (
                f"{1e3 * statistics.median(v.seconds):.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})"
            )
            table.append([name, str(batch), v.name, spread, f"{v.compile_seconds:.1f}"])
        extra = [(c - p) / k for p, c, k in zip(*(v.seconds for v in variants))]
        low, high = np.percentile(extra, [25, 75])
        summary.append(
            f"{name}: CFD - PD = {statistics.median(extra):.2f} classifier passes "
            f"(middle half {low:.2f} to {high:.2f}), bound 2.2"
        )
    print_table(table, args.markdown)
    print("\n".join(summary))


if __name__ == "__main__":
    main()
