"""docs/cost.md: that it is of these configs, and how its numbers are made."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORD = json.loads((ROOT / "docs" / "cost.json").read_text())
pytestmark = pytest.mark.usefixtures("benchmarks")
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def path_of(config):
    return ROOT / "configs" / f"{config}.py"


def test_the_page_is_made_from_the_record():
    from cost_page import page

    assert (ROOT / "docs" / "cost.md").read_text() == page(RECORD)


def test_every_config_is_listed():
    assert sorted(RECORD["configs"]) == CONFIGS


@pytest.mark.parametrize("config", sorted(RECORD["configs"]))
def test_the_record_has_the_lengths_of_the_config(config):
    from shapes import read_settings

    settings = read_settings(path_of(config))
    recorded = RECORD["configs"][config]["stages"]
    assert recorded.keys() == settings.stages.keys()
    for name, stage in settings.stages.items():
        found = recorded[name]
        assert found["updates"] == stage.steps
        assert found["batch"] == stage.batch_size
        assert found["students"] == max(1, stage.students.count)


def test_hours_are_operations_over_the_assumed_rate():
    import cost_page

    stage = {"program": "p", "updates": 1000, "batch": 100, "students": 2, "pairs": False}
    program = {"flops": 1e12, "parameters": 5_000_000, "memory": {"bytes": 2e9, "images": 50}}
    found = {"image": [32, 32, 3], "stages": {"a": stage}, "largest": "a"}
    record = {"jax": "0", "programs": {"p": program}, "configs": {"c": found}}
    # 2 x 10^17 operations at a fifth of 197 TFLOP/s.
    cells = cost_page.config_row(record, "c")
    assert cells[:5] == ["c", "32 x 32 x 3", "5.00", "0.2", "2.0 (50)"]
    assert float(cells[5]) == pytest.approx(2e17 / (0.2 * 197e12) / 3600, rel=0.05)
    record["programs"] = {}
    assert "Not counted yet" in cost_page.page(record)


def test_walks_of_the_teacher_count_with_their_length():
    import cost
    from shapes import accelerated, plan_all, read_settings

    plans, _ = plan_all(read_settings(ROOT / "configs" / "sfddm_digits.py"), accelerated)
    # Six steps and no look back, of which the program has one; two steps and a look back.
    assert cost.loop_calls(plans["sfddm_n1"]) == 5
    assert cost.loop_calls(plans["sfddm_n4"]) == 2
    assert cost.loop_calls(plans["teacher"]) == 0
    retraced, _ = plan_all(read_settings(ROOT / "configs" / "sfd_digits.py"), accelerated)
    for plan in (plan for plan in retraced.values() if plan.settings.method == "sfd"):
        own = plan.students[0].objective
        assert cost.loop_calls(plan) == own.substeps * len(own.updates) - 1 > 0
    # The same program with another number of steps costs something else.
    names = {cost.program_of(plans[n], plans) for n in ("sfddm_n1", "sfddm_n2", "sfddm_n4")}
    assert len(names) == 3
