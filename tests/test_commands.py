"""`ddistill COMMAND`: the dispatcher, the words of `train`, and what `list` and `new` do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddistill
from ddistill import extensions, main, networks
from ddistill.commands import list as listing
from ddistill.commands.dispatch import COMMANDS, DATA, run
from ddistill.config_names import shipped_configs
from ddistill.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def console_script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ddistill"])


def test_help_and_version_name_every_command_and_import_no_jax():
    code = "import sys; from ddistill.commands.dispatch import run; sys.argv = ['ddistill']\n"
    code += "print(run(['--version']), run(['--help']), run(['data']))\n"
    code += "print(sorted({'jax', 'numpy', 'absl'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"ddistill {ddistill.__version__}"
    assert lines[1] == "usage: ddistill COMMAND ..."
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.summary.split()] for line in lines)
    assert "usage: ddistill data COMMAND ..." in lines
    assert lines[-2:] == ["0 0 2", "[]"]


@pytest.mark.parametrize(
    "words", [[n] for n in COMMANDS if n != "data"] + [["data", n] for n in DATA]
)
def test_every_command_has_a_help_of_its_own(capsys, words):
    try:
        status = run([*words, "--help"])
    except SystemExit as end:
        status = end.code or 0
    assert status == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: ddistill {' '.join(words)} ")
    assert said.err == ""


@pytest.mark.parametrize(
    "words, parts",
    [
        (["trian"], ["'trian' is not a command of ddistill.", "Did you mean 'train'?", "doctor"]),
        (["--verson"], ["'--verson' is not a flag", "Did you mean '--version'?"]),
        (["--config=x.py"], ["Did you mean 'ddistill train --config=x.py'?"]),
        (["data", "prepair"], ["is not a command of ddistill data.", "Did you mean 'prepare'?"]),
        (["x\ny"], [r"'x\ny' is not a command"]),
        (["compare", "a", "--ouf=b"], ["--ouf is not a flag. Did you mean '--out'?"]),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, words, parts):
    with pytest.raises(SystemExit) as end:
        run(words)
    assert end.value.code == main.USAGE_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


def test_programs_are_named_as_they_were_started(capsys, monkeypatch):
    assert importlib.util.find_spec(DATA["prepare"].module)
    monkeypatch.setattr(sys, "argv", ["/a/ddistill/__main__.py"])
    run(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m ddistill COMMAND")
    for module in ("compare", "evaluate", "export.__main__", "record", "data.prepare"):
        with pytest.raises(SystemExit):
            importlib.import_module(f"ddistill.{module}").main(["--help"])
        module = module.removesuffix(".__main__")
        assert capsys.readouterr().out.startswith(f"usage: python -m ddistill.{module} ")


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["a:smoke"], ["--config=a:smoke"]),
        (["--workdir=w", "a"], ["--config=a", "--workdir=w"]),
        (["--workdir", "w", "a"], ["--config=a", "--workdir", "w"]),
        (["--print_config", "a"], ["--config=a", "--print_config"]),
        (["--nodoctor", "a"], ["--config=a", "--nodoctor"]),
        (["a", "--config.seed", "1"], ["--config=a", "--config.seed", "1"]),
        (["--config", "a", "--config.seed=1"], ["--config", "a", "--config.seed=1"]),
        ([], []),
    ],
)
def test_the_word_that_is_no_flag_is_the_config(words, wanted):
    assert main.with_config_flag(words) == wanted


@pytest.mark.parametrize("words", [["a", "b"], ["a", "--config=b"], ["a", "--config", "b"]])
def test_two_configs_are_refused(words):
    with pytest.raises(ConfigError, match="There is one config for a run; given: a "):
        main.with_config_flag(words)


@pytest.mark.slow
def test_train_runs_a_config_of_the_package_from_any_folder(tmp_path):
    words = ["train", "sfddm_digits:smoke", "--config.seed=3", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "ddistill", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert '"name": "sfddm_digits-smoke"' in done.stdout
    assert '"seed": 3' in done.stdout
    assert list(tmp_path.iterdir()) == []


def listed(text: str) -> dict[str, str]:
    """Names with their lines."""
    lines = [line.strip().partition(" ") for line in text.splitlines() if line.startswith("  ")]
    return {name: rest.strip() for name, _, rest in lines}


def test_list_shows_the_users_configs_before_those_of_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("mine.py").write_text('"""My flowers.\n\nMore."""\ndef get_config(): ...\n')
    Path("configs/sfddm_digits.py").write_text("def get_config(): ...\n")
    Path("helper.py").write_text('"""No config."""\n')
    Path("broken.py").write_text("def get_config(:\n")
    listing.main(["configs"])
    found = listed(capsys.readouterr().out)
    assert list(found)[:2] == ["mine", "sfddm_digits"]
    assert found["mine"] == "My flowers (mine.py)"
    assert found["sfddm_digits"] == "no docstring (configs/sfddm_digits.py)"
    assert found["pd_digits"].startswith("Progressive distillation on scikit-learn's 8x8 digits")
    assert found.keys() == {"mine", *shipped_configs()}


def test_list_shows_what_the_modules_of_a_config_register(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))
    monkeypatch.setattr(extensions, "_ADDED", dict(extensions._ADDED))
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("listed_net.py").write_text(
        "from flax import linen as nn\nfrom ddistill import register\n"
        "@register.network('listed_net')\nclass Net(nn.Module):\n"
        '    """One layer.\n\n    More."""\n    width: int = 1\n'
    )
    Path("mine.py").write_text("import listed_net\ndef get_config(): return {'seed': 1}\n")
    listing.main(["networks", "--config=mine"])
    found = listed(capsys.readouterr().out)
    assert found["listed_net"] == "One layer. (from listed_net)"
    assert found["unet"].startswith("U-Net of DDPM: ")
    sys.modules.pop("listed_net")


def test_list_has_one_line_for_everything_that_settings_name(capsys):
    listing.main([])
    text = capsys.readouterr().out
    assert [line.split(" ")[0] for line in text.splitlines() if line[:1].strip()] == [
        *("configs", "methods", "networks", "samplers")
    ]
    found = listed(text)
    names = (module.keys() for module in (networks.NETWORKS, ddistill.objectives.OBJECTIVES))
    for name in {"ddim", "renoise"}.union(*names):
        assert len(found[name]) > 20
    with pytest.raises(SystemExit, match="WHAT='config' is not known. Did you mean 'configs'?"):
        listing.main(["config"])
    with pytest.raises(SystemExit, match="nosuch does not exist"):
        listing.main(["methods", "--config=nosuch"])
