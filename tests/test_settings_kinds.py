"""Every setting is classified, and does to a stage's identity what its kind says."""

import dataclasses
import functools
import re
from typing import Any

import pytest
from runs import config, plans_of, tiny_settings

from ddistill import data, networks
from ddistill.objectives import OBJECTIVES, hyperparameters, make_objective
from ddistill.parsing import parse
from ddistill.planning import identity
from ddistill.planning.identity import FIELDS, Kind, differences, digest_of, kind_of
from ddistill.settings import OptimizerSettings, Settings, StageSettings, StudentsSettings


def test_every_setting_is_classified_and_nothing_else_is():
    for cls, kinds in FIELDS.items():
        assert list(kinds.values()).count(None) == 0
        assert kinds.keys() == {f.name for f in dataclasses.fields(cls)}, cls.__name__
    sources = {source.settings for source in data.SOURCES.values()}
    assert sources <= FIELDS.keys()


def test_every_group_of_settings_is_in_the_table():
    """Whatever dataclass a setting's type names, however deep."""

    def named(cls: type) -> set[type]:
        import ddistill.settings as module

        found = set()
        for field in dataclasses.fields(cls):
            for word in re.findall(r"\w+Settings", str(field.type)):
                inner = getattr(module, word)
                found |= {inner} | named(inner)
        return found

    groups = named(Settings)
    assert len(groups) >= 8
    assert groups <= FIELDS.keys()


def test_a_setting_that_is_not_classified_ends_the_planning(monkeypatch):
    monkeypatch.delitem(FIELDS[StageSettings], "accumulate")
    with pytest.raises(KeyError, match="accumulate"):
        kind_of(StageSettings, "accumulate")
    with pytest.raises(KeyError, match="accumulate"):
        identity.learnt(tiny_settings().stages["teacher"])


def test_options_that_do_not_count_are_those_of_networks():
    known = {option for name in networks.NETWORKS for option in networks.defaults(name)}
    assert set(identity.COMPUTED) <= known
    for name in OBJECTIVES:
        idle = OBJECTIVES[name]().inert_hparams()
        assert set(idle) <= hyperparameters(name).keys()


# ------------------------------------------------------------------- settings that do not count

# By kind, other values of settings; all others of the kind are tried by their type.
VALUES: dict[str, Any] = {
    "fsdp": "teacher",
    "teacher": "student",
    "classifier": "",
    "full_sampler": "heun",
    "student_sampler": "heun",
    "teacher_samplers": {"ddim": (2,)},
    "tuned_on": (0,),
    "guidances": (2.0,),
}


def other(name: str, value: Any) -> Any:
    if name in VALUES:
        return VALUES[name]
    return {bool: lambda: not value, int: lambda: value + 1, float: lambda: value / 2}.get(
        type(value), lambda: f"{value}x"
    )()


IDLE = [
    f"{group}.{name}"
    for group in ("training", "training.mesh", "evaluation", "evaluation.protocol")
    for cls in [
        {
            "training": identity.TrainingSettings,
            "training.mesh": identity.MeshSettings,
            "evaluation": identity.EvaluationSettings,
            "evaluation.protocol": identity.ProtocolSettings,
        }[group]
    ]
    for name, kind in FIELDS[cls].items()
    if kind is not Kind.GROUP
]


@functools.cache
def images(flip: bool | None) -> data.Dataset:
    return data.load({"name": "digits", "flip": flip}, "train")


def digests(changes: dict[str, Any]) -> dict[str, str]:
    """The digests of the tiny run's stages, with some settings set by dotted name."""
    settings = parse(config(changes), Settings)
    found: dict[str, str] = {}
    for name, stage in settings.stages.items():
        method = make_objective(stage.objective)
        sources = {other: found[other] for other in stage.sources}
        inputs = identity.Inputs(images(settings.data.get("flip")).identity, sources)
        own = identity.make_identity(name, stage, method, settings, inputs)
        found[name] = digest_of(own)
    return found


BEFORE = digests({})


def test_plans_have_these_digests(tmp_path):
    plans = plans_of(parse(config({}), Settings), tmp_path / "run")
    assert {name: plan.digest for name, plan in plans.items()} == BEFORE


