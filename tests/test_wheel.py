"""The wheel: what is in it, and that it runs in an empty environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import snapshot

import ddistill

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built by pip in a copy of the source tree, which stays as it is."""
    base = tmp_path_factory.mktemp("wheel")
    clone = base / "clone"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ddistill", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source, target = ROOT / name, clone / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        else:
            shutil.copyfile(source, target)
    before = snapshot(clone)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base), "."]
    subprocess.run(build, cwd=clone, check=True, capture_output=True, text=True)
    assert snapshot(clone) == before, "the build has left files in the source tree"
    [found] = base.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_with_its_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        info = {n.split("/", 1)[1]: n for n in archive.namelist() if ".dist-info/" in n}
        metadata = Parser().parsestr(archive.read(info["METADATA"]).decode())
        entry_points = archive.read(info["entry_points.txt"]).decode()
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "ddistill").rglob("*.py")}
    configs = {f"ddistill/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    assert names == {*sources, *configs, "ddistill/py.typed"}
    assert metadata["Name"] == "ddistill"
    assert metadata["Version"] == ddistill.__version__
    assert "ddistill = ddistill.__main__:main" in entry_points


def test_the_public_names_are_those_of_all_and_take_no_import_of_jax():
    code = "import sys, ddistill; print(ddistill.__version__, 'jax' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [ddistill.__version__, "False"]
    for name in ddistill.__all__:
        assert getattr(ddistill, name) is not None


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of a virtual environment with the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run([*PIP, "--python", str(folder / "bin/python"), *install], check=True)
    return folder / "bin"


@pytest.mark.slow
def test_an_installed_wheel_trains_on_ones_own_images(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is most of this test

    def command(*words: str) -> str:
        done = subprocess.run(
            [str(installed / "ddistill"), *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert command("--version") == f"ddistill {ddistill.__version__}\n"
    assert "  sfddm_digits " in command("list", "configs")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(56):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    command("new", "mine", "--images=photos")
    text = (tmp_path / "mine.py").read_text().replace("image_size=32", "image_size=8")
    (tmp_path / "mine.py").write_text(text)
    # One stage: the whole experiment takes four times as long and would show no more.
    network = "--config.stages.teacher.network"
    small = (f"{network}.multipliers=(1,)", f"{network}.attention=()")
    command("train", "mine:smoke", "--stage=teacher", *small)
    [found] = (tmp_path / "runs" / "shared").glob("teacher-*/complete.json")
    assert '"stage": "teacher"' in found.read_text()
    where = "import ddistill; print(ddistill.__file__)"
    python = [str(installed / "python"), "-c", where]
    found = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed.parent))
