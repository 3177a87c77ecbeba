"""python -m ddistill.export --to=FORMAT RUN OUT: exports a student.

FORMAT is "diffusers", "unet", "lora", "stablehlo" or "safetensors".

RUN is the folder of a finished run, OUT a folder that does not exist yet or is empty. Without
--stage and --nfe the last student of the run is exported.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.errors import ConfigError
from ddistill.evaluation.figures.image_grids import ImageRow
from ddistill.evaluation.records.rows import read_rows
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.export import diffusers, dit, lora, safetensors, stablehlo, text_pipeline
from ddistill.export.facts import BaseModel, Exported, LearntParts, rows_of
from ddistill.export.front_matter import HUB_DATASETS
from ddistill.export.model_card import PICTURE
from ddistill.export.picture import image_rows, write_picture
from ddistill.interop.hub import is_repo
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_parts import FOLDER as PARTS
from ddistill.networks.dit import DiT
from ddistill.planning.plan import StagePlan
from ddistill.runtime.files import expand
from ddistill.students import whole_network
from ddistill.text import printable
from ddistill.trained_run import TrainedRun, open_run
from ddistill.training.trained import null_text, read_tokenizer
from ddistill.typing import Params

FORMS = ("diffusers", "unet", "lora", "stablehlo", "safetensors")


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
        "--base-model", default="", help="ORG/NAME of the teacher on the Hugging Face hub"
    )
    parser.add_argument(
        "--dataset", default="", help="ORG/NAME of the training images on the Hugging Face hub"
    )
    parser.add_argument(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="place of the weights of a StableHLO program",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16"),
        default="float32",
        help="of the U-Net of a text-to-image pipeline",
    )
    parser.add_argument(
        "--rank", type=int, default=64, help="of the LoRA files of students without a low rank"
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
    exported = with_hub_ids(exported, options.base_model, options.dataset)
    exported = replace(exported, precision=options.precision)
    if options.to != "lora":  # the other formats have whole networks
        exported = replace(exported, network=whole_network(exported.network))
    writers: dict[str, Callable[[Exported, Path], str]] = {
        "diffusers": lambda e, path: _write_diffusers(e, path, run),
        "unet": text_pipeline.write_unet_alone,
        "lora": lambda e, path: lora.write(e, path, _pipeline_unet(run, e), options.rank),
        "safetensors": safetensors.write,
        "stablehlo": lambda e, path: stablehlo.write(
            with_decoder(e, run), path, options.weights == "inside"
        ),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        made = Path(folder) / "made"
        said = writers[options.to](exported, made)
        if exported.image_rows:
            write_picture(made / PICTURE, exported.image_rows)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return f"{out}: {exported.sampler_run.label} of {run.settings.name}, {said}"


def _write_diffusers(exported: Exported, out: Path, run: TrainedRun) -> str:
    plan = exported.sampler_run.plan
    if plan.latent_source is not None:  # other autoencoders are files
        exported = replace(exported, decoder=run.networks.decoder(plan))
    exported = with_learnt_parts(exported, run)
    return (dit if isinstance(plan.module, DiT) else diffusers).write(exported, out)


def collect(
    run: TrainedRun, stage: str = "", nfe: int | None = None, licence: str = ""
) -> Exported:
    """Collects the exported network; arguments as for `TrainedRun.sampler_run`."""
    sampler_run = run.sampler_run(stage, nfe)
    results = run.folder / "results.json"
    imported = imports(run, sampler_run.plan)
    models = [BaseModel(found.hub_id, found.revision) for found in imported if found.hub_id]
    tfds = run.settings.data.get("name") == "tfds"
    return Exported(
        sampler_run=sampler_run,
        network=run.network(sampler_run),
        settings=run.settings,
        data=run.data.name,
        num_classes=run.data.num_classes,
        rows=rows_of(sampler_run, read_rows(results) if results.exists() else [], run.settings),
        licence=licence or "; ".join(licences(run, sampler_run.plan)),
        base_models=tuple(dict.fromkeys(models)),
        dataset=HUB_DATASETS.get(run.data.name, "") if tfds else "",
        image_rows=_image_rows(run, sampler_run),
        pipeline=_parts_folder(sampler_run.plan),
    )


def _pipeline_unet(run: TrainedRun, exported: Exported) -> Params:
    """The parameters of the U-Net of the pipeline that the students come from."""
    return run.networks.weights(exported.sampler_run.plan.text_stage).params


def _parts_folder(plan: StagePlan) -> Path | None:
    """The parts of the teacher's pipeline of a stage that reads texts; None without a pipeline."""
    stage = plan.text_stage
    return stage.folder / PARTS if plan.tokenizer and stage.has_parts else None


def with_learnt_parts(exported: Exported, run: TrainedRun) -> Exported:
    """The same export with the parts of a pipeline that the run has trained, if it has."""
    plan = exported.sampler_run.plan
    if plan.tokenizer is None or exported.pipeline is not None:
        return exported
    decoder, encoder = run.networks.decoder(plan), run.networks.text_encoder(plan)
    if decoder is None or encoder is None:
        return exported
    side = plan.image_shape[0] * getattr(decoder.module, "factor", 1)
    parts = LearntParts(decoder, encoder, read_tokenizer(plan.text_stage), side)
    return replace(exported, pipeline=parts)


def with_decoder(exported: Exported, run: TrainedRun) -> Exported:
    """The same export with the decoder of latents and the condition of the empty text."""
    plan = exported.sampler_run.plan
    encoder = run.networks.text_encoder(plan)
    null = None if encoder is None else null_text(plan, encoder)
    return replace(exported, decoder=run.networks.decoder(plan), null_text=null)


def with_hub_ids(exported: Exported, base_model: str, dataset: str) -> Exported:
    """The same export with ids that a user gives; "" keeps what is known.

    Raises:
      ConfigError: an id has another form than ORG/NAME.
    """
    for key, given in (("--base-model", base_model), ("--dataset", dataset)):
        if given and not is_repo(given):
            raise ConfigError(f"{key}={given!r} should be an id of the hub: ORG/NAME.")
    models = (BaseModel(base_model),) if base_model else exported.base_models
    return replace(exported, base_models=models, dataset=dataset or exported.dataset)


def _image_rows(run: TrainedRun, sampler_run: SamplerRun) -> tuple[ImageRow, ...]:
    """Samples for the picture; a file that cannot be read leaves the export without one."""
    try:
        return image_rows(run, sampler_run)
    except (OSError, ValueError) as error:
        print(printable(f"warning: the model card has no picture: {error}"), file=sys.stderr)
        return ()


def licences(run: TrainedRun, plan: StagePlan) -> list[str]:
    """The licences of all imported networks from which a stage, or one of its sources, started."""
    found = [imported.licence for imported in imports(run, plan) if imported.licence]
    return list(dict.fromkeys(found))


def imports(run: TrainedRun, plan: StagePlan) -> list[Imported]:
    """All imported networks from which a stage, or one of its sources, started."""
    found: list[Imported] = []
    waiting, seen = [plan], set()
    while waiting:
        stage = waiting.pop()
        if stage.name in seen:
            continue
        seen.add(stage.name)
        if stage.imported is not None:
            found.append(stage.imported)
        waiting += [run.plan(name) for name in stage.settings.sources]
    return found


if __name__ == "__main__":
    main()
