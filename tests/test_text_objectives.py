"""Methods on texts, in closed form: the data of each prompt are a Gaussian of known mean."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct
from gaussian import GaussianDenoiser

from ddistill.conditions import TextCondition, Tokens, text_leaves, token_leaves
from ddistill.denoiser import Denoiser
from ddistill.objectives import Batch, make_objective
from ddistill.objectives.base import start_memory
from ddistill.objectives.inputs import Pairs
from ddistill.objectives.matching.generator import GeneratorInput
from ddistill.objectives.matching.losses import _generate_both
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.states import REPLAY_CONDITION, noised, replayed
from ddistill.partitions import timestep_partition
from ddistill.schedules import cosine
from ddistill.students import RoutedDenoiser
from ddistill.training.step_inputs import StepInputs, StepSettings, with_pairs
from ddistill.wrapped_denoiser import GuidedDenoiser

LEVELS = 4
TABLES = tiny.tables(levels=LEVELS)
GRID = np.asarray(TABLES.grid)[: LEVELS + 1]
# The means of two prompts and of the empty text.
MEANS = np.array([-0.5, 0.7, 0.1], np.float32)
EMPTY = 2


def texts(prompts) -> TextCondition:
    """Two tokens of two channels, of which the mean is that of the prompt's data."""
    offsets = np.array([[[0.3, -0.1], [-0.4, 0.2]]], np.float32)
    states = jnp.asarray(MEANS[np.asarray(prompts)][:, None, None] + offsets)
    return TextCondition(states, states.mean(axis=1))


@struct.dataclass
class ExactOfTexts:
    """The exact denoiser of N(mean of the text + `shift`, `std`^2)."""

    shift: Any = 0.0
    std: float = 0.4
    prediction: str = struct.field(pytree_node=False, default="x0")

    def __call__(self, z, level, cond=None, *, key=None):
        mean = cond.states.mean(axis=(1, 2))[:, None, None, None] + self.shift
        return GaussianDenoiser(mean, self.std)(z, level)


@struct.dataclass
class MakesMeans:
    """A generator whose images are the means of their texts plus `shift`."""

    shift: Any = 0.0

    def __call__(self, z, level, cond=None, *, key=None):
        mean = cond.states.mean(axis=(1, 2))[:, None, None, None] + self.shift
        return dataclasses.replace(GaussianDenoiser()(z, level), x0=jnp.broadcast_to(mean, z.shape))


def batch(prompts=(0, 1, 1, 0, 1, 0), seed=0) -> Batch:
    cond = texts(prompts)
    made = tiny.batch(len(prompts), seed)
    null = texts([EMPTY] * len(prompts))
    return dataclasses.replace(made, cond=cond, null=null, image=made.image * 0 + 0.2)


def loss(name, student, teacher, given=None, **changes):
    objective = make_objective({"name": name, **changes}).prepare(StageFacts(GRID))
    networks = {"student": student, "teacher": teacher, "fake": changes.get("fake")}
    return objective.updates[0].loss(networks, given or batch(), TABLES)[0]


@pytest.mark.parametrize("name, options", [("o2mkd", {}), ("sfddm", {"substeps": 2})])
def test_a_student_of_the_prompts_means_has_no_loss_and_another_has(name, options):
    exact = ExactOfTexts(std=0.0)  # a point each, which one step finds as well as many
    np.testing.assert_allclose(loss(name, exact, exact, **options), 0.0, atol=1e-9)
    assert (loss(name, ExactOfTexts(0.1, 0.0), exact, **options) > 1e-4).all()
    # The student of an image is given the text of this image.
    swapped = dataclasses.replace(batch(), cond=texts([1, 0, 0, 1, 0, 1]))
    np.testing.assert_allclose(loss(name, exact, exact, swapped, **options), 0.0, atol=1e-9)
    assert not np.allclose(
        loss(name, ExactOfTexts(0.1, 0.0), ExactOfTexts(), swapped, **options),
        loss(name, ExactOfTexts(0.1, 0.0), ExactOfTexts(), **options),
    )


@pytest.mark.parametrize("prompt", [0, 1])
def test_matching_pulls_images_towards_the_mean_of_their_prompt(prompt):
    objective = make_objective({"name": "dmd", "regression_weight": 0.0, "backward": "data"})
    objective = objective.prepare(StageFacts(GRID))
    given = batch([prompt] * 6)

    def total(shift):
        networks = {"student": MakesMeans(shift), "teacher": ExactOfTexts()}
        networks["fake"] = ExactOfTexts(shift=apart)
        return jnp.sum(objective.student_loss(networks, given, TABLES)[0])

    for apart in (0.5, -0.5):
        assert np.sign(jax.grad(total)(apart)) == np.sign(apart)
    apart = 0.0
    assert jax.grad(total)(0.0) == 0.0


def shifted(params, x, time, cond, *, train, rngs, taps):
    mean = cond.states.mean(axis=(1, 2))[:, None, None, None] + params["shift"]
    return jnp.broadcast_to(mean, x.shape)


