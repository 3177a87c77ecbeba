"""Two calls for a day with one GPU: `tables` times programs, `train` trains students.

benchmarks/gpu_day.sh sets the environment and calls this; docs/gpu_day.md describes both.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
# Seconds that a benchmark has after its own deadline before it is killed.
GRACE = 10.0


@dataclass(frozen=True)
class Table:
    """One benchmark.

    Attributes:
      script: file in this folder.
      full, tiny: its arguments on a GPU, and to try the call on a CPU.
      share: of the time, relative to the other tables.
    """

    script: str
    full: tuple[str, ...]
    tiny: tuple[str, ...]
    share: float


# In order of importance: the last ones are left out if the time is short.
TABLES = (
    Table(
        "train_step.py",
        ("--networks=cifar", "--torch-compile", "--rounds=30", "--limit=10"),
        ("--networks=tiny", "--torch-compile", "--no-torch", "--bfloat16", "--rounds=3"),
        3.0,
    ),
    *(
        Table(
            "student_axis.py",
            ("--networks=32x32", "--counts=4", f"--dtype={dtype}", "--mappings=vmap;loop"),
            ("--networks=tiny", "--counts=2", f"--dtype={dtype}", "--mappings=vmap", "--rounds=3"),
            1.5,
        )
        for dtype in ("bfloat16", "float32")
    ),
    Table(
        "inception.py",
        ("--batch=256", "--torch-compile", "--rounds=20", "--limit=10"),
        ("--batch=2", "--no-torch", "--no-defaults", "--rounds=1"),
        1.5,
    ),
    *(
        Table(
            "matching_step.py",
            ("--networks=cifar", "--students=0", f"--dtype={dtype}", "--rounds=20"),
            ("--networks=tiny", "--students=0", f"--dtype={dtype}", "--steps=DMD", "--rounds=3"),
            2.0,
        )
        for dtype in ("bfloat16", "float32")
    ),
)

# Runs a script with arguments for at most so many seconds; returns output and exit status.
Runner = Callable[[str, Sequence[str], float], tuple[str, int]]


def in_a_process(script: str, arguments: Sequence[str], seconds: float) -> tuple[str, int]:
    """Runs a benchmark in a process of its own, which is killed after `seconds`."""
    command = [sys.executable, str(FOLDER / script), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += f"\nkilled after {seconds:.0f} s"
        return output, process.returncode


def tables(
    out: Path,
    budget: float,
    size: str,
    run: Runner = in_a_process,
    wanted: Sequence[Table] = TABLES,
) -> list[str]:
    """Runs the benchmarks and writes their output to `out`/tables.md as it comes.

    Args:
      out: folder, which is made.
      budget: seconds of wall time for all; each benchmark has its share of what is left.
      size: "full" or "tiny".
      run: runs one benchmark.
      wanted: the benchmarks.

    Returns:
      The scripts that failed or were left out, with the reason.
    """
    end = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    with (out / "tables.md").open("w") as page:

        def write(text: str) -> None:
            print(text, flush=True)
            page.write(text + "\n")
            page.flush()

        for i, table in enumerate(wanted):
            arguments = table.full if size == "full" else table.tiny
            line = f"{table.script} {' '.join(arguments)}"
            left = end - time.monotonic()
            seconds = left * table.share / sum(t.share for t in wanted[i:])
            if seconds < 2 * GRACE:
                failed.append(f"{line}: left out, {left:.0f} s are left")
                write(f"\n{failed[-1]}")
                continue
            write(f"\n## {line}\n")
            limit = seconds - GRACE
            output, status = run(
                table.script, (*arguments, f"--seconds={limit:.0f}", "--markdown"), seconds
            )
            write(output.strip())
            if status:
                failed.append(f"{line}: exit status {status}")
                write(f"\n{failed[-1]}")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the two calls; returns the exit status."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("call", choices=("tables", "train"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--budget", type=float, default=400.0, help="seconds of wall time")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--data", default="", help="folder of images, or a tar of one")
    args = parser.parse_args(argv)
    if args.call == "tables":
        failed = tables(args.out, args.budget, args.size)
    else:
        if not Path(args.data).exists() or not args.data:
            parser.error(f"DATA={args.data!r} is neither a folder of images nor a tar of one")
        from gpu_day_train import train  # which imports jax

        failed = train(Path(args.data), args.out, args.budget, args.size)
    for text in failed:
        print(f"not complete: {text}")
    print(f"{args.call}: {time.monotonic() - begun:.0f} s, results in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
