"""`ddistill pack RUN OUT`: a finished run with its shared stages as one portable folder.

OUT has the files of the run and, in its folder `shared`, the stages that the run shares with other
runs. `ddistill.load(OUT)` and every command that takes the folder of a run find them there, on
another machine and on a disk that cannot be written.
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.errors import ConfigError
from ddistill.planning.manifests import STAGES, TrainedManifest
from ddistill.planning.opened import STAGES as STAGES_FILE
from ddistill.planning.plan import complete_manifest
from ddistill.runtime.files import expand, read_object, sync_tree
from ddistill.runtime.leftovers import is_temporary
from ddistill.text import printable
from ddistill.trained_run import TrainedRun, open_run

SHARED = "shared"
# Of a stage: the lock of its training, and checkpoints that were moved aside.
_LEFT_OUT = (".lock", "damaged")
_FILES = ("results.json", "evaluation.json")


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "ddistill pack") -> None:
    """Entry point of the command line; exit status 1 with a message where nothing is written."""
    parser = Parser(program, "Copies a finished run with its shared stages to one folder.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument(
        "--cache", help="folder of shared stages (default: RUN/shared of a packed run, else beside)"
    )
    parser.add_argument(
        "--slim",
        action="store_true",
        help="leave out checkpoints that no stage hands on or names as a teacher",
    )
    options = parser.parse_all(argv)
    print(printable(pack(options.run, options.out, options.cache, options.slim)))


def pack(
    run: str | Path, out: str | Path, cache: str | Path | None = None, slim: bool = False
) -> str:
    """Copies a run and its shared stages to a new folder, and opens the copy as a check.

    The copy is made beside `out` and renamed when it is complete.

    Args:
      run: folder of a finished run.
      out: folder that does not exist.
      cache: folder of shared stages; None as for `ddistill.load`.
      slim: whether checkpoints are left out that no stage hands on. A training resumes from them
        only if it has not ended.

    Returns:
      One line that names the folder, its size and the modules that it needs.

    Raises:
      ConfigError: `out` exists or lies in a folder that is copied.
      CheckpointError: `run` is not a run, a stage is not complete, or a checkpoint is damaged.
      OSError: a file cannot be read or written, for example because the disk is full.
    """
    out = expand(out)
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists, and nothing is overwritten. Choose a new folder.")
    opened = open_run(run, cache)
    _check_complete(opened)
    shared = {plan.folder for plan in opened.plans if plan.settings.shared}
    for folder in (opened.folder, *shared):
        if out.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{out} lies in {folder}, which is copied. Choose a folder elsewhere."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        made = Path(temporary) / "made"  # whose mode is that of any new folder
        kept = _handed_on(opened) if slim else None
        _copy(opened.folder, made, kept, without=(SHARED,))
        for folder in shared:
            _copy(folder, made / SHARED / folder.name, kept)
        _check_copy(made)
        sync_tree(made)
        made.rename(out)
    return f"{out}: {len(opened.plans)} stages, {_size(out)}.{modules_needed(out)}"


def _check_complete(run: TrainedRun) -> None:
    for plan in run.plans:
        complete_manifest(plan)
    missing = [name for name in _FILES if not (run.folder / name).is_file()]
    if run.settings.evaluation.enabled and missing:
        raise ConfigError(
            f"{run.folder} has no {' and no '.join(missing)}: its evaluation is not complete. Give "
            "the run's command again."
        )


def _handed_on(run: TrainedRun) -> dict[Path, set[int]]:
    """By folder of checkpoints, the steps that its stage hands on or that other stages name."""
    settings = [plan.settings for plan in run.plans]
    named = [c for s in settings for c in (s.teacher_checkpoint, s.init_checkpoint)]
    found = {}
    for plan in run.plans:
        manifest = plan.manifest()
        if isinstance(manifest, TrainedManifest):
            steps = {c.step for c in named if c.stage == plan.name and c.step is not None}
            found[(plan.folder / "checkpoints").resolve()] = {manifest.handed_on, *steps}
    return found


def _copy(
    source: Path, target: Path, kept: dict[Path, set[int]] | None, without: Collection[str] = ()
) -> None:
    """Copies a folder; the files get the mode of new files, and links become what they lead to."""
    shutil.copytree(
        source, target, ignore=_ignored(source, kept, without), copy_function=shutil.copyfile
    )


def _ignored(
    source: Path, kept: dict[Path, set[int]] | None, without: Collection[str]
) -> Callable[[str, list[str]], set[str]]:
    def names(folder: str, found: list[str]) -> set[str]:
        here = Path(folder).resolve()
        left_out = {n for n in found if n in _LEFT_OUT or is_temporary(n)}
        if Path(folder) == source:
            left_out |= set(without).intersection(found)
        if kept is None:
            return left_out
        if here in kept:
            left_out |= {n for n in found if n.isdecimal() and int(n) not in kept[here]}
        if here.name == "digests" and here.parent in kept:
            left_out |= {*found} - {f"{step}.json" for step in kept[here.parent]}
        return left_out

    return names


def _check_copy(folder: Path) -> None:
    """Opens a copy and reads the weights of its stages, whose files are compared with digests."""
    copy = open_run(folder)
    _check_complete(copy)
    copy.networks.read(copy.plans)


def _size(folder: Path) -> str:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{total / 1e6:.1f} MB"


def modules_needed(folder: Path) -> str:
    """A sentence on the user's own modules that a run notes; "" where it notes none."""
    extensions = read_object(folder / STAGES_FILE, STAGES).get("extensions", {})
    modules = sorted(set(extensions.values()))
    if not modules:
        return ""
    return f" It needs the modules {', '.join(modules)} on PYTHONPATH, which are not copied."
