"""What makes a folder of images another data set to a stage, and what does not."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import load, picture, save
from runs import plans_of, tiny_settings

from ddistill import data
from ddistill.data.facts import DataFacts


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    for i in range(4):
        save(root / "cat" / f"{i}.bmp", picture(i))
        save(root / "dog" / f"{i}.bmp", picture(10 + i))
    return root


LIMITS = pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])


@LIMITS
def test_other_pixels_under_equal_names_sizes_and_times_are_another_set(pets, limit):
    before = load(pets, in_memory_limit_mb=limit)
    path = pets / "dog" / "2.bmp"
    status = path.stat()
    save(path, picture(77))
    assert path.stat().st_size == status.st_size
    # What `cp -p` and `rsync -t` do.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = load(pets, in_memory_limit_mb=limit)
    assert {k for k in after.identity if after.identity[k] != before.identity[k]} == {"pixels"}
    assert after.provenance != before.provenance


def move(pets: Path) -> Path:
    return Path(shutil.move(pets, pets.parent / "mount" / "animals"))


def link(pets: Path) -> Path:
    (pets.parent / "link").symlink_to(pets)
    return pets.parent / "link"


def add_notes(pets: Path) -> Path:
    (pets / "notes.txt").write_text("")
    (pets / "fish").mkdir()
    return pets


def touch(pets: Path) -> Path:
    os.utime(pets / "dog" / "2.bmp", (1, 1))
    return pets


def encode_otherwise(pets: Path) -> Path:
    (pets / "dog" / "3.bmp").unlink()
    save(pets / "dog" / "3.png", picture(13))
    return pets


def rename_without_a_change_of_order(pets: Path) -> Path:
    (pets / "dog" / "3.bmp").rename(pets / "dog" / "4.bmp")
    return Path(shutil.move(pets / "dog", pets / "wolf")).parent


@LIMITS
@pytest.mark.parametrize(
    "change",
    [move, link, add_notes, touch, encode_otherwise, rename_without_a_change_of_order],
)
def test_what_changes_no_pixel_label_or_split_is_the_same_set(pets, change, limit):
    (pets.parent / "mount").mkdir()
    before = load(pets).identity
    assert load(change(pets), in_memory_limit_mb=limit).identity == before


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 1},
        {"in_memory_limit_mb": 0.0},
        {"on_bad_image": "skip"},
        {"splits": "none"},
        {"flip": False},
        {"image_size": 16},
    ],
)
def test_settings_without_effect_are_no_part_of_it(pets, settings):
    assert load(f"{pets}/", **settings).identity == load(pets).identity


def swap(pets: Path) -> None:
    for name, other in (("dog", "x"), ("cat", "dog"), ("x", "cat")):
        (pets / name).rename(pets / other)


@LIMITS
def test_what_training_depends_on_is_part_of_it(pets, limit):
    first = load(pets, in_memory_limit_mb=limit).identity

    def differing(**settings):
        other = load(pets, in_memory_limit_mb=limit, **settings).identity
        return {key for key in first if first[key] != other[key]}

    assert differing(flip=True) == {"flip"}
    assert differing(channels=1) == {"pixels", "image_shape"}
    assert differing(image_size=8) == {"pixels", "image_shape"}
    assert {"pixels", "images"} <= differing(test_fraction=0.5)
    (pets / "dog" / "3.bmp").rename(pets / "cat" / "9.bmp")
    assert differing() == {"pixels", "labels"}
    (pets / "cat" / "9.bmp").rename(pets / "dog" / "3.bmp")
    swap(pets)
    assert differing() == {"pixels"}
    swap(pets)
    (pets / "ant").mkdir()
    (pets / "cat" / "0.bmp").rename(pets / "ant" / "0.bmp")
    assert differing() == {"labels", "classes"}


def test_the_identity_of_digits_is_their_content():
    first = data.load({"name": "digits"}, "train").identity
    assert first == data.load({"name": "digits", "flip": False}, "train").identity
    flipped = data.load({"name": "digits", "flip": True}, "train").identity
    assert {key for key in first if first[key] != flipped[key]} == {"flip"}
    assert first["images"] == 1437


def test_facts_keep_what_planning_needs(pets):
    dataset = load(pets)
    facts = DataFacts.of(dataset)
    assert DataFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.identity == dataset.identity
    assert facts.num_classes == dataset.num_classes
    assert facts.num_images == facts.images_of(None) == len(dataset)
    first = int(np.sum(np.asarray(dataset.labels) == 0))
    assert facts.images_of((0, 0)) == first > 0
    assert facts.present.all()


def test_the_same_images_elsewhere_and_read_otherwise_are_the_same_stage(pets, tmp_path):
    settings = tiny_settings()
    network = {"name": "tiny", "num_classes": 10, "dropout": 0.1, "out_channels": 3}
    teacher = dataclasses.replace(settings.stages["teacher"], network=network)

    def digest(path, **changes):
        source = {"name": "folder", "path": str(path), "test_fraction": 0.0, **changes}
        made = dataclasses.replace(
            settings, data=source, stages={"teacher": teacher}, pipeline=("teacher",)
        )
        return plans_of(made, tmp_path / "run")["teacher"].digest

    first = digest(pets)
    assert digest(pets, flip=True) != first
    (tmp_path / "mount").mkdir()
    moved = move(pets)
    assert digest(f"{moved}/", workers=3, in_memory_limit_mb=0.0) == first
    save(moved / "dog" / "2.bmp", picture(77))
    assert digest(moved) != first
