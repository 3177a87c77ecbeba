"""Numbers that an objective measures of a trained student, over the training images."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.data import Dataset, to_unit
from ddistill.networks.weights import Weights
from ddistill.objectives.parts import Measures
from ddistill.planning.plan import StagePlan
from ddistill.runtime.hosts import from_first
from ddistill.runtime.sharding import to_host

Numbers: TypeAlias = Mapping[str, float]
# Images that are measured, spread evenly over a larger data set.
MOST_IMAGES = 10_000
# More decimals say nothing about images that were not measured.
_DIGITS = 6


def measure(
    plan: StagePlan, weights: Weights, dataset: Dataset, say: Callable[[str], None]
) -> list[Numbers]:
    """By student, the numbers of the stage's measures; [] if it measures none.

    The first process measures, on one device; the others wait.

    Args:
      plan: the stage.
      weights: those that it hands on.
      dataset: the training images.
      say: shows the numbers to the user.
    """
    measures = plan.objective.diagnostics.measures
    if measures is None:
        return []
    own = to_host(weights)  # all processes gather arrays that are spread over devices
    found = from_first(lambda: _of_students(plan, measures, own, dataset))
    for k, numbers in enumerate(found):
        who = f"student {k}: " if plan.stacked else ""
        say(who + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    return list(found)


def _of_students(
    plan: StagePlan, measures: Measures, weights: Weights, dataset: Dataset
) -> list[dict[str, float]]:
    count = min(len(dataset), MOST_IMAGES)
    rows = np.arange(count) * len(dataset) // count
    size = min(count, max(1, plan.settings.batch_size // plan.settings.accumulate))

    @jax.jit
    def of_batch(own: Weights, images: jax.Array) -> Mapping[str, jax.Array]:
        network = plan.objective.trains.bind(plan.module, own, plan.settings.prediction)
        return measures.of_images(network, to_unit(images))

    found = []
    for k in range(len(plan.students)):
        own = weights.student(k) if plan.stacked else weights
        sums: dict[str, float] = {}
        for start in range(0, count, size):
            part = rows[start : start + size]
            # One shape for all batches, so that one program is compiled.
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part))])
            values = of_batch(own, jnp.asarray(dataset.images[full]))
            for name, value in values.items():
                total = np.sum(np.asarray(value, np.float64)[: len(part)])
                sums[name] = sums.get(name, 0.0) + float(total)
        means = {name: total / count for name, total in sums.items()}
        found.append({n: float(f"{x:.{_DIGITS}g}") for n, x in measures.stored(means).items()})
    return found
