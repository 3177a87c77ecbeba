"""The folders of stages: locks, owners, and which stages are complete."""

import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ddistill.errors import CheckpointError
from ddistill.planning.identity import differences
from ddistill.planning.manifests import OWNER
from ddistill.planning.plan import StagePlan, incomplete
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import DamagedFile, read_object, read_object_or_none, write_json
from ddistill.runtime.hosts import agree, from_first
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.leftovers import remove_leftovers

_LOCK_POLL_SECONDS = 0.25


@contextlib.contextmanager
def claim(plan: StagePlan, reporter: Reporter, stop: StopRequest) -> Iterator[None]:
    """Holds the stage's folder, waiting while another process trains the same stage.

    Raises:
      CheckpointError: the folder belongs to a stage with other settings.
      Interrupted: a stop was requested while waiting.
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
        from_first(lambda: _tidy(plan))
        from_first(lambda: _sign(plan))
        yield


def _tidy(plan: StagePlan) -> None:
    """Removes files that a killed process left unfinished; the lock excludes other writers."""
    folder = plan.folder
    remove_leftovers(folder, folder / "checkpoints" / "digests", folder / "pairs")


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
    """Writes the owner of the folder unless it is written already; errors as `check_owner`."""
    check_owner(plan)
    record = plan.folder / "stage.json"
    if read_object_or_none(record, OWNER) is None:
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


def _owner(plan: StagePlan) -> dict[str, object]:
    return {
        "digest": plan.digest,
        "identity": plan.identity,
        "lineage": plan.lineage,
        "settings": json.loads(json.dumps(dataclasses.asdict(plan.settings), default=str)),
    }


def check_owner(plan: StagePlan) -> None:
    """Raises `CheckpointError` if the stage's folder belongs to a stage with other settings.

    Where stage.json is missing or damaged, the manifest or a checkpoint names the owner.
    """
    theirs = _read_owner(plan)
    if theirs is None or theirs["digest"] == plan.digest:
        return
    known, rest = theirs.get("identity"), theirs.get("lineage")
    lines = []
    if plan.identity and isinstance(known, dict) and isinstance(rest, dict):
        lines = differences(known, plan.identity, rest, plan.lineage)
    # stage.json of an older version has settings; the manifest and checkpoints have none.
    unknown = "it was trained by another version of ddistill"
    unknown = unknown if "settings" in theirs else "what these were is not noted there"
    shown = "; ".join(lines[:4]) or unknown
    raise CheckpointError(
        f"{plan.folder} holds stage '{plan.name}' of other settings: "
        f"{shown}{f' and {len(lines) - 4} more' if len(lines) > 4 else ''}. "
        "Choose another --workdir, or delete that folder to train it anew."
    )


def _read_owner(plan: StagePlan) -> dict[str, Any] | None:
    """The owner of the stage's folder, an object with a digest; None for an empty folder.

    Raises:
      CheckpointError: the folder is not empty and no file in it names its owner.
    """
    try:
        return read_object(plan.folder / "stage.json", OWNER)
    except (FileNotFoundError, NotADirectoryError):
        damage = f"{plan.folder / 'stage.json'} is missing"
    except DamagedFile as error:
        damage = str(error)
    records = sorted((plan.folder / "checkpoints").glob("[0-9]*/record/metadata"))
    for path in (plan.manifest_path, *records):
        found = read_object_or_none(path, OWNER)
        if found is not None:
            return found
    if records or (plan.folder / "pairs").exists():
        raise CheckpointError(
            f"{damage}. It says which settings the stage in that folder was trained with, and "
            "nothing else there does. Delete the folder to train the stage anew, or choose another "
            "--workdir."
        )
    return None
