"""DisBack: the degradation path, teachers at a step of a stage, the walk back."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser
from killed import kill_while_training
from runs import Notes, differences, plans_of, saved_state, saved_steps, tiny_settings

from ddistill import data
from ddistill.errors import CheckpointError, ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.planning.lineage import cost, distillation
from ddistill.recipes import disback, objective, smoke
from ddistill.runtime.interrupt import StopRequest
from ddistill.schedules import cosine
from ddistill.settings import GridSettings, OptimizerSettings, StageSettings, StudentsSettings
from ddistill.students import take
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import Networks, run_stages, starting_point

NODES, EVERY = 2, 4
OPTIONS = {
    "batch_size": 8,
    "optimizer": OptimizerSettings(learning_rate=1e-2),
    "ema": (0.9,),
    "loss": {"gan_weight": 0.0, "discriminator_weight": 1e-2, "student_every": 2},
}


def settings_of(stages):
    full = tiny_settings()
    teacher = dataclasses.replace(full.stages["teacher"], steps=6)
    stages = {"teacher": teacher, **stages}
    training = dataclasses.replace(full.training, keep=1, checkpoint_every=2, log_every=5)
    return dataclasses.replace(full, stages=stages, pipeline=tuple(stages), training=training)


def walk(nodes=NODES, **changes):
    path = {"steps": NODES * EVERY, "batch_size": 8, "optimizer": OPTIONS["optimizer"]}
    options = {**OPTIONS, **changes}
    return disback(nodes, interval=4, path=path, steps=6, conditional=True, **options)


# -------------------------------------------------------------------------------- the recipe


def test_the_student_walks_from_the_end_of_the_path_to_the_teacher():
    stages = walk()
    teachers = {name: (s.teacher, s.resume, s.steps) for name, s in stages.items()}
    assert teachers == {
        "path": ("teacher", "", 8),
        "disback_2": ("path@8", "", 4),
        "disback_1": ("path@4", "disback_2", 4),
        "disback": ("teacher", "disback_1", 6),
    }
    assert stages["disback_2"].init_source == "teacher"
    assert stages["path"].keep_every == EVERY
    assert [s.method for s in stages.values()] == ["", "", "", "disback"]


def test_the_walk_warms_up_once():
    optimizer = dataclasses.replace(OPTIONS["optimizer"], warmup=3)
    nodes = [stage for name, stage in walk(optimizer=optimizer).items() if name != "path"]
    assert [(s.optimizer.warmup, s.ema_warmup) for s in nodes] == [(3, True)] + [(0, False)] * 2


@pytest.mark.parametrize("key", ["init", "resume"])
def test_a_path_begins_at_the_teacher(key):
    with pytest.raises(ConfigError, match=f"disback: {key}='tsm' with nodes=2: the path is of"):
        walk(**{key: "tsm"})
    assert getattr(walk(0, **{key: "tsm"})["disback"], key) == "tsm"


@pytest.mark.parametrize("nodes", [1, 40])
def test_the_smoke_variant_names_checkpoints_that_its_path_keeps(nodes):
    path = {"steps": 2 * nodes, "batch_size": 8, "optimizer": OPTIONS["optimizer"]}
    stages = disback(nodes, interval=4, path=path, steps=6, conditional=True, **OPTIONS)
    shrunk = smoke(settings_of(stages), {})
    every, steps = shrunk.stages["path"].keep_every, shrunk.stages["path"].steps
    named = [s.teacher for name, s in shrunk.stages.items() if name.startswith("disback_")]
    assert len(named) == nodes
    for teacher in named:
        step = int(teacher.removeprefix("path@"))
        assert 0 < step <= steps
        assert step % every == 0 or step == steps


def test_an_empty_path_is_dmd2(tmp_path):
    (empty,) = walk(0).values()
    plain = StageSettings(
        objective=objective("dmd2", **OPTIONS["loss"]),
        teacher="teacher",
        init="teacher",
        grid=GridSettings(steps=1),
        steps=6,
        conditional=True,
        **{k: v for k, v in OPTIONS.items() if k != "loss"},
    )
    plans = [
        plans_of(settings_of({"student": stage}), tmp_path / name)["student"]
        for name, stage in (("empty", empty), ("plain", plain))
    ]
    assert plans[0].digest == plans[1].digest


# --------------------------------------------------------------------------------- planning


def changed(name, **changes):
    stages = walk()
    return settings_of({**stages, name: dataclasses.replace(stages[name], **changes)})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            changed("disback_1", teacher="path@5"),
            "teacher='path@5': stage 'path' keeps no checkpoint of step 5. It keeps multiples of "
            "keep_every=4 and its last step, 8. Did you mean 'path@4'?",
        ),
        (
            changed("disback", teacher="teacher@3"),
            "keeps no checkpoint of step 3. It keeps its last step, 6. Did you mean 'teacher@6'?",
        ),
        (changed("disback_2", teacher="path@x"), "a step or 'last' has to follow the '@'"),
        (changed("disback_2", teacher="pth@8"), "teacher='pth' is not a stage before this one"),
        (changed("disback_2", init="fresh@last"), "init='fresh' is not a stage before this one"),
        (changed("path", keep_every=9), "keep_every=9 must be 0 (none) to 8"),
        (changed("path", keep_every=-1), "keep_every=-1 must be 0"),
        (settings_of({"a@1": walk(0)["disback"]}), "has an '@', which stands between a stage"),
    ],
)
def test_checkpoints_that_are_not_kept_are_refused_before_anything_compiles(
    settings, words, tmp_path
):
    with pytest.raises(ConfigError) as caught:
        plans_of(settings, tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_of_the_teacher_is_part_of_a_stage(tmp_path):
    usual = {name: plan.digest for name, plan in plans_of(changed("path"), tmp_path / "a").items()}
    other = changed("disback_1", teacher="path@8")
    found = {name: plan.digest for name, plan in plans_of(other, tmp_path / "b").items()}
    assert {n for n in usual if usual[n] != found[n]} == {"disback_1", "disback"}
    # Another path is another training of all that walk it.
    kept = plans_of(changed("path", keep_every=2), tmp_path / "c")
    assert {n for n in usual if usual[n] != kept[n].digest} == usual.keys() - {"teacher"}
    same = plans_of(changed("disback", teacher="teacher@last"), tmp_path / "d")
    assert {name: plan.digest for name, plan in same.items()} == usual


def test_a_stage_continues_with_another_checkpoint_of_its_teacher_alone(tmp_path):
    stages = walk()
    other = dataclasses.replace(tiny_settings().stages["teacher"], steps=7, shared=False)
    stages = {"other": other, **stages}
    stages["disback"] = dataclasses.replace(stages["disback"], teacher="other")
    with pytest.raises(ConfigError, match="teacher is 'other' here and 'path@4' there"):
        plans_of(settings_of(stages), tmp_path / "run")


# ---------------------------------------------------------------------------- closed forms

MEAN, STD = 0.2, 0.7


def test_the_path_leads_from_the_teacher_to_the_untrained_student():
    """Gaussian scores: their spread falls from the data's to that of one-step images."""
    tables = make_level_tables(cosine(16), np.arange(17))
    teacher = GaussianDenoiser(MEAN, STD)
    method = make_objective({"name": "degradation", "weight": "uniform"})
    top = tables.teacher.at(16)
    slope = float(top.alpha * STD**2 / (top.alpha**2 * STD**2 + top.sigma**2))
    # Of the images x0 = mean + slope (z - alpha mean), z standard normal times max(1, sigma).
    generated = slope * max(1.0, float(top.sigma))

    @jax.jit
    def step(std, seed):
        def loss(std):
            networks = {"student": GaussianDenoiser(MEAN, std), "teacher": teacher}
            batch = tiny.batch(64).replace(keys=jax.random.split(jax.random.key(seed), 64))
            return jnp.mean(method.regression_loss(networks, batch, tables)[0])

        return std - 0.3 * jax.grad(loss)(std)

    path = [jnp.float32(STD)]
    for seed in range(120):
        path.append(step(path[-1], seed))
    nodes = np.asarray(path[::30])
    assert np.all(np.diff(nodes) < 0)
    assert nodes[-1] < STD - 0.8 * (STD - generated)
    # Each move is a part of the distance that a student without the path has to go at once.
    assert np.abs(np.diff(nodes)).max() < 0.9 * (nodes[0] - nodes[-1])


