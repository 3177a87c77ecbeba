"""docs/own_images.md: its commands in their order, on 300 pictures."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ddistill import data
from ddistill.commands.dispatch import run
from ddistill.evaluation.records.rows import read_rows
from ddistill.recipes.own_images import LEAST_IMAGES, LEAST_OF_A_CLASS, SIZES

PAGE = (Path(__file__).parent.parent / "docs" / "own_images.md").read_text(encoding="utf-8")
ROOT = str(Path(__file__).parent.parent)
# The full training takes hours; the page says that its place is taken by the variant.
SHRUNK = (("train flowers\n", "train flowers:smoke\n"), ("runs/flowers", "runs/flowers-smoke"))
SMALL = ("--config.evaluation.samples=16", "--config.evaluation.batch_size=16")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def shrunk(text: str) -> str:
    for before, after in SHRUNK:
        text = text.replace(before, after)
    return text


def commands() -> list[list[str]]:
    """The words after `ddistill` of every command of the page."""
    found = [shlex.split(line) for line in shrunk("".join(blocks("sh"))).splitlines()]
    assert all(words[0] == "ddistill" for words in found)
    return [words[1:] for words in found]


def paint(folder: Path) -> None:
    """300 pictures of two classes, of several sizes and modes."""
    rng = np.random.default_rng(0)
    for kind in ("rose", "tulip"):
        (folder / kind).mkdir(parents=True)
        for i in range(150):
            picture = Image.new("RGB", (20 + i % 5, 24), tuple(rng.integers(150, 256, 3).tolist()))
            draw = ImageDraw.Draw(picture)
            x, y, r = rng.integers(8, 12), rng.integers(8, 14), rng.integers(4, 8)
            shape = draw.ellipse if kind == "rose" else draw.rectangle
            box = tuple(map(int, (x - r, y - r, x + r, y + r)))
            shape(box, fill=tuple(rng.integers(0, 120, 3).tolist()))
            name = f"{i}.jpg" if i % 2 else f"{i}.png"
            picture.convert("L" if i % 7 == 0 else "RGB").save(folder / kind / name)


def start(words: list[str]) -> str:
    """The output of a command in a process of its own, as flags are the process's."""
    done = subprocess.run(
        [sys.executable, "-m", "ddistill", *words],
        env={**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_lead_from_pictures_to_a_report_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paint(Path("pictures"))
    new, doctor, train, *exports = commands()
    assert [new[0], doctor[-1], train] == ["new", "--doctor", ["train", "flowers:smoke"]]
    run(new)
    config = Path("flowers.py")
    text = config.read_text(encoding="utf-8")
    for argument in re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE):
        assert f"{argument}=" in text, f"{argument} is not in the config file"
    config.write_text(text.replace("image_size=32", "image_size=8"), encoding="utf-8")
    said = start(doctor)
    sets = re.search(r"folder pictures: (\d+) training and (\d+) test images, 2 classes", said)
    assert sets
    assert int(sets[1]) + int(sets[2]) == 300
    start([*train, *SMALL])
    folder = Path("runs/flowers-smoke")
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    rows = read_rows(folder / "results.json")
    assert {"ddim", "sfddm", "real"} == {row.method for row in rows}
    assert {"fd_infinity", "recall"} <= {row.metric for row in rows}
    (program,) = blocks("python")
    made: dict[str, np.ndarray] = {}
    exec(shrunk(program), made)
    assert made["images"].shape == (16, 8, 8, 3)
    assert made["images"].dtype == np.uint8
    for words in exports:
        run(words)
        out = Path(words[3])
        assert "sfddm" in (out / "README.md").read_text(encoding="utf-8").lower()
        assert list(out.rglob("*.safetensors"))


def test_the_page_has_the_numbers_of_the_code():
    assert f"Classes need {LEAST_OF_A_CLASS} training images each" in PAGE
    assert f"at least {LEAST_IMAGES} are needed" in PAGE
    sizes = re.findall(r"^\| \"(\w+)\" \| (\d+) \| ([\d,]+) \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name: tuple(int(n.replace(",", "")) for n in rest) for name, *rest in sizes} == {
        name: (scale.width, scale.updates, scale.batch_size) for name, scale in SIZES.items()
    }
    assert data.defaults("folder")["splits"] == "auto"