def test_students_of_levels_are_given_the_texts_of_their_images():
    given = batch()
    for shifts in ([0.3], [0.3, -0.6]):
        students = Denoiser({"shift": jnp.asarray(shifts)}, shifted, "x0")
        parted = timestep_partition(cosine(32), len(shifts))
        routed = RoutedDenoiser(students, parted)
        index = jnp.array([1, 32, 9, 16, 17, 30])
        level = cosine(32).at(index)
        owners = (
            np.asarray(parted.owner(level)).reshape(-1) if len(shifts) > 1 else np.zeros(6, int)
        )
        wanted = MEANS[[0, 1, 1, 0, 1, 0]] + np.array(shifts)[owners]
        found = routed(given.image, level, given.cond).x0
        np.testing.assert_allclose(found[:, 0, 0, 0], wanted, rtol=1e-5)
    assert set(owners) == {0, 1}


def test_guided_losses_of_texts_are_those_of_the_guided_teacher():
    exact = ExactOfTexts()
    guided = GuidedDenoiser(exact, 3.0, texts([EMPTY]))
    # For points, the guided target is the empty text's mean and three times the way from it.
    points = GuidedDenoiser(ExactOfTexts(std=0.0), 3.0, texts([EMPTY]))
    means = MEANS[EMPTY] + 3.0 * (MEANS - MEANS[EMPTY])
    level = TABLES.student.at(jnp.int32(2))
    found = points(batch().image, level, batch().cond).x0[:, 0, 0, 0]
    np.testing.assert_allclose(found, means[[0, 1, 1, 0, 1, 0]], rtol=1e-4)
    np.testing.assert_allclose(loss("o2mkd", guided, guided), 0.0, atol=1e-9)
    assert (loss("o2mkd", exact, guided) > 1e-5).all()


# --------------------------------------------------------------------------------- pairs, buffers


def test_pairs_are_drawn_with_their_texts_and_encoded():
    rng = np.random.default_rng(0)
    count, numbers = 9, np.arange(9, dtype=np.int32)
    pairs = Pairs(
        jnp.asarray(rng.normal(size=(count, *tiny.IMAGE)), jnp.float32),
        jnp.zeros(count, jnp.int32),
        jnp.broadcast_to(jnp.asarray(numbers)[:, None, None, None], (count, *tiny.IMAGE)),
        Tokens(jnp.asarray(np.stack([numbers % 2, numbers], axis=1))),
    )
    objective = make_objective({"name": "dmd"})
    settings = StepSettings(objective, {}, "x0", {})
    inputs = StepInputs(None, TABLES, pairs=pairs, text_encoder=lambda ids: texts_of_ids(ids))
    found = with_pairs(settings, batch(), inputs).pairs
    rows = np.asarray(found.image)[:, 0, 0, 0].astype(int)
    assert len(set(rows)) > 1
    np.testing.assert_allclose(found.cond.states, texts(rows % 2).states)
    # The regression gives the student the pair's text, and not that of the batch.
    given = batch()
    given = dataclasses.replace(given, pairs=found)
    level = TABLES.student.at(jnp.full(6, LEVELS))
    own, of_pairs = _generate_both(
        MakesMeans(), GeneratorInput(given.image, level, given.cond), given, TABLES
    )
    np.testing.assert_allclose(own[:, 0, 0, 0], MEANS[[0, 1, 1, 0, 1, 0]], rtol=1e-5)
    np.testing.assert_allclose(of_pairs[:, 0, 0, 0], MEANS[rows % 2], rtol=1e-5)


def texts_of_ids(ids):
    """An encoder that reads the prompt off the first token."""
    means = jnp.asarray(MEANS)[ids[:, 0]]
    offsets = jnp.array([[[0.3, -0.1], [-0.4, 0.2]]])
    states = means[:, None, None] + offsets
    return TextCondition(states, states.mean(axis=1))


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_a_buffer_keeps_the_texts_of_its_states(kind):
    leaves = text_leaves(2, 2) if kind == "texts" else token_leaves(2)
    objective = make_objective({"name": "o2mkd", "student_states": 1.0, "replay_batches": 2})
    sizes = {"steps": 9, "batch_size": 6, "image_shape": tiny.IMAGE}
    objective = objective.prepare(StageFacts(GRID, **sizes, conditional=True, condition=leaves))
    memory = start_memory(objective, jax.random.key(0))
    names = {"states", "pooled"} if kind == "texts" else {"ids"}
    assert {n for n in memory if n.startswith(REPLAY_CONDITION)} >= {
        REPLAY_CONDITION + n for n in names
    }
    known, old = [], 0
    for seed in range(3):
        given = batch(np.random.default_rng(seed).integers(0, 2, 6), seed)
        cond = given.cond
        if kind == "tokens":
            cond = Tokens(
                jnp.asarray(np.random.default_rng(seed).integers(0, 99, (6, 2)), jnp.int32)
            )
        given = dataclasses.replace(given, memory=memory)
        made = noised(given, TABLES, jnp.full(6, 2), cond)
        found = replayed(made, given, TABLES, 0.7)
        assert jax.tree.structure(found.cond) == jax.tree.structure(cond)
        own = [_row(made, i) for i in range(6)]
        for i in range(6):
            matches = [j for j, (z, c) in enumerate([own[i], *known]) if _same(found, i, z, c)]
            assert matches, "a state is the example's own or one of the buffer, with its text"
            old += matches[0] > 0
        known, memory = [*known, *own], found.memory
    assert old > 4


def _row(state, i):
    return np.asarray(state.z[i]), [np.asarray(x[i]) for x in jax.tree.leaves(state.cond)]


def _same(state, i, z, leaves):
    ours, told = _row(state, i)
    return np.array_equal(ours, z) and all(map(np.array_equal, told, leaves))