def test_the_first_node_does_not_move_an_untrained_student():
    """The fake denoiser starts as the first teacher, and scores of equal networks cancel."""
    method = make_objective({"name": "dmd2", **OPTIONS["loss"]}).prepare(
        StageFacts(np.array([0, 16]), NetworkFacts(teacher=tiny.TinyNet(), prediction="v"))
    )
    tables = make_level_tables(cosine(16), np.array([0, 16]))
    ours, node = tiny.tiny_denoiser(1), tiny.tiny_denoiser(2)

    @jax.jit
    def largest(student, fake):
        def loss(params):
            networks = {"student": dataclasses.replace(student, params=params)}
            networks |= {"teacher": node, "fake": fake}
            return jnp.mean(method.student_loss(networks, tiny.batch(6), tables)[0])

        grads = jax.tree.leaves(jax.grad(loss)(student.params))
        return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in grads]))

    assert largest(ours, node) == 0.0
    assert largest(ours, tiny.tiny_denoiser(3)) > 1e-4


def test_costs_are_those_of_both_stages():
    """One step of the generator and three passes of the score a step; then DMD2's."""
    degradation = make_objective({"name": "degradation"})
    assert degradation.teacher_calls() == 1
    assert not degradation.requires.images
    assert degradation.requires.teacher
    dmd2 = make_objective({"name": "dmd2", **OPTIONS["loss"]}).prepare(
        StageFacts(np.array([0, 16]))
    )
    assert dmd2.teacher_calls() == 0.5


