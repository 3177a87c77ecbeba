"""The recipe for a folder of one's own images, and the feature network of rotations."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct
from PIL import Image

from ddistill import data, recipes
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.checks import check_evaluation, check_real_images
from ddistill.evaluation.scorer import measured_accuracy
from ddistill.objectives import make_objective
from ddistill.objectives.rotation import Rotation
from ddistill.parsing import parse
from ddistill.planning.planner import plan_stages
from ddistill.recipes.own_images import LEAST_OF_A_CLASS, METHODS, SIZES
from ddistill.settings import Settings

OF_A_CLASS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of pictures of several modes and sizes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (root / kind).mkdir()
        for i in range(OF_A_CLASS * 5 // 4 + 8):
            mode, channels = (("RGB", 3), ("L", 1), ("RGBA", 4))[i % 3]
            pixels = rng.integers(0, 256, (9 + i % 4, 11, channels), np.uint8)
            image = Image.fromarray(pixels.squeeze()).convert(mode)
            image.save(root / kind / f"{i}.png")
    return root


def settings_of(folder, variant="", **options):
    recipe = recipes.own_images("mine", str(folder), **options)
    return parse(recipes.own_images_config(recipe, variant), Settings)


def planned(settings, root):
    images = data.load(settings.data, "train")
    plans = plan_stages(settings, DataFacts.of(images), root / "run", root / "shared")
    check_evaluation(settings, plans)
    check_real_images(settings, images)
    return plans


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 8, "channels": 1, "steps": (3,)},
        {"image_size": 28, "method": "pd", "size": "base"},
        {"image_size": 20, "method": "o2mkd", "conditional": False},
        {"image_size": 12, "updates": 7, "conditional": True},
        {"image_size": 128, "size": "large", "steps": (8, 1)},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "defaults",
)
def test_every_stage_of_a_folder_can_be_planned(folder, tmp_path, options):
    settings = settings_of(folder, **options)
    plans = planned(settings, tmp_path)
    names = [plan.name for plan in plans]
    assert names[:2] == ["classifier", "teacher"]
    method = options.get("method", "sfddm")
    wanted = options.get("steps", METHODS[method])
    students = [plan for plan in plans if plan.settings.method]
    if method == "o2mkd":
        assert students[0].settings.samplers == {"ddim": wanted}
    else:
        assert [plan.levels.num_steps for plan in students] == list(wanted)
    side = options.get("image_size", 32)
    assert plans[1].image_shape == (side, side, options.get("channels", 3))
    assert settings.stages["teacher"].conditional == options.get("conditional", True)
    length = options.get("updates", SIZES[options.get("size", "small")].updates)
    assert settings.stages["teacher"].steps == length


def test_the_smoke_variant_ends_with_the_first_sampled_student(folder, tmp_path):
    for method, last in {"sfddm": "sfddm_n4", "pd": "pd_n16", "o2mkd": "o2mkd_k4"}.items():
        settings = settings_of(folder, "smoke", method=method)
        assert settings.pipeline[-1] == last
        assert max(stage.steps for stage in settings.stages.values()) == 20
        assert settings.data["path"] == str(folder)
    planned(settings, tmp_path)


def test_classes_decide_the_conditioning_and_the_feature_network(folder):
    def facts(path, **options):
        stages = settings_of(path, **options).stages
        judge, teacher = stages["classifier"], stages["teacher"]
        return judge.objective["name"], judge.network["num_classes"], teacher.conditional

    assert facts(folder) == ("classification", 2, True)
    assert facts(folder, conditional=False) == ("classification", 2, False)
    assert facts(folder / "cats" / "..", conditional=None) == ("classification", 2, True)


def test_a_folder_without_classes_is_scored_by_rotations(folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for kind in ("cats", "dogs"):
        for file in (folder / kind).iterdir():
            (flat / f"{kind}_{file.name}").write_bytes(file.read_bytes())
    settings = settings_of(flat, image_size=8)
    assert settings.stages["classifier"].objective["name"] == "rotation"
    assert not settings.stages["teacher"].conditional
    assert planned(settings, tmp_path)[0].modules["student"].num_classes == 4
    with pytest.raises(ConfigError, match="conditional=True, but .*flat has no classes"):
        recipes.own_images("mine", str(flat), conditional=True)


def test_too_few_images_are_refused_in_one_line(folder, tmp_path):
    few = tmp_path / "few"
    for kind, count in (("cats", 60), ("rare", LEAST_OF_A_CLASS - 2)):
        (few / kind).mkdir(parents=True)
        for i in range(count):
            (few / kind / f"{i}.png").write_bytes((folder / "cats" / f"{i % 9}.png").read_bytes())
    with pytest.raises(ConfigError, match=r"the class 'rare' in .* has \d training images.*10 of"):
        recipes.own_images("mine", str(few))
    unconditional = settings_of(few, conditional=False)
    assert unconditional.stages["classifier"].objective["name"] == "rotation"
    with pytest.raises(ConfigError, match=r"rare has [5-8] training images"):
        recipes.own_images("mine", str(few / "rare"))
    with pytest.raises(DataError, match="nowhere"):
        recipes.own_images("mine", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"image_size": 30}, "image_size=30 is not a multiple of 4 .* nearest one is 32"),
        ({"image_size": 512}, "image_size=512 .* nearest one is 256"),
        ({"channels": 4}, r"channels=4 is not known. Allowed: 1 \(grey\), 3"),
        ({"size": "smal"}, "size='smal' is not known. Did you mean 'small'"),
        ({"method": "sffdm"}, "method='sffdm' is not known. Did you mean 'sfddm'"),
        ({"method": "pd", "steps": (3,)}, "3 is not a power of two"),
        ({"steps": (4, 4)}, r"steps=\(4, 4\) must name one or more different numbers"),
        ({"steps": (4)}, r"steps=4 must be whole numbers in brackets, .*\(4,\)"),
        ({"steps": "42"}, "steps='42' must be whole numbers"),
        ({"steps": (4.0,)}, r"steps=\(4.0,\) must be whole numbers"),
        ({"steps": (1000,)}, "1000 is not a whole number from 1 to 128"),
        ({"updates": -1}, "updates=-1 must be 1 or more"),
    ],
)
def test_arguments_that_cannot_be(folder, options, part):
    with pytest.raises(ConfigError, match=part):
        recipes.own_images("mine", str(folder), **options)


# ------------------------------------------------------------------------------------- rotations


def test_examples_are_rotated_by_the_number_that_is_their_class():
    batch = tiny.batch(64)
    images, turns = Rotation().examples(batch)
    assert set(np.asarray(turns).tolist()) == {0, 1, 2, 3}
    for before, after, k in zip(batch.image, images, turns):
        np.testing.assert_array_equal(after, np.rot90(before, int(k)))
    # The draws of an example do not depend on the others.
    half = jax.tree.map(lambda leaf: leaf[:10], dataclasses.replace(batch, memory={}, shared={}))
    np.testing.assert_array_equal(Rotation().examples(half)[1], turns[:10])


def test_the_accuracy_is_the_mean_over_all_rotations():
    bright_top = np.full((5, 4, 4, 1), -1.0, np.float32)
    bright_top[:, 0] = 1.0
    test = data.Dataset("bars", bright_top, np.zeros(5, np.int32), 1, ("bars",))

    @struct.dataclass
    class Upright:
        """Knows upright images and those turned by 180 degrees only."""

        def __call__(self, images):
            upright = images[:, 0].mean((1, 2)) > 0.5
            logits = jnp.stack([upright, upright * 0, ~upright, upright * 0], 1) * 1.0
            return logits, images[:, 0, :, 0]

    plan = SimpleNamespace(objective=make_objective({"name": "rotation"}))
    assert measured_accuracy(plan, Upright(), test, 4) == 0.5


def test_rotations_need_square_images():
    with pytest.raises(ConfigError, match="square images; these are 6x4. .*image_size=4"):
        Rotation.trains.inputs((4, 6, 3), False)
