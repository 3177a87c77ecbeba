"""Checkpoints: Orbax behind a small, strict wrapper.

A checkpoint holds the whole `TrainState` (step, parameters, optimiser state, averages) and a JSON
record (settings, seconds and losses so far). Writing is asynchronous and atomic. Reading is strict:
another tree or shape is an error that says what differs, and a damaged checkpoint is moved aside
with a warning in favour of the one before it. Damage is found by comparing the files with the
digests written next to them once a checkpoint is complete.
"""

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from ddistill.errors import CheckpointError
from ddistill.planning.manifests import RECORD, SEAL, completed
from ddistill.runtime.files import read_object_or_none, sync_tree, write_json
from ddistill.runtime.hosts import agree, from_first, wait
from ddistill.training.state import TrainState

# By field of a `TrainState` and by name in it, trees of shapes.
Part = Mapping[str, Mapping[str, PyTree]]
# Of the arrays of a tree, by path.
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _NewestAndBest:
    """The policy that Orbax asks which checkpoints to keep: the newest and the best one.

    Attributes:
      newest: how many of the newest stay.
      losses: by step.
      every: checkpoints at multiples of it stay, too; 0 for none.
    """

    newest: int
    losses: Mapping[int, float | None]
    every: int = 0

    def should_preserve(self, checkpoints: Sequence, *, context: object) -> list[bool]:
        del context
        steps = [x.step for x in checkpoints]
        kept = {*sorted(steps)[-self.newest :], _best(self.losses, steps)}
        return [s in kept or (self.every > 0 and s % self.every == 0) for s in steps]


def _best(losses: Mapping[int, float | None], steps: Sequence[int]) -> int | None:
    """The step of the lowest loss that is known, the first of equals."""
    known = [
        (loss, s) for s in steps if (loss := losses.get(s)) is not None and not math.isnan(loss)
    ]
    return min(known)[1] if known else None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _number(value: object) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else None  # type: ignore[arg-type]


