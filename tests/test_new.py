"""`ddistill new NAME`: a config file that runs."""

import ast
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddistill import data, recipes
from ddistill.commands.new import TEMPLATE, main, new
from ddistill.config_files import load_config
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError, DataError
from ddistill.parsing import parse
from ddistill.planning.planner import plan_stages
from ddistill.settings import Settings


@pytest.fixture(autouse=True)
def python_path(monkeypatch):
    """Folders of config files are added to it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def images(tmp_path, monkeypatch) -> str:
    """A folder of 2 x 24 grey images, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("round", "square"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 255, (9, 12), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return "photos"


def test_the_config_is_read_and_planned_on_the_folder(images, tmp_path, capsys):
    main(["shapes", f"--images={images}"])
    said = capsys.readouterr().out
    assert said == "shapes.py: written. Read it, then try it: ddistill train shapes:smoke\n"
    for variant, name in (("", "shapes"), (":smoke", "shapes-smoke")):
        settings = parse(load_config(f"shapes{variant}"), Settings)
        assert settings.name == name
        assert (settings.data["path"], settings.data["image_size"]) == ("photos", 32)
        facts = DataFacts.of(data.load(settings.data, "train"))
        plans = plan_stages(settings, facts, tmp_path / "run", tmp_path / "shared")
        assert [plan.name for plan in plans] == list(settings.pipeline)
        assert plans[0].image_shape == (32, 32, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "shapes.py"]


def test_every_argument_of_the_recipe_is_in_the_file_with_its_default():
    tree = ast.parse(TEMPLATE.format(name="x", folder="y", program="ddistill"))
    [call] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "recipes.own_images"
    ]
    written = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    parameters = inspect.signature(recipes.own_images).parameters.values()
    assert written == {p.name: p.default for p in parameters if p.default is not p.empty}
    assert [ast.literal_eval(argument) for argument in call.args] == ["x", "y"]


def test_without_images_the_folder_beside_the_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["flowers"], "python -m ddistill new")
    said = capsys.readouterr().out
    assert "python -m ddistill train flowers:smoke" in said
    assert "It reads the folder 'images' beside it" in said
    text = Path("flowers.py").read_text()
    compile(text, "flowers.py", "exec")
    assert "    python -m ddistill train flowers  " in text
    assert '"images"' in text or "'images'" in text


@pytest.mark.parametrize("folder", ["a 'b' \"c\" {d} \\n", "caf\udce9"])
def test_folders_of_any_name_are_written_as_they_are(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    monkeypatch.setattr(recipes, "own_images", lambda name, folder, **_: folder)
    monkeypatch.setattr(recipes, "own_images_config", lambda folder, _: {"folder": folder})
    new("flowers", folder)
    assert load_config("flowers").folder == folder


def test_a_folder_of_images_may_have_the_name(tmp_path, monkeypatch):
    """`python -m ddistill new` has the current folder among those of modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("flowers").mkdir()
    assert new("flowers") == Path("flowers.py")
    with pytest.raises(ConfigError, match=r"google\.py would hide the Python module"):
        new("google")


@pytest.mark.parametrize(
    "name, given, error, text",
    [
        ("taken", "", ConfigError, r"taken\.py exists, and nothing is overwritten"),
        ("sfddm_digits", "", ConfigError, "ddistill has a config of that name"),
        ("numpy", "", ConfigError, r"numpy\.py would hide the Python module 'numpy'"),
        ("my pets", "", ConfigError, "must begin with a letter .* Did you mean 'my_pets'"),
        ("../pets", "", ConfigError, "Did you mean 'pets'"),
        ("pets.py", "", ConfigError, "'.py' is added. Did you mean 'pets'"),
        ("pets", "nowhere", ConfigError, "--images=nowhere is not a folder"),
        ("pets", "empty", DataError, "empty"),
    ],
)
def test_nothing_is_written_where_the_config_could_not_run(
    tmp_path, monkeypatch, name, given, error, text
):
    monkeypatch.chdir(tmp_path)
    Path("taken.py").write_text("mine")
    Path("empty").mkdir()
    with pytest.raises(error, match=text) as caught:
        new(name, given)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "taken.py"]
    assert Path("taken.py").read_text() == "mine"
