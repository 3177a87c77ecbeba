"""The model card of an export: README.md with metadata for the Hugging Face hub."""

from ddistill.evaluation.records.rows import Row
from ddistill.export.facts import Exported, plain_options
from ddistill.export.front_matter import (
    TASK,
    TEXT_TASK,
    front_matter,
    licence_metadata,
    model_index,
)
from ddistill.networks import WITHOUT_PARAMETERS as IDLE
from ddistill.text import markdown, printable
from ddistill.typing import JsonRecord

# The picture of `Exported.image_rows`, beside the card.
PICTURE = "samples.png"


def model_card(exported: Exported, how: str, library: str, tags: tuple[str, ...] = ()) -> str:
    """A model card in Markdown.

    Args:
      exported: the network, its scores and its origin.
      how: Python code of the example.
      library: the library that reads the files, as the hub names it.
      tags: further tags.
    """
    run, s = exported.sampler_run, exported.sampler_run.plan.settings
    return "\n".join(
        [
            front_matter(_metadata(exported, library, tags))
            + f"# {markdown(exported.settings.name)}: {markdown(run.label)}",
            "",
            *_picture(exported),
            f"* Data: {markdown(exported.data)}, "
            f"{'images' if run.plan.encoder is None else 'latents'} of "
            f"{' x '.join(map(str, run.plan.image_shape))} (height, width, channels)"
            + (f", {exported.num_classes} classes" * exported.conditional)
            + (", with captions" * exported.reads_text),
            f"* Method: {s.method or 'none, this is the teacher'}"
            + (f", {run.students} students" if run.students > 1 else ""),
            f"* Teacher: {_teacher(exported)}",
            f"* Network: {_network(exported)}; predicts {exported.denoiser.prediction}",
            f"* Network evaluations per image (NFE): {run.nfe}, with {run.sampler}",
            "* Licence: "
            + markdown(exported.licence or "not stated; ask the authors of the teacher"),
            "",
            "## Scores",
            "",
            *(_scores(exported.rows) or ["The run has no scores of it."]),
            "",
            "## Use",
            "",
            "```python",
            how.strip(),
            "```",
            "",
        ]
    )


def _metadata(exported: Exported, library: str, tags: tuple[str, ...]) -> JsonRecord:
    method = exported.sampler_run.plan.settings.method
    known = ["diffusion", "distillation", "ddistill", *([printable(method)] if method else [])]
    known += ["class-conditional"] if exported.conditional else []
    task = TEXT_TASK if exported.reads_text else TASK
    index = model_index(
        exported.settings.name, exported.data, exported.dataset, exported.rows, task
    )
    found: dict[str, object] = {
        **licence_metadata(exported.licence),
        "library_name": library,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys((*known, *tags))),
    }
    if exported.base_models:
        found["base_model"] = [model.repo for model in exported.base_models]
    if exported.dataset:
        found["datasets"] = [exported.dataset]
    if index:
        found["model-index"] = index
    return found


def _picture(exported: Exported) -> list[str]:
    if not exported.image_rows:
        return []
    labels = [markdown(row.label) for row in exported.image_rows]
    same = "; the images of a column start from the same noise" if len(labels) > 1 else ""
    return [f"![samples]({PICTURE})", "", f"From top to bottom: {', '.join(labels)}{same}.", ""]


def _teacher(exported: Exported) -> str:
    teacher = exported.settings.evaluation.teacher
    source = exported.settings.stages[teacher].source
    origin = f"from {source.partition(':')[0]} weights" if source else "trained there"
    said = f"stage '{markdown(teacher)}' of the run, {origin}"
    for model in exported.base_models:
        commit = f", commit {model.commit}" if model.commit else ""
        said += f", [{markdown(model.repo)}](https://huggingface.co/{model.repo}){commit}"
    return said


def _network(exported: Exported) -> str:
    network = plain_options(exported.sampler_run.plan.settings.network)
    options = {k: v for k, v in network.items() if k not in ("name", *IDLE)}
    return markdown(f"{network['name']}, " + ", ".join(f"{k}={v}" for k, v in options.items()))


def _scores(rows: tuple[Row, ...]) -> list[str]:
    table = [f"| {r.metric} | {_value(r)} | {r.seed} | `{r.protocol}` |" for r in rows]
    if not table:
        return []
    return ["| metric | value (95 % interval) | seed | protocol |", "|---|---|---|---|", *table]


def _value(row: Row) -> str:
    ends = "" if row.low is None else f" ({row.low:.4g} to {row.high:.4g})"
    return f"{row.value:.4g}{ends}"
