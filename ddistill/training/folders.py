"""The folders of stages: whose they are, who trains in them now, and what is complete."""

import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ddistill.errors import CheckpointError
from ddistill.runtime.files import write_json
from ddistill.settings import to_plain
from ddistill.training.hosts import agree, from_first
from ddistill.training.interrupt import Interrupted, StopRequest
from ddistill.training.progress import Reporter
from ddistill.training.stages import LABELS, StagePlan, incomplete

_LOCK_POLL_SECONDS = 0.25


@contextlib.contextmanager
def claim(plan: StagePlan, reporter: Reporter, stop: StopRequest) -> Iterator[None]:
    """Holds the stage's folder, waiting while another process trains the same stage.

    Raises:
      CheckpointError: the folder belongs to a stage with other settings.
      Interrupted: a stop was asked for while waiting.
    """
    with contextlib.ExitStack() as held:
        waiting = False
        while not from_first(lambda: _try_lock(plan, held)):
            if not waiting:
                reporter.say(f"{plan.name}: another run is training this stage; waiting for it")
            waiting = True
            if agree(bool(stop)):
                raise Interrupted(f"the wait for stage '{plan.name}'")
            time.sleep(_LOCK_POLL_SECONDS)
        from_first(lambda: _sign(plan))
        yield


def _try_lock(plan: StagePlan, held: contextlib.ExitStack) -> bool:
    """Locks the stage's folder until `held` is closed; False if someone else has it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        lock = opened.enter_context((plan.folder / ".lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        held.enter_context(opened.pop_all())
    return True


def _sign(plan: StagePlan) -> None:
    """Writes whose folder it is, unless that is written already; errors as `check_owner`."""
    check_owner(plan)
    record = plan.folder / "stage.json"
    if not record.exists():
        write_json(record, _owner(plan))


def check_folders(plans: Sequence[StagePlan], only: str = "") -> None:
    """Checks what lies on disk against the plans before anything is trained or written.

    Args:
      plans: the stages in order.
      only: the one stage to be run, or "evaluate", or "" for everything.

    Raises:
      CheckpointError: a folder belongs to a stage with other settings, or a stage that `only` needs
        is not complete.
    """
    by_name = {plan.name: plan for plan in plans}
    for plan in plans:
        check_owner(plan)
    needed = tuple(by_name)
    if only != "evaluate":
        settings = by_name[only].settings if only else None
        needed = settings.sources if settings else ()
    for name in filter(None, needed):
        if by_name[name].manifest() is None:
            raise incomplete(by_name[name])


def _owner(plan: StagePlan) -> dict[str, Any]:
    ours = {"digest": plan.digest, "settings": to_plain(dataclasses.asdict(plan.settings))}
    return json.loads(json.dumps(ours, default=str))


def check_owner(plan: StagePlan) -> None:
    """Raises `CheckpointError` if the stage's folder belongs to a stage with other settings."""
    record, ours = plan.folder / "stage.json", _owner(plan)
    if not record.exists():
        return
    theirs = json.loads(record.read_text())
    if theirs["digest"] != plan.digest:
        raise CheckpointError(
            f"{plan.folder} holds stage '{plan.name}' of other settings: "
            f"{_differences(theirs['settings'], ours['settings'])}. "
            "Choose another --workdir, or delete that folder to train it anew."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _differences(theirs: Any, ours: Any, path: str = "") -> str:
    """The settings in which two records differ, at most four of them."""
    lines: list[str] = []

    def walk(a: Any, b: Any, at: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                walk(a.get(key), b.get(key), f"{at}.{key}" if at else key)
        elif a != b and at not in LABELS:
            lines.append(f"{at} was {_short(a)} and is now {_short(b)}")

    walk(theirs, ours, path)
    if not lines:
        return "data, schedule, seed or the stages before it have changed"
    return "; ".join(lines[:4]) + (f" and {len(lines) - 4} more" if len(lines) > 4 else "")
