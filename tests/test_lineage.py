"""Which stages a student owes its existence to, and what they cost together."""

from dataclasses import dataclass
from typing import Any

import pytest

from ddistill.errors import CheckpointError
from ddistill.planning.lineage import Cost, cost, distillation
from ddistill.settings import StageSettings


@dataclass
class Plan:
    """What of a stage the lineage looks at."""

    name: str
    settings: StageSettings
    done: dict[str, Any] | None
    folder: str = "folder"

    def manifest(self):
        return self.done


def stage(name: str, teacher: str = "", init: str = "fresh", calls: int = 0, steps: int = 10):
    settings = StageSettings({"name": "any"}, steps, 4, teacher=teacher, init=init)
    costs = {"teacher_calls": calls, "updates": steps, "students": 1, "train_seconds": 1.5}
    return Plan(name, settings, costs)


PLANS: list[Any] = [
    stage("classifier"),
    stage("pretrained"),
    stage("teacher", init="pretrained"),
    stage("eight", "teacher", "teacher", calls=100),
    stage("four", "eight", "teacher", calls=20, steps=5),
    stage("two", "four", "eight", calls=3),
    stage("other", "pretrained", "teacher", calls=7),
    stage("grown", "teacher", "four", calls=1),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classifier", []),
        ("pretrained", []),
        ("teacher", []),
        ("eight", ["eight"]),
        ("two", ["eight", "four", "two"]),
        ("grown", ["eight", "four", "grown"]),
        ("other", []),
    ],
)
def test_lineage_follows_teachers_and_first_weights(name, expected):
    plan = next(p for p in PLANS if p.name == name)
    assert [p.name for p in distillation(plan, "teacher", PLANS)] == expected


def test_cost_is_the_sum_over_the_lineage():
    two = PLANS[5]
    assert cost(distillation(two, "teacher", PLANS)) == Cost(123, 25, 4.5)
    assert cost([]) == Cost(0, 0, 0.0)


def test_cost_of_a_stage_that_is_not_complete():
    unfinished: Any = stage("late")
    unfinished.done = None
    with pytest.raises(CheckpointError, match="late"):
        cost([unfinished])
