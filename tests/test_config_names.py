"""Which file a name of a config means."""

import os
import sys
from pathlib import Path

import pytest

from ddistill.config_files import load_config
from ddistill.config_names import SHIPPED, ConfigFileError, find_config, shipped_configs, summary

CONFIG = "def get_config(variant=''):\n    return {'seed': %d}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_the_folder_comes_before_one_in_configs_and_that_before_ours():
    assert find_config("pd_digits") == SHIPPED / "pd_digits.py"
    Path("configs").mkdir()
    Path("configs/pd_digits.py").write_text(CONFIG % 2)
    assert load_config("pd_digits:any").seed == 2
    Path("pd_digits.py").write_text(CONFIG % 1)
    assert load_config("pd_digits").seed == 1
    assert find_config("configs/pd_digits") == Path("configs/pd_digits.py")
    assert load_config("./pd_digits.py").seed == 1


def test_a_config_is_read_anew_however_soon_it_has_changed(monkeypatch):
    """Bytecode would be taken for that of the second file, of the same size and second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for seed in (1, 2):
        Path("mine.py").write_text(CONFIG % seed)
        os.utime("mine.py", (10**9, 10**9))
        assert load_config("mine").seed == seed
    assert os.listdir() == ["mine.py"]


def test_a_folder_of_the_name_hides_no_config():
    Path("pd_digits").mkdir()
    assert find_config("pd_digits") == SHIPPED / "pd_digits.py"


def test_the_package_has_every_config_of_the_clone_with_a_line_on_each():
    root = Path(__file__).parent.parent / "configs"
    assert shipped_configs() == {path.stem: path for path in sorted(root.glob("*.py"))}
    assert all(20 < len(summary(path)) < 120 for path in shipped_configs().values())


@pytest.mark.parametrize(
    "name, part",
    [
        ("pd_digit", "Did you mean 'pd_digits'?"),
        ("min", "Did you mean 'mine'?"),
        ("pd_digits.py", "The config file pd_digits.py does not exist. Did you mean 'pd_digits'?"),
        ("configs/pd_digits.py", "does not exist. Did you mean 'pd_digits'?"),
        ("nowhere/x", "The config file nowhere/x does not exist. A setting is changed by"),
        ("x" * 20, "`ddistill list configs` lists all."),
        ("", "--config needs a file or a name"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest_one(name, part):
    Path("mine.py").write_text(CONFIG % 1)
    with pytest.raises(ConfigFileError) as caught:
        find_config(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
