"""The table of the students of a stage, for the report of a run with several students."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddistill.data import Dataset, to_unit
from ddistill.diffusion import add_noise
from ddistill.errors import in_words
from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.prompts import caption_rows, texts_of
from ddistill.evaluation.sampling import noise_bank
from ddistill.partitions import TimestepPartition, level_ranges, text_part
from ddistill.partitions.fitting import shares
from ddistill.planning.plan import StagePlan
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import EvaluationSettings
from ddistill.students import RoutedDenoiser
from ddistill.training.text_cells import read_groups
from ddistill.training.trained import Networks

# Images at which neighbouring students are compared.
COMPARED = 64


_COLUMNS = [
    "stage",
    "student",
    "levels, classes",
    "images seen",
    "loss",
    "gradient",
    "EMA apart",
    "jump",
]


def students_table(
    plans: list[StagePlan], networks: Networks, dataset: Dataset, settings: EvaluationSettings
) -> Table | None:
    """Makes a row for every student of the stages with several students; None without such stages.

    Args:
      plans: the stages, all complete.
      networks: the trained networks.
      dataset: the training images, at which neighbouring students are compared.
      settings: gives the noise bank.
    """
    rows = [
        row
        for plan in plans
        if plan.stacked
        for row in _rows(
            plan,
            _jumps(plan, networks, dataset, settings),
            _text_shares(plan, networks, dataset, settings),
        )
    ]
    if not rows:
        return None
    return Table(
        _COLUMNS,
        rows,
        title="Students",
        caption="Loss and gradient norm are means of the last log interval; 'EMA apart' is the "
        "distance between the averaged weights and the weights, relative to the average. 'Jump' is "
        "the root mean square difference between the images that a student and the next noisier "
        "student predict at the first level of the noisier one.",
        roles=["student"] * len(rows),
    )


def _rows(plan: StagePlan, jumps: list[float], texts: list[str]) -> list[list[str]]:
    logged = read_metrics(plan.folder / "metrics.jsonl")
    last, diverged = (logged or [{}])[-1], plan.diverged_students()

    def logged_text(name: str, k: int) -> str:
        if k in diverged:
            return "diverged"
        # Rows of log intervals without an update of the student have no value.
        values = [row[f"{name}/{k}"] for row in logged if f"{name}/{k}" in row]
        return f"{values[-1]:.3g}" if values else ""

    rows = []
    for k, student_plan in enumerate(plan.students):
        rows.append(
            [
                plan.name,
                student_plan.label or str(k),
                ", ".join([_share(plan, k), *texts[k : k + 1]]),
                f"{last.get(f'images/{k}', 0):,.0f}",
                logged_text("loss", k),
                logged_text("grad_norm", k),
                logged_text("ema_distance", k),
                f"{jumps[k]:.3g}" if k < len(jumps) else "",
            ]
        )
    return rows


def _share(plan: StagePlan, k: int) -> str:
    """The levels and classes of a student; levels are left out if it has all of them."""
    student_plan = plan.students[k]
    low, high = 1, student_plan.levels.num_steps
    if plan.partition is not None:  # without the margin, which only training uses
        low, high = (int(x[k]) for x in level_ranges(plan.partition, plan.levels))
    parts = []
    if (low, high) != (1, student_plan.levels.num_steps) or student_plan.classes is None:
        parts.append(f"levels {low} to {high}")
    if student_plan.classes is not None:
        parts.append("classes " + in_words(student_plan.classes))
    return ", ".join(parts)


def _text_shares(
    plan: StagePlan, networks: Networks, dataset: Dataset, settings: EvaluationSettings
) -> list[str]:
    """Of every student the shares of the captions of training, and of those that are sampled."""
    texts, tokens = text_part(plan.partition), dataset.tokens
    if plan.partition is None or texts is None or tokens is None:
        return []
    rows, size = caption_rows(settings, len(tokens)), settings.batch_size
    prompts, students = texts_of(plan, networks, tokens[rows]), networks(plan).partition
    # In batches of one size: the states of thousands of texts are gigabytes.
    parts = [
        students.group(prompts.conditions(np.arange(i, i + size)))
        for i in range(0, len(rows), size)
    ]
    sampled = np.concatenate(parts)[: len(rows)]
    learnt = shares(read_groups(plan, len(tokens)), texts.count)
    found = [
        f"{of_training:.1%} of the captions, {of_samples:.1%} of those sampled"
        for of_training, of_samples in zip(learnt, shares(sampled, texts.count))
    ]
    group_of = {k: g for g in range(texts.count) for k in plan.partition.within(g)[0]}
    return [found[group_of[k]] for k in range(plan.partition.count)]


def _jumps(
    plan: StagePlan, networks: Networks, dataset: Dataset, settings: EvaluationSettings
) -> list[float]:
    if not isinstance(plan.partition, TimestepPartition):
        return []  # only ranges of levels have neighbours
    if plan.encoder is not None or plan.latent_source is not None:
        return []  # the data of an evaluation are pictures, and the students see latents
    count = min(COMPARED, len(dataset))
    images = to_unit(jnp.asarray(dataset.take(np.arange(count))))
    cond = jnp.asarray(dataset.labels[:count]) if plan.settings.conditional else None
    noise = noise_bank(settings, plan.image_shape, 0, count)
    return boundary_jumps(networks(plan), plan, images, noise, cond)


def boundary_jumps(
    router: RoutedDenoiser,
    plan: StagePlan,
    images: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    cond: Array | None = None,
) -> list[float]:
    """Computes the RMS of x_k - x_{k+1} at the first level of student k+1, for k = 0 .. K-2.

    Args:
      router: the students.
      plan: the stage of the students.
      images: clean images in [-1, 1].
      noise: standard normal noise, added to the images.
      cond: `[B]` classes; None for unconditional students.

    Returns:
      K-1 numbers.
    """
    low, _ = level_ranges(router.partition, plan.levels)

    @jax.jit
    def difference(router: RoutedDenoiser, index: Array, k: Array) -> Array:
        level = plan.levels.at(index)
        z = add_noise(images, noise, level)
        own, next_student = (router.student(j)(z, level, cond).x0 for j in (k, k + 1))
        return jnp.sqrt(jnp.mean(jnp.square(own - next_student)))

    pairs = [(jnp.int32(low[k + 1]), jnp.int32(k)) for k in range(len(low) - 1)]
    return [float(difference(router, *pair)) for pair in pairs]
