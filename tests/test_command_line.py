"""Wrong command lines and config files: one line, exit status 2, and nothing written."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ddistill import main
from ddistill.config_files import overrides
from ddistill.settings import Settings, parse

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
        ["config.stages.teacher.optimizer.learning_rat", "'learning_rate'"],
    ),
    "override of a wrong type": ([f"--config={DIGITS}", "--config.seed=zero"], ["seed", "zero"]),
    "in the file": (
        ["--config=config.py"],
        ["config.sede is not a setting", "Did you mean 'seed'?"],
    ),
    "mistake in the file": (
        ["--config=config.py:wrong"],
        ["The config file config.py fails: KeyError: 'c' (config.py, line 6)"],
    ),
    "wrong value in the file": (
        ["--config=config.py:text"],
        ["The config file config.py fails: ValueError", "'text'", "(config.py, line 8)"],
    ),
    "no file": (["--config=confg.py"], ["confg.py does not exist. Did you mean 'config.py'?"]),
    "no such stage setting": (
        [f"--config={DIGITS}", "--config.stages.teacher.stepz=5"],
        ["stepz=5: config.stages.teacher.stepz is not a setting", "'steps'"],
    ),
    "no number": ([f"--config={DIGITS}", "--config.seed=x"], ["'x' is not a whole number"]),
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


def command(folder: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command line with flags in a folder."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-B", "-m", "ddistill.main", *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags, parts", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_command_line_answers_in_one_line(tmp_path, flags, parts):
    (tmp_path / "config.py").write_text(CONFIG)
    done = command(tmp_path, flags)
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
    one = overrides(["--config=x.py", "--config.seed=1", "-config.a.b=c", "--workdir=w"])
    two = overrides(["--config", "x.py", "--config.seed", "1", "-config.a.b", "c"])
    assert one == two == ["config.seed=1", "config.a.b=c"]
    assert overrides(["--config.flag", "--config.seed=1"]) == ["config.flag", "config.seed=1"]
    assert overrides(["--noconfig.flag", "--workdir=w"]) == ["noconfig.flag"]


# Flags beside --doctor, and the start of the line on the data.
DOCTOR = {
    "no config": ([], "give --config=... to look for its data"),
    "embedded": ([f"--config={DIGITS}"], "digits: 1797 scans of 8x8 pixels, embedded"),
    "missing": (
        [f"--config={DIGITS.with_name('sfddm_church.py')}", "--config.data.path=here"],
        "NOT READY: data.path=here does not exist",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags, data", DOCTOR.values(), ids=DOCTOR.keys())
def test_doctor_tells_what_this_machine_has_and_writes_nothing(tmp_path, flags, data):
    done = command(tmp_path, ["--doctor", "--workdir=runs/mine", *flags])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = {line[:18].strip(): line[18:] for line in done.stdout.splitlines()}
    assert told["Python"] == platform.python_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert told[package] == importlib.metadata.version(package)
    assert " x cpu (" in told["devices"]
    assert told["compile cache"] == str(tmp_path / "runs" / "shared" / "xla")
    assert int(told["CPU cores"].split()[0]) == os.cpu_count()
    assert float(told["memory"].removesuffix(" GiB")) > 0
    free, _, rest = told["disk"].partition(" ")
    assert float(free) >= 0
    assert rest == "GiB free for runs/mine (writable)"
    assert told["data"].startswith(data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_print_config_prints_what_a_run_would_use_and_a_config_file_can_hold(tmp_path):
    flags = ["--config.seed=3", "--config.stages.teacher.ema=(0.5, 0.9)"]
    flags += ["--config.data.name=folder", "--config.data.path=mine", "--config.data.image_size=32"]
    flags += ["--config.data.test_fraction=0", "--config.data.flip=False"]
    done = command(tmp_path, [f"--config={DIGITS}:smoke", *flags, "--print_config"])
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    printed = parse(json.loads(done.stdout), Settings)
    assert (printed.name, printed.seed) == ("sfddm_digits-smoke", 3)
    assert printed.stages["teacher"].ema == (0.5, 0.9)
    data = {"name": "folder", "path": "mine", "image_size": 32, "test_fraction": 0, "flip": False}
    assert printed.data == data
    source = f"from ml_collections import ConfigDict\n\nTEXT = {done.stdout!r}\n"
    source += "def get_config():\n    import json\n    return ConfigDict(json.loads(TEXT))\n"
    (tmp_path / "printed.py").write_text(source)
    again = command(tmp_path, ["--config=printed.py", "--print_config"])
    assert again.returncode == 0, again.stderr
    assert parse(json.loads(again.stdout), Settings) == printed
