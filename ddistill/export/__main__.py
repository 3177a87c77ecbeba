"""python -m ddistill.export --to=diffusers|stablehlo|safetensors RUN OUT: a student for others.

RUN is the folder of a finished run, OUT a folder that does not exist yet or is empty. Without
--stage and --nfe the last student of the run is written.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.errors import ConfigError
from ddistill.evaluation.records.rows import read_rows
from ddistill.export import diffusers, safetensors, stablehlo
from ddistill.export.facts import Exported, rows_of
from ddistill.planning.plan import StagePlan
from ddistill.product import Run, open_run
from ddistill.runtime.files import expand
from ddistill.text import printable

FORMS = ("diffusers", "stablehlo", "safetensors")


@one_line_ending()
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; one line and exit status 1 for what cannot be exported."""
    parser = Parser("python -m ddistill.export", "Writes a student of a run for others.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument("--to", required=True, choices=FORMS, help="the form")
    parser.add_argument("--stage", default="", help="whose network (default: the last student)")
    parser.add_argument("--nfe", type=int, help="network evaluations an image")
    parser.add_argument("--cache", help="folder of shared stages (default: RUN/../shared)")
    parser.add_argument("--licence", default="", help="of the weights, for the model card")
    parser.add_argument(
        "--weights", choices=("inside", "beside"), default="inside", help="of a StableHLO program"
    )
    options = parser.parse_all(argv)
    print(printable(export(options)))


def export(options: argparse.Namespace) -> str:
    """Writes what the command line asks for and returns a line about it.

    Raises:
      ConfigError, CheckpointError: it cannot be; nothing is left in OUT.
    """
    out = expand(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; nothing is overwritten.")
    run = open_run(options.run, options.cache)
    exported = collect(run, options.stage, options.nfe, options.licence)
    writers: dict[str, Callable[[Exported, Path], str]] = {
        "diffusers": diffusers.write,
        "safetensors": safetensors.write,
        "stablehlo": lambda e, path: stablehlo.write(e, path, options.weights == "inside"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        made = Path(folder) / "made"
        said = writers[options.to](exported, made)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return f"{out}: {exported.call.label} of {run.settings.name}, {said}"


def collect(run: Run, stage: str = "", nfe: int | None = None, licence: str = "") -> Exported:
    """What is exported of a run; arguments as of `Run.call`."""
    call = run.call(stage, nfe)
    results = run.folder / "results.json"
    return Exported(
        call=call,
        network=run.network(call),
        settings=run.settings,
        data=run.data.name,
        num_classes=run.data.num_classes,
        rows=rows_of(call, read_rows(results) if results.exists() else [], run.settings),
        licence=licence or "; ".join(licences(run, call.plan)),
    )


def licences(run: Run, plan: StagePlan) -> list[str]:
    """Those of all imported networks that a stage has learnt or started from, however far back."""
    found: dict[str, None] = {}
    waiting, seen = [plan], set()
    while waiting:
        stage = waiting.pop()
        if stage.name in seen:
            continue
        seen.add(stage.name)
        if stage.imported is not None and stage.imported.licence:
            found[stage.imported.licence] = None
        waiting += [run.plan(name) for name in stage.settings.sources]
    return list(found)


if __name__ == "__main__":
    main()
