"""Wrong command lines and config files: one line, exit status 2, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddistill import main

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    if variant == "wrong":
        return ConfigDict({"a": 1}["c"])
    if variant == "text":
        return ConfigDict(seed=int("text"))
    return ConfigDict({"sede": 1})
"""
DIGITS = Path(__file__).parent.parent / "configs" / "sfddm_digits.py"
# Flags, and what the answer has to contain.
COMMANDS = {
    "override": (
        [f"--config={DIGITS}", "--config.stages.teacher.optimizer.learning_rat=1.0"],
        ["config.stages.teacher.optimizer.learning_rat", '"learning_rate"'],
    ),
    "override of a wrong type": ([f"--config={DIGITS}", "--config.seed=zero"], ["seed", "zero"]),
    "in the file": (
        ["--config=config.py"],
        ["config.sede is not a setting", "Did you mean 'seed'?"],
    ),
    "mistake in the file": (
        ["--config=config.py:wrong"],
        ["The config file config.py fails: KeyError: 'c' (line 6)"],
    ),
    "wrong value in the file": (
        ["--config=config.py:text"],
        ["The config file config.py fails: ValueError", "'text'", 'File "config.py", line 8'],
    ),
    "no file": (["--config=confg.py"], ["confg.py does not exist"]),
    "no file, other spelling": (["--config", "confg.py:smoke"], ["confg.py does not exist"]),
    "no config": ([], ["--config=FILE is missing"]),
    "variant": ([f"--config={DIGITS}:smok"], ["Variant ':smok' is not known", "':smoke'"]),
    "T' > T": (
        [f"--config={DIGITS}:smoke", "--config.stages.sfddm_n4.grid.steps=257"],
        ["grid.steps=257", "has 256 steps"],
    ),
    "unknown flag": ([f"--config={DIGITS}", "--workdri=x"], ["workdri", "workdir"]),
    "stray word": (["stray"], ["Arguments without a flag: stray."]),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags, parts", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_command_line_answers_in_one_line(tmp_path, flags, parts):
    (tmp_path / "config.py").write_text(CONFIG)
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "ddistill.main", *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == main.USAGE_ERROR, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    for part in parts:
        assert part in lines[0]
    assert done.stdout == ""
    assert [x.name for x in tmp_path.iterdir()] == ["config.py"]


def test_overrides_are_the_same_in_one_word_and_in_two():
    one = main._overrides(["--config=x.py", "--config.seed=1", "-config.a.b=c", "--workdir=w"])
    two = main._overrides(["--config", "x.py", "--config.seed", "1", "-config.a.b", "c"])
    assert one == two == ["config.seed=1", "config.a.b=c"]
    assert main._overrides(["--config.flag", "--config.seed=1"]) == ["config.flag", "config.seed=1"]
