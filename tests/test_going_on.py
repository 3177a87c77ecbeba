"""Stages that cannot go on from one another, and whose settings cannot work."""

import pytest

NET = {"name": "tiny", "num_classes": 10}
DM = {"objective": {"name": "dmd", "regression_weight": 0.0}, "teacher": "teacher"}
DM |= {"init": "teacher", "grid": {"steps": 1}, "steps": 5, "batch_size": 8}
GOES_ON = {**DM, "init": "fresh", "resume": "dm"}
OTHER = {"objective": {"name": "denoising"}, "network": {**NET, "width": 5}, "prediction": "v"}
OTHER |= {"steps": 5, "batch_size": 8, "conditional": True}
OWN = {"network": NET, "prediction": "v", "conditional": True}
RESUME = "config.stages.adm.resume="


def chain(**stages):
    changes = {"stages.student": ..., **{f"stages.{n}": plain for n, plain in stages.items()}}
    return {**changes, "pipeline": ("teacher", *stages)}


def dmd(**hyper):
    return {"name": "dmd", "regression_weight": 0.0, **hyper}


WRONG = {
    "init too": (
        chain(dm=DM, adm={**GOES_ON, "init": "teacher"}),
        [f"{RESUME}'dm' and config.stages.adm.init='teacher'", "leave init out"],
    ),
    "no such stage": (
        chain(dm=DM, adm={**GOES_ON, "resume": "dn"}),
        [f"{RESUME}'dn'", "Did you mean 'dm'?", "Allowed: teacher, dm"],
    ),
    "itself": (chain(dm={**DM, "init": "fresh", "resume": "dm"}), ["resume='dm' is not a stage"]),
    "another optimiser": (
        chain(dm=DM, adm={**GOES_ON, "optimizer": {"name": "radam"}}),
        [f"{RESUME}'dm'", "the optimiser of 'student'", "'radam'", "'adam'", "use the same one"],
    ),
    "another optimiser of one network": (
        chain(dm=DM, adm={**GOES_ON, "optimizers": {"fake": {"b1": 0.0}}}),
        [f"{RESUME}'dm'", "the optimiser of 'fake'", "0.0", "0.9"],
    ),
    "another fake network": (
        chain(
            other=OTHER,
            dm={**DM, **OWN, "init": "fresh", "teacher": "other"},
            adm={**GOES_ON, **OWN},
        ),
        [f"{RESUME}'dm': the network 'fake' is another one there", "the same teacher"],
    ),
    "another student": (
        chain(dm=DM, adm={**GOES_ON, **OWN, "network": {**NET, "width": 7}}),
        ["config.stages.adm.resume takes the weights of 'dm'", "network.width is 7 here"],
    ),
    "another prediction": (
        chain(
            dm=DM, adm={**GOES_ON, **OWN, "prediction": "x0", "network": {**NET, "dropout": 0.1}}
        ),
        ["config.stages.adm.prediction='x0'", "'dm'", "predicts 'v'"],
    ),
    "fewer students": (
        chain(
            dm={**DM, "students": {"count": 2, "partition": "classes"}},
            adm={**GOES_ON, "students": {"count": 3, "partition": "classes"}},
        ),
        ["config.stages.adm.resume", "'dm', which has 2 students", "students.count=3"],
    ),
    "other classes": (
        chain(
            dm={**DM, "students": {"count": 2, "partition": "classes"}},
            adm={**GOES_ON, "students": {"count": 2, "partition": "classes", "grouping": "random"}},
        ),
        [
            "config.stages.adm.resume",
            "students of 'dm'",
            "which own other classes: student 0 for ",
        ],
    ),
    "another teacher": (
        chain(
            other={**OTHER, "network": {**NET, "dropout": 0.1}},
            dm=DM,
            adm={**GOES_ON, "teacher": "other"},
        ),
        [f"{RESUME}'dm': teacher is 'other' here and 'teacher' there"],
    ),
    "ranges of levels for a generator": (
        chain(dm={**DM, "students": {"count": 1, "partition": "timesteps"}}),
        ["config.stages.dm.students.partition='timesteps'", "from noise by itself"],
    ),
    "students of other numbers of steps": (
        chain(
            dm={
                **DM,
                "objective": dmd(backward="rollout"),
                "students": {"count": 2, "sweep": {"grid_steps": [2, 4]}},
            }
        ),
        [
            "config.stages.dm.students.sweep",
            "another program for 'grid_steps=4'",
            "a stage of each",
        ],
    ),
    "a teacher of many": (
        chain(
            many={**DM, "students": {"count": 2, "partition": "classes"}},
            dm={**DM, "teacher": "many", "init": "fresh"},
        ),
        ["config.stages.dm.teacher='many' is 2 students", "fake starts as a copy"],
    ),
    "an optimiser beside the student's": (
        chain(dm={**DM, "objective": {"name": "o2mkd"}, "optimizers": {"fake": {}}}),
        ["config.stages.dm.optimizers names 'fake'", "'o2mkd' trains the student alone"],
    ),
    "a stage of pairs": (
        chain(
            dm={**DM, "init": "fresh", "objective": {"name": "pairs"}},
            adm=GOES_ON,
        ),
        [f"{RESUME}'dm' makes pairs and trains no network"],
    ),
    "an optimiser of nothing": (
        chain(dm={**DM, "optimizers": {"critic": {"learning_rate": 0.1}}}),
        ["config.stages.dm.optimizers='critic'", "fake"],
    ),
    "an optimiser that cannot work": (
        chain(dm={**DM, "optimizers": {"fake": {"name": "adamm"}}}),
        ["config.stages.dm.optimizers.fake.name='adamm'", "Did you mean 'adam'?"],
    ),
    "turns without a pause": (
        chain(dm={**DM, "objective": dmd(alternate=True, student_every=1)}),
        ["objective.student_every=1 with alternate=True", "2 or more"],
    ),
    "never": (
        chain(dm={**DM, "objective": dmd(student_every=0)}),
        ["objective.student_every=0", "1 or more"],
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_stages_that_cannot_go_on_from_one_another(refused, case):
    changes, words = case
    text = refused(changes)
    for word in words:
        assert word in text
