"""Stages of many students: O2MKD's objective, planning, training, resuming and what they cost."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import LateStop, Notes, differences, one_stage, plans_of, saved_state

from ddistill import data, networks, recipes
from ddistill.diffusion import add_noise
from ddistill.errors import ConfigError, TrainingError
from ddistill.evaluation.diverged import without_diverged
from ddistill.evaluation.report.students_table import boundary_jumps, students_table
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.base import static_part
from ddistill.objectives.inputs import Share
from ddistill.objectives.o2mkd import O2MKD
from ddistill.objectives.sampling import normal
from ddistill.planning.lineage import cost
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.schedules import cosine, make_grid
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    Settings,
    StudentsSettings,
)
from ddistill.students import RoutedDenoiser, clone, take
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.state import count_parameters
from ddistill.training.trained import Networks, load_network, load_weights

# ---------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_loss_is_the_published_formula(prediction):
    """mean |e_k - e_T|^2 at z_t (arXiv 2410.04191), computed here in float64 from both outputs."""
    tables, batch = tiny.tables(), tiny.batch()
    student, teacher = (tiny.tiny_denoiser(i, prediction) for i in (1, 0))
    objective = O2MKD(output_weight=2.0, task_weight=0.5)
    found, _ = objective.regression_loss({"student": student, "teacher": teacher}, batch, tables)

    draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, 5))
    level = tables.student.at(draw(batch.key("level")))
    noise = normal(batch.key("noise"), batch.image)
    z = add_noise(batch.image, noise, level)
    ours, theirs = (np.asarray(d(z, level).eps, np.float64) for d in (student, teacher))
    output = np.mean((ours - theirs) ** 2, axis=(1, 2, 3))
    task = np.mean((ours - np.asarray(noise, np.float64)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found, 2.0 * output + 0.5 * task, rtol=1e-5, atol=1e-6)


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    tables, batch, teacher = tiny.tables(), tiny.batch(), tiny.tiny_denoiser(0)

    def loss(params):
        networks = {"student": teacher.replace(params=params), "teacher": teacher}
        return jnp.sum(O2MKD().regression_loss(networks, batch, tables)[0])

    value, gradient = jax.value_and_grad(loss)(teacher.params)
    assert float(value) == 0.0
    assert all(float(jnp.max(jnp.abs(g))) == 0.0 for g in jax.tree.leaves(gradient))


def test_dropped_labels_are_the_null_class_of_teacher_and_student():
    module = tiny.TinyNet(num_classes=3)
    student, teacher = (tiny.tiny_denoiser(seed, module=module) for seed in (1, 0))
    networks = {"teacher": teacher, "student": student}
    batch, tables = tiny.batch(8, conditional=True), tiny.tables()
    null = batch.replace(cond=jnp.full(8, 3))

    def losses(batch, **hyper):
        return O2MKD(**hyper).regression_loss(networks, batch, tables)[0]

    dropped = losses(batch, label_dropout=1.0, null_class=3)
    np.testing.assert_array_equal(dropped, losses(null))
    assert np.all(np.asarray(dropped) != np.asarray(losses(batch)))
    some = np.asarray(losses(batch, label_dropout=0.5, null_class=3))
    are_dropped = some == np.asarray(dropped)
    assert 0 < are_dropped.sum() < 8
    np.testing.assert_array_equal(some[~are_dropped], np.asarray(losses(batch))[~are_dropped])
    assert O2MKD().null_class_share is None
    assert O2MKD(label_dropout=0.5, null_class=3).null_class_share == 0.5


def test_the_whole_range_is_the_plain_loss():
    """K = 1 owns every level: the same draws and the same loss, bit for bit."""
    grid = make_grid(cosine(32), 8, "trailing")
    plain, ranged = (
        make_level_tables(cosine(32), grid),
        make_level_tables(cosine(32), grid, share=Share(1, 8)),
    )
    both = {"student": tiny.tiny_denoiser(1), "teacher": tiny.tiny_denoiser(0)}
    a, b = (O2MKD().regression_loss(both, tiny.batch(), p)[0] for p in (plain, ranged))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"output_weight": 0.0}, "output_weight, .*classifier_weight are all 0"),
        ({"error": "epsilon"}, "objective.error='epsilon'"),
        ({"weight": "snrr"}, "objective.weight='snrr'.*'snr'"),
        ({"task_weight": -1.0}, "objective.task_weight=-1.0"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "o2mkd", **hyper})


def test_teacher_calls():
    assert O2MKD().teacher_calls() == 1
    assert O2MKD(output_weight=0.0, task_weight=1.0).teacher_calls() == 0


@pytest.mark.parametrize(("width", "millions"), [(128, 35.75), (96, 20.12), (64, 8.95)])
def test_widths_have_the_known_sizes(width, millions):
    module = networks.build("unet", channels=width, **recipes.DDPM_32)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,))
    )
    assert round(count_parameters(shapes["params"]) / 1e6, 2) == millions


# ---------------------------------------------------------------------------------- stages

NARROW = {"name": "tiny", "width": 4}


def settings(count: int = 2, loss: dict[str, Any] | None = None, **students: Any) -> Settings:
    """A teacher, a narrow student of all levels, and K that start from it."""
    alone = one_stage()
    teacher = dataclasses.replace(alone.stages["teacher"], steps=20)
    stages = {
        "teacher": teacher,
        **recipes.o2mkd(
            count,
            steps=20,
            batch_size=8,
            optimizer=OptimizerSettings(learning_rate=1e-2, schedule="cosine"),
            samplers={"ddim": (4,), "dpm_solver_pp": (4,)},
            network=NARROW,
            prediction="v",
            warmup_steps=20,
            loss=loss,
            students=students,
        ),
    }
    return dataclasses.replace(alone, stages=stages, pipeline=tuple(stages))


def run(wanted: Settings, folder, stop: StopRequest | None = None, **kwargs):
    plans, notes = plans_of(wanted, folder), Notes()
    train = data.load(wanted.data, "train")
    stop = StopRequest() if stop is None else stop  # its truth is whether to stop
    run_stages(list(plans.values()), RunContext(wanted, train, notes, stop), **kwargs)
    return plans, notes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    wanted = settings()
    plans, _ = run(wanted, tmp_path_factory.mktemp("o2mkd") / "run")
    return wanted, plans


def test_students_start_from_the_shared_one_and_part(trained):
    _, plans = trained
    warm, many = (plans[name] for name in ("o2mkd_warmup", "o2mkd_k2"))
    state = saved_state(many, 20)
    shapes = jax.tree.map(lambda x: x.shape, saved_state(warm, 20).params["student"])
    assert jax.tree.map(lambda x: x.shape[1:], state.params["student"]) == shapes
    first, second = (take(state.params["student"], k) for k in range(2))
    assert differences(first, second)
    np.testing.assert_array_equal(state.diverged, [0, 0])


def test_what_is_told_of_a_stage_of_many(trained):
    _, plans = trained
    alone, many = (plans[name].manifest() for name in ("o2mkd_warmup", "o2mkd_k2"))
    assert (alone.students, many.students) == (1, 2)
    assert many.parameters == alone.parameters
    assert many.teacher_calls == 2 * alone.teacher_calls == 2 * 20 * 8
    lines = (plans["o2mkd_k2"].folder / "metrics.jsonl").read_text()
    for key in ("loss/0", "loss/1", "grad_norm/1", "ema_distance/0", "images/1"):
        assert f'"{key}"' in lines


def test_the_network_of_the_stage_asks_the_owner(trained):
    _, plans = trained
    router = load_network(plans["o2mkd_k2"])
    assert isinstance(router, RoutedDenoiser)
    z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    levels = plans["o2mkd_k2"].levels
    for index in (1, 8, 9, 16):
        alone = load_network(plans["o2mkd_k2"], student=int(index > 8))
        level = levels.at(index)
        np.testing.assert_array_equal(router(z, level).x0, alone(z, level).x0)


def test_calls_of_routed_students(trained):
    wanted, plans = trained
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    wanted = dataclasses.replace(wanted, evaluation=evaluation)
    calls = [c for c in planned_runs(wanted, list(plans.values())) if c.role == "student"]
    assert [(c.sampler, c.nfe, c.students, c.width) for c in calls] == [
        ("ddim", 4, 2, plans["o2mkd_k2"].module.width),
        ("dpm_solver_pp", 4, 2, plans["o2mkd_k2"].module.width),
    ]
    assert calls[0].variant != calls[1].variant


def test_jumps_between_neighbours(trained):
    """Against predictions made one by one; students that are one network do not jump."""
    _, plans = trained
    plan = plans["o2mkd_k2"]
    router = load_network(plan)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1), minval=-1.0)
    noise = jax.random.normal(jax.random.key(1), images.shape)
    level = plan.levels.at(9)  # the first of student 1
    z = add_noise(images, noise, level)
    here, there = (np.asarray(load_network(plan, student=k)(z, level).x0) for k in (0, 1))
    found = boundary_jumps(router, plan, images, noise)
    np.testing.assert_allclose(found, [np.sqrt(np.mean((here - there) ** 2))], rtol=1e-4)
    assert found[0] > 0
    same = clone(take(router.students.params, 0), 2)
    equal = RoutedDenoiser(router.students.replace(params=same), router.partition)
    assert boundary_jumps(equal, plan, images, noise) == [0.0]


def test_the_report_has_a_row_for_every_student(trained):
    wanted, plans = trained
    train = data.load(wanted.data, "train")
    table = students_table(list(plans.values()), Networks(), train, wanted.evaluation)
    cells = [dict(zip(table.columns, row)) for row in table.rows]
    assert [(c["stage"], c["student"], c["levels, classes"]) for c in cells] == [
        ("o2mkd_k2", "0", "levels 1 to 8"),
        ("o2mkd_k2", "1", "levels 9 to 16"),
    ]
    assert [c["images seen"] for c in cells] == ["160", "160"]
    assert all(float(c[name]) > 0 for c in cells for name in ("loss", "gradient", "EMA apart"))
    assert float(cells[0]["jump"]) > 0
    assert cells[1]["jump"] == ""
    first = list(plans.values())[:2]
    assert students_table(first, Networks(), train, wanted.evaluation) is None


def test_a_stopped_run_ends_as_the_straight_one(trained, tmp_path):
    wanted, straight = trained
    for name in ("teacher", "o2mkd_warmup"):
        plans, _ = run(wanted, tmp_path / "run", only=name)
    with pytest.raises(Interrupted, match=r"stage 'o2mkd_k2' at step \d+"):
        run(wanted, tmp_path / "run", LateStop(10), only="o2mkd_k2")
    assert plans["o2mkd_k2"].manifest() is None
    run(wanted, tmp_path / "run")
    ended = saved_state(plans["o2mkd_k2"], 20)
    assert differences(ended, saved_state(straight["o2mkd_k2"], 20)) == []


def test_the_mapping_is_no_part_of_what_a_stage_is(tmp_path):
    digests = {
        m: plans_of(settings(mapping=m), tmp_path / "run")["o2mkd_k2"].digest
        for m in ("auto", "vmap")
    }
    assert len(set(digests.values())) == 1
    other = plans_of(settings(spacing="log_snr"), tmp_path / "run")["o2mkd_k2"]
    assert other.digest not in digests.values()


def swept(**sweep: Any) -> Settings:
    wanted = settings()
    stage = dataclasses.replace(
        wanted.stages["o2mkd_k2"],
        objective={"name": "sfddm", "substeps": 1},
        students=StudentsSettings(count=len(next(iter(sweep.values()))), sweep=sweep),
        method="sfddm",
        samplers={},
    )
    stages = {**wanted.stages, "swept": stage}
    stages.pop("o2mkd_k2")
    return dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages))


def test_a_sweep_of_grids_learns_what_separate_stages_learn(trained, tmp_path):
    """Students of 1, 2 and 8 steps in one stage, against a stage of 2 steps alone."""
    wanted = swept(grid_steps=(1, 2, 8), substeps=(2, 2, 1))
    plans, _ = run(wanted, tmp_path / "run")
    assert [m.levels.num_steps for m in plans["swept"].students] == [1, 2, 8]
    alone = dataclasses.replace(
        wanted.stages["swept"],
        students=StudentsSettings(),
        objective={"name": "sfddm", "substeps": 2},
        grid=dataclasses.replace(wanted.stages["swept"].grid, steps=2),
    )
    stages = {**wanted.stages, "swept": alone}
    plain, _ = run(dataclasses.replace(wanted, stages=stages), tmp_path / "alone")
    found = take(saved_state(plans["swept"], 20).params["student"], 1)
    expected = saved_state(plain["swept"], 20).params["student"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    calls = planned_runs(dataclasses.replace(wanted, evaluation=evaluation), list(plans.values()))
    assert [c.nfe for c in calls if c.role == "student"] == [1, 2, 8]
    with pytest.raises(ValueError, match="'swept' is a sweep"):
        load_network(plans["swept"])


def test_swept_weights_are_the_numbers_that_were_given(tmp_path):
    """Also where the config holds an integer."""
    wanted = swept(hidden_weight=(1.5, 2.5), substeps=(1.0, 2))
    stage = wanted.stages["swept"]
    stage = dataclasses.replace(
        stage, objective={**stage.objective, "hidden_weight": 1}, grid=GridSettings(steps=8)
    )
    stages = {**wanted.stages, "swept": stage}
    plan = plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")["swept"]
    assert [m.objective.hidden_weight for m in plan.students] == [1.5, 2.5]
    assert [m.objective.substeps for m in plan.students] == [1, 2]
    assert all(isinstance(m.objective.substeps, int) for m in plan.students)


def test_a_term_cannot_be_swept_to_zero(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.hidden_weight=.*weight 0 is left out"):
        plans_of(swept(hidden_weight=(0.0, 1.0)), tmp_path / "run")


def test_whether_a_solver_looks_back_cannot_be_swept(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.lookback cannot be swept\..*substeps"):
        plans_of(swept(lookback=(0, 1)), tmp_path / "run")


def test_grids_cannot_be_swept_where_they_are_listed(tmp_path):
    wanted = swept(grid_steps=(1, 2))
    stage = dataclasses.replace(wanted.stages["swept"], grid=GridSettings(explicit=(0, 4, 16)))
    stages = {**wanted.stages, "swept": stage}
    with pytest.raises(ConfigError, match=r"sweep\.grid_steps has no effect beside grid\.explicit"):
        plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")


def test_grids_are_swept_with_rollouts_of_teacher_and_student(tmp_path):
    wanted = swept(grid_steps=(2, 8))
    mixed = {"name": "sfddm", "substeps": 1, "teacher_states": 0.25, "student_states": 0.25}
    stage = dataclasses.replace(wanted.stages["swept"], objective=mixed)
    stages = {**wanted.stages, "swept": stage}
    students = plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")[
        "swept"
    ].students
    assert [m.objective.rollout_calls(1) for m in students] == [1, 7]
    assert static_part(students[0].objective) == static_part(students[1].objective)


def test_a_student_of_a_sweep_costs_what_it_costs_alone(trained, tmp_path):
    wanted = swept(grid_steps=(2, 4), substeps=(2, 1))
    plans, _ = run(wanted, tmp_path / "run")
    stage = plans["swept"]
    examples = stage.settings.steps * stage.settings.batch_size
    each = [cost([stage], k) for k in range(2)]
    calls = [examples * m.objective.teacher_calls() for m in stage.students]
    assert [c.teacher_calls for c in each] == calls
    assert calls[0] > calls[1]
    assert [c.updates for c in each] == [stage.settings.steps] * 2
    whole = cost([stage])
    assert whole.teacher_calls == sum(calls)
    assert sum(c.seconds for c in each) == pytest.approx(whole.seconds)


def test_one_bad_student_stops_the_run_or_is_frozen(tmp_path):
    wanted = swept(learning_rate=(1e-3, 1e30))
    with pytest.raises(TrainingError, match=r"student 1 \(learning_rate=1e\+30\)"):
        run(wanted, tmp_path / "stop")
    stage = wanted.stages["swept"]
    students = dataclasses.replace(stage.students, on_divergence="freeze")
    stages = {**wanted.stages, "swept": dataclasses.replace(stage, students=students)}
    plans, notes = run(dataclasses.replace(wanted, stages=stages), tmp_path / "freeze")
    told = [line for line in notes.said if "diverged" in line]
    assert len(told) == 1
    assert "student 1 (learning_rate=1e+30) diverged at step" in told[0]
    state = saved_state(plans["swept"], 20)
    assert int(state.diverged[0]) == 0
    assert 0 < int(state.diverged[1]) <= 20
    assert all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    # The sound one is scored, and it is said that the other is not.
    assert plans["swept"].diverged_students() == [1]
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    settled = dataclasses.replace(wanted, stages=stages, evaluation=evaluation)
    sound, left_out = without_diverged(planned_runs(settled, list(plans.values())))
    assert [c.student for c in sound if c.plan.name == "swept"] == [0]
    assert len(left_out) == 1
    assert "not scored, because student 1 of stage 'swept' diverged" in left_out[0]


def test_one_frozen_student_spoils_those_it_makes_images_with(trained, monkeypatch):
    plan = trained[1]["o2mkd_k2"]
    manifest = dataclasses.replace(plan.manifest(), diverged=(0, 7))
    monkeypatch.setattr(type(plan), "manifest", lambda self: manifest)
    call = SimpleNamespace(label="O2MKD, 4 steps", plan=plan, student=None)
    assert without_diverged([call]) == (
        [],
        ["O2MKD, 4 steps: not scored, because student 1 of stage 'o2mkd_k2' diverged"],
    )


def follows(**changes: Any) -> Settings:
    """`settings()` and a stage that goes on from its students."""
    wanted = settings()
    more = dataclasses.replace(wanted.stages["o2mkd_k2"], **{"init": "o2mkd_k2", **changes})
    stages = {**wanted.stages, "more": more}
    return dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages))


def test_a_frozen_student_stays_so_in_the_stages_that_follow(tmp_path):
    plans, _ = run(settings(), tmp_path / "run")
    path = plans["o2mkd_k2"].manifest_path
    path.write_text(json.dumps({**json.loads(path.read_text()), "diverged": [0, 7]}))
    with pytest.raises(ConfigError, match=r"'more' needs stage 'o2mkd_k2', whose student 1 .*or"):
        run(follows(), tmp_path / "run")
    taught = follows(teacher="o2mkd_k2", init="fresh")
    with pytest.raises(ConfigError, match=r"whose student 1 diverged.* its optimizer\.clip\.$"):
        run(taught, tmp_path / "run")

    students = dataclasses.replace(settings().stages["o2mkd_k2"].students, on_divergence="freeze")
    plans, notes = run(follows(students=students), tmp_path / "run")
    assert any("more: student 1 diverged in the stage that it starts from" in s for s in notes.said)
    before = load_weights(plans["o2mkd_k2"]).params
    after = saved_state(plans["more"], 20).params["student"]
    assert differences(take(before, 0), take(after, 0))
    assert not differences(take(before, 1), take(after, 1))
    assert plans["more"].diverged_students() == [1]


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ({"count": -1}, ["students.count=-1", "0 (no student axis)"]),
        ({"partition": "times", "count": 2}, ["students.partition='times'", "'timesteps'"]),
        ({"partition": "timesteps"}, ["partition='timesteps' needs", "count of 1 or more"]),
        (
            {"partition": "timesteps", "count": 17},
            ["config.stages.o2mkd_k2.students.count=17", "1 to 16"],
        ),
        ({"count": 2}, ["students.count=2", "nothing tells the students apart"]),
        ({"partition": "timesteps", "count": 2, "mapping": "vmp"}, ["mapping='vmp'", "'vmap'"]),
        ({"partition": "timesteps", "count": 2, "margin": -1}, ["students.margin=-1"]),
        (
            {"partition": "timesteps", "count": 2, "full_range_share": 1.5},
            ["students.full_range_share=1.5"],
        ),
        ({"partition": "timesteps", "count": 3, "boundaries": (9,)}, ["boundaries=[9]"]),
        ({"full_range_share": 0.1}, ["students.full_range_share=0.1 has no effect"]),
        ({"spacing": "log_snr"}, ["students.spacing='log_snr' has no effect"]),
        ({"on_divergence": "freeze"}, ["on_divergence='freeze' has no effect", "count"]),
        (
            {"partition": "timesteps", "count": 2, "grouping": "random"},
            ["students.grouping='random' has no effect", "'classes'"],
        ),
        (
            {"partition": "timesteps", "count": 2, "spacing": "log_snr", "boundaries": (9,)},
            ["students.spacing='log_snr' has no effect beside", "boundaries"],
        ),
        ({"count": 2, "on_divergence": "go", "sweep": {"seed": (1, 2)}}, ["on_divergence='go'"]),
        ({"count": 3, "sweep": {"seed": (1, 2)}}, ["sweep.seed=(1, 2)", "3 numbers"]),
        ({"count": 2, "sweep": {"grid_step": (1, 2)}}, ["sweep.grid_step", "'grid_steps'"]),
        ({"count": 2, "sweep": {"grid_steps": (1.5, 2)}}, ["sweep.grid_steps", "integers"]),
        ({"count": 2, "sweep": {"learning_rate": (0.0, 1e-3)}}, ["learning_rate=0.0"]),
        (
            {"count": 2, "partition": "timesteps", "sweep": {"seed": (1, 2)}},
            ["exclude each other"],
        ),
    ],
)
def test_students_that_cannot_work_are_refused(students, words, tmp_path):
    wanted = settings()
    stage = dataclasses.replace(wanted.stages["o2mkd_k2"], students=StudentsSettings(**students))
    stages = {**wanted.stages, "o2mkd_k2": stage}
    with pytest.raises(ConfigError) as caught:
        plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_learnt_or_started_from_is_refused(tmp_path):
    wanted = swept(seed=(1, 2))
    more = dataclasses.replace(wanted.stages["o2mkd_warmup"], teacher="swept", network={})
    stages = {**wanted.stages, "more": more}
    with pytest.raises(ConfigError, match="'swept' is a sweep of 2 students"):
        plans_of(
            dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages)), tmp_path / "run"
        )
    wanted = settings()
    again = dataclasses.replace(
        wanted.stages["o2mkd_k2"],
        init="o2mkd_k2",
        students=StudentsSettings(count=3, partition="timesteps"),
    )
    stages = {**wanted.stages, "again": again}
    with pytest.raises(ConfigError, match="has 2 students.*students.count=3. Set it to 2"):
        plans_of(
            dataclasses.replace(wanted, stages=stages, pipeline=tuple(stages)), tmp_path / "run"
        )
