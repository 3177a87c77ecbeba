"""The page docs/cost.md from the record docs/cost.json."""

from collections.abc import Iterator, Mapping
from typing import Any

# Peak of dense bfloat16 products in TFLOP/s, by the makers' data sheets.
CHIPS = {"TPU v5e": 197, "TPU v5p": 459, "A100": 312, "H100 SXM": 989, "H200": 989}
UTILISATION = 0.2
# Below this share of an hour on the slowest chip, dispatch and not arithmetic takes the time.
SHORTEST = 0.1

_TEXT = """# Cost of the configs

Operations and memory of the configs in `configs/` at full size, and hours on named chips. **The
hours are estimates: no run of this table has been timed on these chips.** `benchmarks/cost.py`
writes this page from `docs/cost.json`; jax {jax}.

* **Operations** are XLA's count for the lowered program of an update of one student (forward,
  backward, teacher, other networks, optimiser), per image, times batch, students and updates. A
  loop of teacher steps is counted with its length. Where updates of several networks alternate,
  the most expensive alternative is counted every time, so that MSD's figures are upper bounds.
  Pairs are the sampler's calls of the teacher; samples, scores and compilation are left out. 1
  EFLOP = 10^18 operations.
* **Memory** is of one TPU v5e chip (15.75 GiB for a program) for one student of the config's
  largest stage with the stated number of images: arguments, results, temporaries and code of the
  program, compiled ahead of time with bfloat16 activations and little optimisation. Weights,
  optimiser and averages are float32. Larger batches are spread over chips. Other stages of the
  config need less, or about as much.
* **Hours** are operations divided by the peak rate of dense bfloat16 products, at an **assumed
  utilisation of {utilisation:.0%}**: at 40 % they halve. Peaks in TFLOP/s: {peaks}. One chip; N
  chips divide the hours at best by N. The networks are narrow, so that memory traffic and not
  arithmetic bounds them ([scaling.md](scaling.md)): the same utilisation on all chips favours
  those with the highest peak. Configs below {shortest:g} hours on the slowest chip have no
  estimate, because dispatch takes most of their time; those of the digits take minutes on two CPU
  cores ([results.md](results.md)).
* Configs of Stable Diffusion (64 x 64 x 4, the latents of pictures of 512 x 512) train from latents
  that are made before; their teacher is not trained. Their students do not fit one chip of a TPU
  v5e, so that their memory is not compiled here; [text.md](text.md#costs) has that of 16 chips.
* Configs run in float32 unless `network.dtype=bfloat16` is set for each stage; TPUs multiply
  float32 in bfloat16 passes, and GPUs in TF32 at half of the peak above.

"""

_END = """
## Stages

M parameters: of one student. GFLOP: of an update, per image and student.

| config | stage | M parameters | students | batch | updates | GFLOP an image | EFLOP |
|---|---|---|---|---|---|---|---|
"""

_COMMAND = """
```
python benchmarks/cost.py                       # continues where docs/cost.json ends
python benchmarks/cost.py --configs=pd_cifar    # of one config
```

Counting takes 10 to 30 seconds a program on one core, compiling one to seven minutes (extra
`tpu-aot`).
"""


def page(record: Mapping[str, Any]) -> str:
    """The text of the page."""
    peaks = ", ".join(f"{chip} {peak}" for chip, peak in CHIPS.items())
    heading = ["config", "images", "M parameters", "EFLOP", "memory GB (images)"]
    heading += [f"{chip} h" for chip in CHIPS]
    lines = [
        _TEXT.format(jax=record["jax"], utilisation=UTILISATION, peaks=peaks, shortest=SHORTEST),
        row(heading),
        "|" + "---|" * len(heading),
    ]
    found = record["configs"]
    known = sorted(found, key=lambda name: ("digits" in name, found[name]["image"], name))
    lines += [row(config_row(record, config)) for config in known]
    text = "\n".join(lines) + "\n" + _left_out(record) + _END
    return text + "".join(row(r) + "\n" for c in known for r in stage_rows(record, c)) + _COMMAND


def row(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def exaflops(record: Mapping[str, Any], stage: Mapping[str, Any]) -> float | None:
    """Operations of a stage in 10^18; None for a program that has not been counted."""
    program = record["programs"].get(stage["program"])
    if program is None:
        return None
    images = stage["batch"] * stage["students"] * stage["updates"]
    return program["flops"] * images / 1e18


def config_row(record: Mapping[str, Any], config: str) -> list[str]:
    """The line of a config: operations of all its stages, memory of the largest, hours."""
    found = record["configs"][config]
    stages = found["stages"]
    side, _, channels = found["image"]
    image = f"{side} x {side} x {channels}"
    each = [exaflops(record, stage) for stage in stages.values()]
    if any(x is None for x in each):
        return [config, image, *[""] * (3 + len(CHIPS))]
    total = sum(x for x in each if x is not None)
    largest = stages[found["largest"]] if "largest" in found else None
    program = record["programs"][largest["program"]] if largest else {}
    weights = max(record["programs"][s["program"]]["parameters"] for s in stages.values())
    hours = [total * 1e6 / (peak * UTILISATION) / 3600 for peak in CHIPS.values()]
    shown = ["" if max(hours) < SHORTEST else _hours(h) for h in hours]
    return [config, image, f"{weights / 1e6:.2f}", f"{total:.3g}", _memory(program), *shown]


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 100 else f"{hours:,.0f}"


def _memory(program: Mapping[str, Any]) -> str:
    found = program.get("memory", {})
    if "error" in found:
        return "does not fit"
    return f"{found['bytes'] / 1e9:.1f} ({found['images']})" if found else ""


def stage_rows(record: Mapping[str, Any], config: str) -> Iterator[list[str]]:
    """A line for each stage of a config that has been counted."""
    for name, stage in record["configs"][config]["stages"].items():
        total, program = exaflops(record, stage), record["programs"].get(stage["program"])
        if total is None or program is None:
            continue
        weights = f"{program['parameters'] / 1e6:.2f}" if program["parameters"] else ""
        numbers = [str(stage["students"]), str(stage["batch"]), f"{stage['updates']:,}"]
        flops = f"{program['flops'] / 1e9:.3g}"
        yield [config, name, weights, *numbers, flops, f"{total:.3g}"]


def _left_out(record: Mapping[str, Any]) -> str:
    """What is missing in the table, and why."""
    without, unknown = [], []
    for config, found in record["configs"].items():
        keys = {stage["program"] for stage in found["stages"].values()}
        if not keys <= record["programs"].keys():
            unknown.append(config)
        elif "memory" not in _program(record, found) and not found.get("pipeline"):
            without.append(config)
    said = []
    if unknown:
        said.append(
            f"Not counted yet, because the time of the last command was over: {', '.join(unknown)}."
        )
    if without:
        said.append(
            "Operations are counted and memory is not compiled yet, for the same reason: "
            f"{', '.join(without)}."
        )
    return "\n" + "\n".join(said) + "\n" if said else ""


def _program(record: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
    if "largest" not in found:
        return {}
    return record["programs"][found["stages"][found["largest"]]["program"]]
