"""python -m ddistill.export --to=diffusers|stablehlo|safetensors RUN OUT: exports a student.

RUN is the folder of a finished run, OUT a folder that does not exist yet or is empty. Without
--stage and --nfe the last student of the run is exported.
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
from ddistill.runtime.files import expand
from ddistill.text import printable
from ddistill.trained_run import TrainedRun, open_run

FORMS = ("diffusers", "stablehlo", "safetensors")


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "python -m ddistill.export") -> None:
    """Entry point of the command line; exit status 1 with a message if the export fails."""
    parser = Parser(program, "Exports a student of a run for other programs.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("out", metavar="OUT", help="new folder")
    parser.add_argument("--to", required=True, choices=FORMS, help="format")
    parser.add_argument("--stage", default="", help="stage to export (default: the last student)")
    parser.add_argument("--nfe", type=int, help="network evaluations per image")
    parser.add_argument(
        "--cache",
        help="folder of shared stages (default: RUN/shared of a packed run, else RUN/../shared)",
    )
    parser.add_argument("--licence", default="", help="licence of the weights, for the model card")
    parser.add_argument(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="place of the weights of a StableHLO program",
    )
    options = parser.parse_all(argv)
    print(printable(export(options)))


def export(options: argparse.Namespace) -> str:
    """Exports a student as the command line says and returns one line about it.

    Raises:
      ConfigError, CheckpointError: the export is not possible; OUT stays as it was.
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
    return f"{out}: {exported.sampler_run.label} of {run.settings.name}, {said}"


def collect(
    run: TrainedRun, stage: str = "", nfe: int | None = None, licence: str = ""
) -> Exported:
    """Collects the exported network; arguments as for `TrainedRun.sampler_run`."""
    sampler_run = run.sampler_run(stage, nfe)
    results = run.folder / "results.json"
    return Exported(
        sampler_run=sampler_run,
        network=run.network(sampler_run),
        settings=run.settings,
        data=run.data.name,
        num_classes=run.data.num_classes,
        rows=rows_of(sampler_run, read_rows(results) if results.exists() else [], run.settings),
        licence=licence or "; ".join(licences(run, sampler_run.plan)),
    )


def licences(run: TrainedRun, plan: StagePlan) -> list[str]:
    """The licences of all imported networks from which a stage, or one of its sources, started."""
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
