"""The time that is left: durations in words, estimates on the console, and what is remembered."""

import dataclasses
import io

import pytest
from rich.console import Console
from runs import plans_of, tiny_settings

from ddistill.runtime import console
from ddistill.runtime.console import Reporter, duration
from ddistill.runtime.files import write_text
from ddistill.training.run_context import StagePlace
from ddistill.training.timings import FILE, Pace, Timings


@pytest.mark.parametrize(
    "seconds, text",
    [
        *((0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5960, "99 min"), (7380, "2 h 3 min")),
        (187_000, "2 d 3 h"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


def test_a_log_says_how_much_time_is_left(clock):
    out = io.StringIO()
    reporter = Reporter(Console(file=out, soft_wrap=True))
    reporter.begin("stage 2 of 3, student", 100, after=3600.0)
    for clock.now, done, left in ((30.0, 10, None), (60.0, 20, None), (90.0, 40, 120.0)):
        reporter.advance(done, "loss 1", left)
    reporter.end()
    assert out.getvalue().splitlines() == [
        "stage 2 of 3, student: step 0 of 100",
        "stage 2 of 3, student: step 10 of 100  loss 1",  # the first pace includes compiling
        "stage 2 of 3, student: step 20 of 100  loss 1  4 min left (64 min for all stages)",
        "stage 2 of 3, student: step 40 of 100  loss 1  2 min left (62 min for all stages)",
    ]
    out.truncate(0)
    out.seek(0)
    reporter.begin("sampling", 10)
    for clock.now, done in ((190.0, 2), (230.0, 6)):
        reporter.advance(done, "")
    assert out.getvalue().splitlines()[1:] == [
        "sampling: step 2 of 10",
        "sampling: step 6 of 10  40 s left",
    ]


def test_the_place_of_a_stage_is_in_its_title(tmp_path):
    plan = plans_of(tiny_settings(), tmp_path / "run")["student"]
    assert StagePlace(2, 5).title(plan) == "stage 2 of 5, student"


def test_a_pace_is_measured_or_known():
    pace = Pace()
    assert pace.left(10) is None
    assert Pace(known=2.0).left(10) == 20.0
    pace = Pace(known=2.0)
    pace.add(0, 100.0)  # an interval that only compiled
    assert pace.left(10) == 20.0
    pace.add(10, 5.0)
    pace.add(10, 15.0)
    assert pace.left(10) == 10.0


def test_timings_are_kept_by_program(tmp_path):
    plans = plans_of(tiny_settings(), tmp_path / "run")
    longer = plans_of(dataclasses.replace(tiny_settings(80), seed=1), tmp_path / "other")
    teacher, student = plans.values()
    timings = Timings(tmp_path)
    assert timings.left([teacher, student]) is None
    timings.note_compilation(teacher, 1, 7.0)
    timings.note_step(teacher, 0.5)
    assert timings.left([teacher]) == 40 * 0.5  # compiled already in this process
    later = Timings(tmp_path)
    assert later.compile_seconds(longer["teacher"], 1) == 7.0
    assert later.compile_seconds(longer["teacher"], 8) is None
    assert later.left([longer["teacher"]]) == 80 * 0.5 + 7.0
    assert later.left(list(longer.values())) is None
    assert later.step_seconds(student) is None
    write_text(tmp_path / FILE, "{")  # damaged
    assert later.left([teacher]) is None
    later.note_step(teacher, 1.0)
    assert Timings(tmp_path).step_seconds(teacher) == 1.0
    nowhere = Timings(tmp_path / FILE)
    nowhere.note_step(teacher, 1.0)  # cannot be written, and is not missed
    assert nowhere.step_seconds(teacher) is None
