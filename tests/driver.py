"""`python driver.py FLAG...` is ddistill.main with the tiny network, and dies where it is told to.

`DDISTILL_TEST_DEATH` = "STAGE:STEP:HOW" with HOW one of
  saved    SIGKILL once the checkpoint at STEP is complete,
  writing  SIGKILL when its files are written and it is about to get its name, that is, before it
           counts,
  sigterm  SIGTERM while train step STEP runs,
  sigkill  SIGKILL while it runs, when the checkpoints before it are complete.
"""

import os
import signal
from pathlib import Path

import runs  # noqa: F401  (registers the network)
from absl import app

from ddistill import main
from ddistill.training import checkpoints, compiled, loop


def arm(stage: str, step: int, how: str) -> None:
    if how == "saved":
        _die_when_saved(stage, step)
    elif how == "writing":
        _die_while_writing(stage, step)
    else:
        _signal_while_training(stage, step, signal.Signals[how.upper()])


def _is_of(folder: Path, stage: str) -> bool:
    return folder.parent.name.split("-")[0] == stage


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_when_saved(stage: str, at: int) -> None:
    save = checkpoints.Checkpoints.save

    def wrapped(self, step, *args):
        save(self, step, *args)
        if step == at and _is_of(self.folder, stage):
            # Not `wait`, which asks the other processes of a run on several hosts.
            self._manager.wait_until_finished()
            _kill()

    checkpoints.Checkpoints.save = wrapped


def _die_while_writing(stage: str, at: int) -> None:
    def guard(rename):
        def wrapped(source, target, **kwargs):
            target_path = Path(os.fsdecode(target))
            if target_path.name == str(at) and _is_of(target_path.parent, stage):
                _kill()
            return rename(source, target, **kwargs)

        return wrapped

    os.rename, os.replace = guard(os.rename), guard(os.replace)


def _signal_while_training(stage: str, at: int, number: signal.Signals) -> None:
    call, train = compiled.Chunk.__call__, loop.StageRun._train
    save = checkpoints.Checkpoints.save
    current, managers = [], []

    def wrapped_save(self, *args, **kwargs):
        managers.append(self._manager)
        save(self, *args, **kwargs)

    def wrapped_train(self, *args):
        current.append(self.plan.name)
        return train(self, *args)

    def wrapped_call(self, state, *rest):
        if current[-1] == stage and int(state.step) == at - 1:
            if number == signal.SIGKILL:
                for manager in managers:
                    manager.wait_until_finished()
            os.kill(os.getpid(), number)
        return call(self, state, *rest)

    loop.StageRun._train, compiled.Chunk.__call__ = wrapped_train, wrapped_call
    checkpoints.Checkpoints.save = wrapped_save


if __name__ == "__main__":
    death = os.environ.get("DDISTILL_TEST_DEATH")
    if death:
        name, number, kind = death.split(":")
        arm(name, int(number), kind)
    app.run(main.main, flags_parser=main.parse_flags)
