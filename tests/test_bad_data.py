"""Folders of images that cannot be trained on, told before anything compiles or is written."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import UNET

from ddistill.errors import DataError


def image(path: Path, mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size)).save(path)


def of_folder(path: Path, **options: Any) -> dict[str, Any]:
    return {"data": {"name": "folder", "path": str(path), "test_fraction": 0.0, **options}}


@pytest.fixture
def pictures(tmp_path_factory, monkeypatch) -> Path:
    """An empty place for images, apart from the run's folders."""
    place = tmp_path_factory.mktemp("pictures")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def test_a_missing_folder_of_images(refused, pictures):
    (pictures / "faces").mkdir()
    text = refused(of_folder(pictures / "face"), DataError)
    assert f"data.path={pictures / 'face'} does not exist" in text
    assert f"Did you mean '{pictures / 'faces'}'?" in text
    assert "data.path is missing" in refused({"data": {"name": "folder"}})


def test_a_file_in_place_of_a_folder(refused, pictures):
    (pictures / "faces.zip").write_text("")
    assert "is a file" in refused(of_folder(pictures / "faces.zip"), DataError)


def test_an_empty_folder_of_images(refused, pictures):
    (pictures / "empty").mkdir()
    assert "holds no files" in refused(of_folder(pictures / "empty"), DataError)
    (pictures / "empty" / "notes.txt").write_text("")
    text = refused(of_folder(pictures / "empty"), DataError)
    assert "no images, only other files (1 .txt)" in text
    assert ".png" in text


def test_images_beside_folders_of_images(refused, pictures):
    image(pictures / "mixed" / "cats" / "a.png")
    image(pictures / "mixed" / "b.png")
    text = refused(of_folder(pictures / "mixed"), DataError)
    assert "b.png" in text
    assert "cats/a.png" in text


def test_images_of_different_sizes(refused, pictures):
    image(pictures / "sizes" / "a.png", size=8)
    image(pictures / "sizes" / "b.png", size=4)
    text = refused(of_folder(pictures / "sizes"), DataError)
    assert "b.png" in text
    assert "data.image_size" in text


def test_a_broken_image_is_named(refused, pictures):
    image(pictures / "broken" / "a.png")
    (pictures / "broken" / "b.png").write_bytes(b"not a picture")
    text = refused(of_folder(pictures / "broken"), DataError)
    assert str(pictures / "broken" / "b.png") in text
    assert "data.on_bad_image='skip'" in text


def scored(folder: Path) -> dict[str, Any]:
    """Changes for a run whose samples are scored against the images in a folder of two classes."""
    return {
        **of_folder(folder, channels=1),
        "evaluation.enabled": True,
        "pipeline": ("classifier", "teacher", "student"),
        "stages.classifier": {
            "objective": {"name": "classification"},
            "network": {"name": "digits_classifier", "width": 8, "num_classes": 2},
            "steps": 4,
            "batch_size": 8,
        },
    }


@pytest.mark.parametrize(
    "folders, parts",
    [
        ({"": 10}, ["data.test_fraction=0.0 leaves no test images of the 20"]),
        ({"train": 10, "test": 2}, ["more than 5 test images", "the data set has 4"]),
        ({"train": 2, "test": 10}, ["more than 5 training images", "the data set has 4"]),
    ],
)
def test_too_few_images_to_score_with_are_found_before_training(refused, pictures, folders, parts):
    for folder, count in folders.items():
        for i in range(count):
            for name in ("cats", "dogs"):
                image(pictures / "set" / folder / name / f"{i}.png")
    changes = scored(pictures / "set")
    text = refused(changes)
    for part in [*parts, "Set config.evaluation.classifier='' to sample without scores."]:
        assert part in text
    # Without scores, or without an evaluation, such data are enough: all checks are passed.
    for change in ({"evaluation.classifier": ""}, {"evaluation.enabled": False}):
        assert "is not a stage" in refused({**changes, **change}, stage="no such stage")


@pytest.mark.parametrize("network", [{"name": "tiny"}, UNET], ids=["tiny", "unet"])
def test_a_grey_network_on_colour_images_and_the_other_way_round(refused, pictures, network):
    image(pictures / "colour" / "a.png")
    common = {
        "stages.teacher.conditional": False,
        "stages.student.conditional": False,
        "stages.student.network": {},
    }
    grey = {**network, "out_channels": 1}
    text = refused({**common, **of_folder(pictures / "colour"), "stages.teacher.network": grey})
    assert "config.stages.teacher.network gives images of shape (8, 8, 1)" in text
    assert "the data are (8, 8, 3)" in text
    assert "network.out_channels=3 or data.channels=1" in text
    colour = {**network, "out_channels": 3}
    text = refused({**common, "stages.teacher.network": colour})
    assert "gives images of shape (8, 8, 3), the data are (8, 8, 1)" in text
    assert "network.out_channels=1 or data.channels=3" in text