def test_how_a_run_is_run_and_scored_is_no_part_of_it():
    """All at once, because each of them alone would have shown."""
    settings = config()
    changes = {}
    for dotted in IDLE:
        value: Any = settings
        for key in dotted.split("."):
            value = value[key]
        changes[dotted] = other(dotted.rsplit(".", 1)[1], value)
        assert changes[dotted] != value, dotted
    del changes["training.mesh.student"], changes["training.mesh.data"]  # would not fit
    changes["training.mesh.model"] = 2
    changes |= {"name": "other", "stages.student.variant": "mine", "stages.student.shared": True}
    changes |= {"stages.student.method": "pd", "stages.student.samplers": {"ddim": (2,)}}
    assert digests(changes) == BEFORE


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.student.init": "teacher"},
        {"stages.student.optimizer.momentum": 0.5, "stages.student.optimizer.decay": 0.9},
        {"schedule.options": {"s": 0.008, "max_beta": 0.999, "clean": True}},
        {"stages.student.objective.solver": "dpm_solver_pp"},
        {"stages.student.objective.output_weight": 0.0},
        {"stages.student.objective.output_weight": 0},
        {"schedule.options": {"s": 0.008, "max_beta": 0.999}},
        {"data.flip": False},
        {"data.flip": None},
    ],
)
def test_the_same_training_in_other_words_is_the_same_stage(changes):
    assert digests(changes) == BEFORE


@pytest.mark.parametrize(
    "changes, stages",
    [
        ({"seed": 1}, {"teacher", "student"}),
        ({"schedule.steps": 32}, {"teacher", "student"}),
        ({"schedule.options": {"s": 0.01}}, {"teacher", "student"}),
        ({"data.flip": True}, {"teacher", "student"}),
        ({"stages.teacher.steps": 41}, {"teacher", "student"}),
        ({"stages.student.steps": 41}, {"student"}),
        ({"stages.student.batch_size": 4}, {"student"}),
        ({"stages.student.ema_warmup": False}, {"student"}),
        ({"stages.student.select_checkpoint": "best"}, {"student"}),
        ({"stages.student.init": "fresh"}, {"student"}),
        ({"stages.student.guidance": 2.0}, {"student"}),
        ({"stages.student.accumulate": 2}, {"student"}),
        ({"stages.student.grid.steps": 4}, {"student"}),
        ({"stages.student.grid.explicit": (0, 4, 16)}, {"student"}),
        ({"stages.student.grid.time": "index"}, {"student"}),
        ({"stages.student.objective.lookback": False}, {"student"}),
        ({"stages.student.optimizer.b2": 0.99}, {"student"}),
        ({"stages.student.optimizer.final_scale": 0.2}, {"student"}),
    ],
)  # fmt: skip
def test_what_is_learnt_is_part_of_it(changes, stages):
    after = digests(changes)
    assert {name for name in after if after[name] != BEFORE[name]} == stages


def test_the_choice_of_checkpoints_counts_where_one_is_chosen():
    best = {"stages.student.select_checkpoint": "best"}
    first = digests(best)
    assert digests({**best, "training.log_every": 3, "training.keep": 1}) == first
    assert digests({**best, "training.checkpoint_every": 5})["student"] != first["student"]


def test_students_count_only_where_there_are_some():
    assert digests({"stages.student.students.mapping": "vmap"}) == BEFORE
    two = {"stages.student.students.count": 2, "stages.student.students.sweep": {"seed": [0, 1]}}
    many = digests(two)
    assert many["student"] != BEFORE["student"]
    assert digests({**two, "stages.student.students.mapping": "vmap"}) == many
    assert digests({**two, "stages.student.students.on_divergence": "freeze"}) != many
    assert StudentsSettings().count == 0


# ------------------------------------------------------------------------------------ messages


def test_every_difference_is_told_once_with_both_values():
    teacher = {"seed": 0, "stage": {"steps": 4}, "sources": {}}
    ours = {"seed": 1, "stage": {"steps": 8, "ema": []}, "sources": {"teacher": "x"}}
    lines = differences(
        {"seed": 0, "stage": {"steps": 8}, "sources": {"critic": "y", "teacher": "z"}},
        ours,
        {"teacher": teacher},
        {"teacher": {"seed": 1, "stage": {"steps": 5}, "sources": {}}},
    )
    assert lines == [
        "ema was not set and is now []",
        "seed was 0 and is now 1",
        "sources was ['critic', 'teacher'] and is now ['teacher']",
        "stage 'teacher': steps was 4 and is now 5",
    ]
    assert differences(ours, ours, {}, {}) == []


def test_the_identity_is_plain_json_and_the_same_in_every_process(tmp_path):
    plan = plans_of(tiny_settings(), tmp_path / "run")["student"]
    assert " at 0x" not in str(plan.identity)
    assert digest_of(plan.identity) == plan.digest
    assert plan.identity["data"]["images"] == 1437
    assert OptimizerSettings().name == "adam"