# ------------------------------------------------------------------------------ whole stages


def train(wanted, workdir):
    """The stages of a run by name, trained, and what was said."""
    plans, notes = plans_of(wanted, workdir), Notes()
    context = RunContext(wanted, data.load(wanted.data, "train"), notes, StopRequest())
    run_stages(list(plans.values()), context)
    return plans, notes.said


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A run of all stages, of which two were killed and resumed."""
    run = settings_of(walk()), tmp_path_factory.mktemp("walk") / "run"
    kill_while_training("path", 7, train, *run)
    kill_while_training("disback_1", 3, train, *run)
    plans, said = train(*run)
    assert any("going on from the checkpoint at step 2" in line for line in said)
    return plans


@pytest.mark.slow
def test_kept_checkpoints_are_the_teachers_and_the_walk_goes_on_from_itself(walked):
    assert saved_steps(walked["path"]) == [4, 8]
    networks = Networks()
    for name, step in (("disback_2", 8), ("disback_1", 4)):
        teacher = networks.teacher(walked[name], walked)
        kept = saved_state(walked["path"], step).params["student"]
        assert not differences(teacher.params, jax.tree.map(np.asarray, kept))
    assert networks.teacher(walked["disback"], walked) is not None
    first = starting_point(walked["disback_2"], walked, networks)
    end = saved_state(walked["path"], 8).params["student"]
    assert not differences(first.weights["fake"].params, jax.tree.map(np.asarray, end))
    origin = networks.weights(walked["teacher"])
    assert isinstance(origin, Weights)
    assert not differences(first.weights["student"].params, origin.params)
    # The next stage begins where the one before has ended.
    second = starting_point(walked["disback_1"], walked, networks)
    end = saved_state(walked["disback_2"], 4).params
    assert not differences(second.weights["fake"].params, end["fake"])
    assert not differences(second.weights["student"].params, end["student"])
    # A step of the generator in 8 steps of 8 images, a call in half of 4 + 4 + 6 steps.
    stages = distillation(walked["disback"], "teacher", list(walked.values()))
    assert [plan.name for plan in stages] == [
        "path",
        "disback_2",
        "disback_1",
        "disback",
    ]
    assert cost(stages).teacher_calls == 8 * 8 + 14 * 8 // 2


@pytest.mark.slow
def test_one_student_that_was_not_killed_ends_as_a_plain_one_that_was(walked, tmp_path):
    one = StudentsSettings(count=1, partition="classes")
    wanted = settings_of(walk(students=one))
    plans, _ = train(wanted, tmp_path / "run")
    for step in (4, 8):
        ends = [saved_state(p["path"], step) for p in (plans, walked)]
        assert not differences(*ends)
    for name, step in (("disback_2", 4), ("disback_1", 4), ("disback", 6)):
        alone, plain = (saved_state(p[name], step) for p in (plans, walked))
        for field in ("params", "opt_state", "ema"):
            assert not differences(take(getattr(alone, field), 0), getattr(plain, field))
    shutil.rmtree(plans["path"].folder / "checkpoints" / "8")
    words = "checkpoint at step 8 of stage 'path'.*another stage"
    with pytest.raises(CheckpointError, match=words):
        Networks().teacher(plans["disback_2"], plans)
