"""What a chip has to hold and do for K students on slices of a TPU v5e, from compiled programs.

    python benchmarks/scaling.py --results=scaling.json --markdown

Every student has chips of its own and spreads its batch over them. A chip's program depends on how
many students and how many images it has and hardly on anything else, so cells of the table that are
equal in that are compiled once, the first of them. Every program takes minutes to compile;
`--results` keeps what is done. Nothing here has run on a TPU.

"roofline" is the longer of what a chip needs for its operations at 197 TFLOP/s and for its traffic
with memory at 819 GB/s; "XLA" is `optimal_seconds`, the compiler's sum of the same over all
operations of the program, each by itself. Both leave out exchanges and are bounds, not forecasts.
Programs are compiled `--quick`ly (see aot_compile.py): of fully optimised ones XLA gives no usable
bound.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aot_compile import BANDWIDTH, FLOPS, Case
from timing import print_table

# Images of one student's step: 1024 of all four on CIFAR-10; the config's own on LSUN church.
BATCHES = {"configs/o2mkd_cifar.py": 256, "configs/o2mkd_church.py": 64}
COUNTS = (4, 8, 16)
HEADING = (
    "config",
    "K",
    "chips",
    "student x data x model",
    "images a chip",
    "parts",
    "memory GB",
)
HEADING += ("TFLOP", "traffic GB", "roofline ms", "XLA ms", "compiled in s")
CHIPS = (16, 64, 256)


def cells(configs: list[str], limits: dict[str, int]) -> Iterator[tuple[Case, tuple[Any, ...]]]:
    """The cases of the table, each with what its program depends on."""
    for config in configs:
        batch = BATCHES[config]
        for count in COUNTS:
            for chips in CHIPS:
                spread = min(count, chips)
                data = min(chips // spread, batch)
                images = count // spread * batch // data
                parts = -(-images // limits.get(config, images))
                case = Case(config, (spread, data, 1), count, batch, parts, quick=True)
                yield case, (config, count // spread, images, parts)


def compiled(case: Case) -> dict[str, Any]:
    """What aot_compile.py tells of a case, or {"error": ...}."""
    command = [sys.executable, str(Path(__file__).with_name("aot_compile.py"))]
    command += [f"--config={case.config}", f"--mesh={','.join(map(str, case.mesh))}"]
    command += [f"--count={case.count}", f"--batch={case.batch}", "--quick"]
    command += [f"--accumulate={case.accumulate}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"error": (reasons or [done.stderr])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def row(case: Case, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    mesh = " x ".join(str(n) for n in case.mesh)
    images = case.batch * case.count // (case.mesh[0] * case.mesh[1])
    name = Path(case.config).stem
    known = [name, str(case.count), str(case.mesh[0] * case.mesh[1]), mesh, str(images)]
    known.append(str(case.accumulate))
    if "error" in found:
        return [*known, found["error"][:200], "", "", "", "", ""]
    roofline = max(found["flops"] / FLOPS, found["bytes"] / BANDWIDTH)
    return [
        *known,
        f"{found['memory'] / 1e9:.2f}",
        f"{found['flops'] / 1e12:.3f}",
        f"{found['bytes'] / 1e9:.1f}",
        f"{1e3 * roofline:.1f}",
        f"{1e3 * found['optimal_seconds']:.1f}",
        f"{found['compile_seconds']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", default=",".join(BATCHES), help=f"of: {', '.join(BATCHES)}")
    parser.add_argument("--most", default="", help="images a chip holds at once: CONFIG=N,...")
    parser.add_argument("--results", type=Path, help="keeps what has been compiled")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    limits = {k: int(n) for k, n in (x.split("=") for x in args.most.split(",") if x)}
    kept: dict[str, Any] = {}
    if args.results and args.results.exists():
        kept = json.loads(args.results.read_text())
    table = [list(HEADING)]
    for case, same in cells(args.configs.split(","), limits):
        key = json.dumps(same)
        if key not in kept:
            kept[key] = compiled(case)
            if args.results:
                args.results.write_text(json.dumps(kept, indent=1))
        table.append(row(case, kept[key]))
    print_table(table, args.markdown)


if __name__ == "__main__":
    main()