def _restore_args(abstract: PyTree, **options: bool) -> ocp.args.PyTreeRestore:
    """Arguments with which arrays are read to where those of `abstract` lie."""
    restore = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=restore, **options)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Without the warnings of Orbax that a folder is read only."""

    def is_error(record: LogRecord) -> bool:
        return record.levelno >= ERROR

    logging.get_absl_logger().addFilter(is_error)
    try:
        yield
    finally:
        logging.get_absl_logger().removeFilter(is_error)


class Checkpoints:
    """The checkpoints of one stage, in `folder/STEP`."""

    def __init__(self, folder: Path, keep: int, read_only: bool = False, every: int = 0):
        """Opens (and creates) `folder`; keeps the `keep` newest and the one with the lowest
        loss, or proxy of quality where the objective has one.

        Args:
          folder: of the checkpoints.
          keep: how many of the newest stay.
          read_only: whether the folder stays as it is: nothing is made, cleared away, sealed or
            moved, and damaged checkpoints are passed over where they lie.
          every: checkpoints at multiples of this step stay, too; 0 for none.

        Raises:
          OSError: the folder cannot be made or written.
        """
        self.folder = Path(folder).absolute()
        self._read_only = read_only
        found = {} if read_only else from_first(self._prepare)
        # Orbax's own BestN forgets the losses when a folder is opened again.
        self._losses = {int(step): loss for step, loss in found.items()}
        self._shapes: dict[int, Shapes] = {}
        with _no_warnings() if read_only else nullcontext():
            self._options = ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(max(1, keep), self._losses, every),
                create=not read_only,
                read_only=read_only,
            )
            self._manager = self._open()

    def _prepare(self) -> dict[str, float | None]:
        """Makes the folder, removes unfinished checkpoints, and reads the losses by step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(rest, ignore_errors=True)
        return {
            x.name: self._read_loss(x.name) for x in self.folder.iterdir() if x.name.isdecimal()
        }

    def _read_loss(self, step: str) -> float | None:
        """The loss that the seal notes or, where a kill came before the seal, the record."""
        seal = read_object_or_none(self._seal(int(step)))
        if seal is not None and "loss" in seal:
            return _number(seal["loss"])
        record = read_object_or_none(self.folder / step / "record" / "metadata")
        return _number((record or {}).get("score"))

    def _open(self) -> ocp.CheckpointManager:
        # Orbax cuts every replicated array into a part for each device, which compiles a program
        # for each shape and device at the first checkpoint. Devices of one process share a disk.
        # Where arrays lie is chosen when they are read, so that no file has to say where they lay.
        arrays = ocp.type_handlers.ArrayHandler(
            use_replica_parallel=jax.process_count() > 1, enable_write_sharding_file=False
        )
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "record": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self.folder, options=self._options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: TrainState, record: dict[str, Any], loss: float | None
    ) -> None:
        """Begins to write a checkpoint; errors of an earlier write surface here.

        Args:
          step, state: of the training.
          record: what JSON can hold, kept beside the state.
          loss: by which the best checkpoint is chosen; None for one that is not to be chosen.
        """
        self.wait()
        self._losses[step] = loss
        self._shapes[step] = _flat(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def best(self) -> int | None:
        """The step of the checkpoint with the lowest loss, or None where no loss is known."""
        return _best(self._losses, self.steps())

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest readable checkpoint as (state, record), or None if there is none at all.

        Args:
          like: a state of the same structure, shapes and dtypes. Where its arrays lie is where the
            checkpoint's will, however they lay when it was written.
          step: the one checkpoint to read, instead of the newest.

        Raises:
          CheckpointError: the checkpoint belongs to another network, its record is not one from
            which a training can go on, or none can be read.
        """
        # Another host's view of a shared folder may lag behind.
        steps = from_first(lambda: [s for s in self.steps() if step in (None, s)])
        abstract = jax.tree.map(_abstract, like)
        for one in reversed(steps):
            if from_first(lambda one=one: self._is_damaged(one)):
                self._set_aside(one, "its files are not the ones that were written")
                continue
            check_same_shapes(self._saved_shapes(one), abstract, self._path(one))
            found, reason = self._read(one, abstract)
            if not agree(found is None):
                state, record = found
                return state, record if step is not None else self._checked(record, one)
            self._set_aside(one, reason or "another host could not read it")
        damaged = from_first(
            lambda: sorted(
                int(x.name) for x in (self.folder / "damaged").glob("*") if x.name.isdecimal()
            )
        )
        if damaged and step is None:
            raise CheckpointError(
                f"None of the checkpoints {damaged} in {self.folder} can be read. They were moved "
                f"to {self.folder / 'damaged'}; delete that folder and run again to start this "
                "stage from step 0."
            )
        return None

    def restore_part(self, like: Part, step: int) -> dict[str, dict[str, PyTree]] | None:
        """Some networks of the state in one checkpoint; nothing else is read.

        Args:
          like: by field of `TrainState` and name in it, shapes as `restore` takes them.
          step: the checkpoint.

        Returns:
          Arrays in the structure of `like`, or None where the checkpoint is missing or damaged.

        Raises:
          CheckpointError: the checkpoint belongs to another network.
        """
        if not from_first(lambda: step in self.steps()):
            return None
        if from_first(lambda: self._is_damaged(step)):
            self._set_aside(step, "its files are not the ones that were written")
            return None
        abstract, saved = jax.tree.map(_abstract, like), self._saved_shapes(step)
        if saved is not None:
            read = tuple(f"{field}/{name}/" for field, names in like.items() for name in names)
            part = {path: shape for path, shape in saved.items() if path.startswith(read)}
            check_same_shapes(part, abstract, self._path(step))
        args = _restore_args(abstract, partial_restore=True)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                return checkpointer.restore(self._path(step) / "state", args=args)
        except Exception as error:  # Orbax and TensorStore raise many types for a bad file
            self._set_aside(step, _reason(error))
            return None

    def _read(self, step: int, abstract: PyTree) -> tuple[Any, str]:
        """A checkpoint's (state, record), or None, and why it could not be read."""
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=_restore_args(abstract), record=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax and TensorStore raise many types for a bad file
            return None, _reason(error)
        if not isinstance(found["record"], dict):
            return None, "its record is no object"
        return (found["state"], found["record"]), ""

    def _checked(self, record: dict[str, Any], step: int) -> dict[str, Any]:
        """A record from which a training can go on; the files of another stay where they are."""
        made = completed(record, step)
        if problem := RECORD.problem(made):
            raise CheckpointError(
                f"{self._path(step) / 'record' / 'metadata'}: {problem}. The weights there are "
                "whole, and nothing was moved. Use the version of ddistill that wrote the "
                f"checkpoint, or move {self._path(step)} elsewhere to go on from the one before it."
            )
        return made

    def _saved_shapes(self, step: int) -> Shapes | None:
        """Shapes of a checkpoint on disk, or None where they cannot be read."""
        seal = read_object_or_none(self._seal(step), SEAL) or {}
        if "shapes" in seal:
            return {path: tuple(shape) for path, shape in seal["shapes"].items()}
        return self._stored_shapes(step)

    def _stored_shapes(self, step: int) -> Shapes | None:
        """As `_saved_shapes`, from the arrays. Orbax opens each of them, which takes a second."""
        try:
            metadata = self._manager.item_metadata(step)["state"]
            return _flat(getattr(metadata, "tree", metadata))
        except Exception:  # a damaged description; restoring will say so and move it aside
            return None

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a damaged checkpoint out of the way and opens the folder afresh."""
        if self._read_only:
            logging.warning("Checkpoint %s is damaged (%s).", self._path(step), reason)
            return
        logging.warning(
            "Checkpoint %s is damaged (%s); going back to the one before it.",
            self._path(step),
            reason,
        )
        self._manager.close()
        wait("a checkpoint is closed")
        from_first(lambda: self._move(step))
        self._manager = self._open()

    def _move(self, step: int) -> None:
        target = self.folder / "damaged" / str(step)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        self._path(step).rename(target)

    def wait(self) -> None:
        """Waits until everything is on disk; raises what went wrong while writing."""
        self._manager.wait_until_finished()
        from_first(self._write_seals)

    def _write_seals(self) -> None:
        """Seals every complete checkpoint and drops the seals of deleted ones."""
        steps = set(self.steps())
        for step in steps:
            if read_object_or_none(self._seal(step), SEAL) is None:
                # What is sealed has to outlive a power cut, and the manifest rests on it.
                sync_tree(self._path(step))
                content = {"loss": self._losses.get(step), "files": digests(self._path(step))}
                shapes = self._shapes.get(step) or self._stored_shapes(step)
                write_json(self._seal(step), content | ({"shapes": shapes} if shapes else {}))
        for seal in self._seal(0).parent.glob("*.json"):
            if not seal.stem.isdecimal() or int(seal.stem) not in steps:
                seal.unlink()

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _seal(self, step: int) -> Path:
        """The file that lists the loss, the digests and the shapes of a complete checkpoint."""
        return self.folder / "digests" / f"{step}.json"

    def _is_damaged(self, step: int) -> bool:
        """Whether the files differ from their digests; a checkpoint without any is not judged."""
        seal = read_object_or_none(self._seal(step), SEAL)
        return seal is not None and seal["files"] != digests(self._path(step))

    def close(self) -> None:
        """Waits and closes."""
        if not self._read_only:
            self.wait()
        self._manager.close()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by relative path."""
    files = sorted(x for x in folder.rglob("*") if x.is_file())
    return {str(x.relative_to(folder)): hashlib.sha256(x.read_bytes()).hexdigest() for x in files}


def _abstract(x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)


def _flat(tree: PyTree) -> Shapes:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_path_text(path): tuple(leaf.shape) for path, leaf in leaves}


def _path_text(path: Any) -> str:
    """One spelling for paths through dataclasses, dicts and tuples."""
    parts = [str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path]
    return "/".join(parts)


def check_same_shapes(saved: Shapes | None, wanted: PyTree, where: Path) -> None:
    """Raises `CheckpointError` naming the first entries in which two trees of arrays differ.

    Args:
      saved: shapes on disk; None skips the check.
      wanted: the tree that the settings ask for.
      where: the checkpoint, for the message.
    """
    if saved is None:
        return
    a, b = saved, _flat(wanted)
    lines = [f"{k}: {a[k]} on disk, {b[k]} wanted" for k in sorted(a.keys() & b.keys())]
    lines = [x for x, k in zip(lines, sorted(a.keys() & b.keys())) if a[k] != b[k]]
    lines += [f"{k}: {a[k]} on disk, not wanted" for k in sorted(a.keys() - b.keys())]
    lines += [f"{k}: {b[k]} wanted, not on disk" for k in sorted(b.keys() - a.keys())]
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise CheckpointError(
            f"The checkpoint {where} belongs to another network or optimiser: "
            f"{'; '.join(lines[:4])}{more}. Use the settings it was made with, or another folder."
        )
