"""Wrong command lines and config files: one line, exit status 2, and nothing written."""

import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from ddistill import main
from ddistill.command_line import one_line_ending
from ddistill.config_files import (
    ConfigFileError,
    check_override,
    load_config,
    overrides,
    unknown_flag,
)
from ddistill.errors import ConfigError
from ddistill.parsing import parse
from ddistill.settings import Settings

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
    "a setting without config": (
        [f"--config={DIGITS}", "--seed=1"],
        ["--seed=1 is not a flag", "write --config.seed=1."],
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
    """Runs the command line with flags in a folder, with the folder of programs that is its own."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    given = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, "-B", "-m", "ddistill.main", *flags],
        env={**given, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("words, parts", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_command_line_answers_in_one_line(tmp_path, words, parts):
    (tmp_path / "config.py").write_text(CONFIG)
    done = command(tmp_path, words)
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
    told = {line[:21].strip(): line[21:] for line in done.stdout.splitlines()}
    assert all(line[20] == " " for line in done.stdout.splitlines()), "names end before values"
    assert told["Python"] == platform.python_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert told[package] == importlib.metadata.version(package)
    assert " x cpu (" in told["devices"]
    assert Path(told["compile cache"]).parent == tmp_path / "runs" / "shared" / "xla"
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


# ------------------------------------------------------------- in this process, as above in others

FILES = {
    "no function": ("x = 1", ["has no function get_config(variant)"]),
    "syntax": ("def get_config(v=''):\n    x = (1,\n", ["SyntaxError", "(file.py, line 2)"]),
    "import": ("import nosuch", ["No module named 'nosuch' (file.py, line 1)"]),
    "two lines": (
        "def get_config(v=''):\n    raise RuntimeError('a\\nb')",
        ["RuntimeError: a b (file.py, line 2)"],
    ),
    "deep": (
        "def f():\n    return {}['a']\ndef get_config(v=''):\n    return f()",
        ["KeyError: 'a' (file.py, line 2)"],
    ),
    "exit": ("import sys\ndef get_config(v=''):\n    sys.exit(3)", ["ends the program", "line 3"]),
    "nothing": ("def get_config(v=''):\n    pass", ["get_config of file.py returns nothing"]),
    "a list": ("def get_config(v=''):\n    return [1]", ["returns list", "ConfigDict"]),
    "missing file": (
        "def get_config(v=''):\n    open('nowhere')",
        ["FileNotFoundError", "nowhere", "(file.py, line 2)"],
    ),
    "no UTF-8": (b"\xff", ["SyntaxError", "file.py"]),
    "objective": (
        "from ddistill.recipes import objective\ndef get_config(v=''):\n"
        "    objective('clasification')",
        ["objective.name='clasification'", "Did you mean 'classification'?", "(file.py, line 3)"],
    ),
    "hyperparameter": (
        "from ddistill.recipes import objective\ndef get_config(v=''):\n"
        "    objective('sfddm', substep=2)",
        ["'substep' is not known", "Did you mean 'substeps'?", "(file.py, line 3)"],
    ),
    "network": (
        "from ddistill.recipes import network\ndef get_config(v=''):\n    network('unett')",
        ["network.name='unett'", "Did you mean 'unet'?", "(file.py, line 3)"],
    ),
    "variant needed": ("def get_config(v):\n    pass", ["needs a variant: FILE:NAME"]),
}


@pytest.mark.parametrize("content, parts", FILES.values(), ids=FILES.keys())
def test_config_files_that_fail_are_told_in_one_line(tmp_path, monkeypatch, content, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("file.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigFileError) as caught:
        load_config("file.py")
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_paths_and_variants_of_config_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("plain.py").write_text("def get_config():\n    return {'seed': 1}")
    Path("configs").mkdir()
    (Path("configs") / "sfddm_digits.py").write_text("")
    assert load_config("plain.py").seed == 1
    for argument, part in {
        "plain.py:smoke": "takes no variant; leave ':smoke' out",
        "": "--config needs a file",
        "configs": "is a folder; name a file in it",
        "sfddm_digits.py": "Did you mean 'configs/sfddm_digits.py'?",
        "sfddm_digit": "Did you mean 'sfddm_digits'?",
        "plan.py": "Did you mean 'plain.py'?",
        "seed": "A setting is changed by --config.KEY=VALUE.",
    }.items():
        with pytest.raises(ConfigFileError) as caught:
            load_config(argument)
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def digits_config():
    return load_config(f"{DIGITS}:smoke")


OVERRIDES = {
    "config.sed=1": "config.sed is not a setting. Did you mean 'seed'?",
    "config.stages.teacher.learning_rate=1": "setting. Did you mean 'optimizer.learning_rate'?",
    "config.stages.teacher.learning_rat=1": "setting. Did you mean 'optimizer.learning_rate'?",
    "config.noise_seed=1": "is not a setting. Did you mean 'evaluation.noise_seed'?",
    "config.stages.teacher.xyz=1": "is not a setting. Known in config.stages.teacher: ",
    "config.stages.techer.steps=3": "techer is not a setting. Did you mean 'teacher.steps'?",
    "config.distill.lerning_rate=1": "config.distill is not a setting. Known in config: data,",
    "config.evalution.sample=1": "is not a setting. Did you mean 'evaluation.samples'?",
    "config.stags.teacher.step=1": "is not a setting. Did you mean 'stages.teacher.steps'?",
    "config.seed=abc": "'abc' is not a whole number.",
    "config.seed=None": "'None' is not a whole number.",
    "config.seed": "a value is missing: --config.seed=VALUE",
    "noconfig.seed": "a value is missing: --config.seed=VALUE",
    "config.stages.teacher.steps=1e3": "'1e3' is not a whole number. Write 1000.",
    "config.stages.teacher.steps=1.5": "'1.5' is not a whole number.",
    "config.stages.teacher.optimizer.learning_rate=fast": "'fast' is not a number.",
    "config.evaluation.enabled=maybe": "'maybe' is not True or False.",
    "config.data.image_size=big": "'big' is not a whole number.",
    "config.stages=3": "config.stages is a group of settings",
    "config.seed.x=3": "config.seed is a value and has no settings.",
    "config.pipeline=teacher,student": "--config.pipeline=\"('teacher', 'student')\"",
}


@pytest.mark.parametrize("flag, part", OVERRIDES.items(), ids=OVERRIDES.keys())
def test_overrides_that_cannot_be(digits_config, flag, part):
    with pytest.raises(ConfigFileError) as caught:
        check_override(digits_config, flag)
    assert str(caught.value).startswith(f"--{flag}: ")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "flag",
    [
        "config.seed=3", "config.stages.teacher.ema=(0.5, 0.9)", "config.stages.teacher.ema=0.9",
        "config.data.name=folder", "config.data.flip=False", "config.evaluation.enabled",
        "noconfig.evaluation.enabled", "config.pipeline=teacher", "config.pipeline=('a', 'b')",
        "config.stages.teacher.optimizer.learning_rate=1e-3", "config.name=it's, so",
        "config.pipeline[0]=teacher",
    ],
)  # fmt: skip
def test_overrides_that_can_be(digits_config, flag):
    check_override(digits_config, flag)


def test_types_that_the_flags_cannot_see_are_refused_when_the_config_is_read(digits_config):
    plain = digits_config.to_dict()
    for ema, part in {("a",): "ema[0]='a' is text", (None,): "ema[0]=None"}.items():
        stages = {**plain["stages"], "teacher": {**plain["stages"]["teacher"], "ema": ema}}
        with pytest.raises(ConfigError, match="a number is needed") as caught:
            parse({**plain, "stages": stages}, Settings)
        assert f"config.stages.teacher.{part}" in str(caught.value)


UNKNOWN = {
    ("seed", "1"): "write --config.seed=1.",
    ("stages.teacher.steps", "5"): "write --config.stages.teacher.steps=5.",
    ("batch_size", "5"): "--config.stages.teacher.batch_size=5",
    ("lr", "1e-3"): "--config.stages.teacher.optimizer.learning_rate=1e-3",
    ("confg.seed", "1"): "Did you mean '--config.seed=1'?",
    ("workdri", "x"): "Did you mean '--workdir'?",
    ("h", ""): "Did you mean '--help'?",
    ("zzz", ""): "--zzz is not a flag. Settings of the config are changed by",
}


@pytest.mark.parametrize("flag, part", UNKNOWN.items(), ids=[name for name, _ in UNKNOWN])
def test_flags_that_there_are_not(digits_config, flag, part):
    text = unknown_flag(*flag, main._FLAGS, digits_config)
    assert part in text
    assert "is not a flag" in text


def test_a_setting_is_changed_of_a_config_that_is_given():
    text = unknown_flag("config.seed", "1", main._FLAGS, None)
    assert text == "--config.seed=1 changes a setting, but --config=FILE is missing."


def test_main_knows_its_own_flags():
    own = flags.FLAGS.get_key_flags_for_module(main)
    assert set(main._FLAGS) - {"help"} == {flag.name for flag in own}


@pytest.mark.parametrize(
    "module",
    ["evaluate", "export.__main__", "compare", "record", "data.prepare"],
)
def test_the_other_commands_answer_wrong_flags_in_one_line(module, capsys):
    command = importlib.import_module(f"ddistill.{module}").main
    with pytest.raises(SystemExit) as caught:
        command(
            ["x", "y", "--to=safetensors", "--oout=z", "--dcs=z", "--data_dri=z", "--referenc=z"]
        )
    assert caught.value.code == main.USAGE_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: --")
    assert " is not a flag." in said.err or "without a flag" in said.err


def test_nearest_flags_and_missing_arguments(capsys):
    from ddistill import compare, evaluate

    for command, argv, part in (
        (
            evaluate.main,
            ["x", "--referenc=y"],
            "--referenc is not a flag. Did you mean '--reference'?",
        ),
        (evaluate.main, ["x", "--batch=many"], "invalid int value: 'many'"),
        (compare.main, [], "the following arguments are required: RUN"),
        (evaluate.main, ["x", "y"], "arguments without a flag: y"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(argv)
        assert caught.value.code == main.USAGE_ERROR
        assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, text",
    [
        (PermissionError(13, "Permission denied", "out"), "error: out: Permission denied"),
        (ValueError("a\nb caf\udce9"), r"error: a b caf\xe9"),
    ],
)
def test_expected_errors_are_one_line(error, text):
    with pytest.raises(SystemExit) as caught, one_line_ending():
        raise error
    assert caught.value.code == text


def test_a_workdir_that_checkpoints_cannot_be_written_to_is_refused():
    with pytest.raises(ConfigError, match=r"--workdir=.* is not UTF-8"):
        main._check_paths(Path("caf\udce9"), Path("shared"))
    with pytest.raises(ConfigError, match=r"--cache=.* is not UTF-8"):
        main._check_paths(Path("run"), Path("caf\udce9"))
