"""Which stages a student owes its existence to, and what they cost together."""

from dataclasses import dataclass
from typing import Any

import pytest

from ddistill.errors import CheckpointError
from ddistill.planning.lineage import Cost, cost, distillation
from ddistill.planning.manifests import TrainedManifest
from ddistill.settings import StageSettings


@dataclass
class Plan:
    """What of a stage the lineage looks at."""

    name: str
    settings: StageSettings
    done: TrainedManifest | None
    folder: str = "folder"

    def manifest(self):
        return self.done


def stage(name: str, teacher: str = "", init: str = "fresh", calls: int = 0, steps: int = 10):
    settings = StageSettings({"name": "any"}, steps, 4, teacher=teacher, init=init)
    return Plan(name, settings, spent(teacher_calls=calls, updates=steps, train_seconds=1.5))


def spent(**changes: Any) -> TrainedManifest:
    """The manifest of a stage of one student."""
    costs: dict[str, Any] = {
        **{"stage": "any", "digest": "", "steps": 1, "updates": 1, "batch_size": 1, "students": 1},
        **{"parameters": 1, "teacher_calls": 0, "train_seconds": 0.0, "compile_seconds": 0.0},
        **{"ema": (), "teacher_calls_of_each": (), "diverged": (), "data_wait_seconds": 0.0},
        **{"final_loss": 0.0, "handed_on": 1},
    }
    return TrainedManifest(**{**costs, **changes})


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
