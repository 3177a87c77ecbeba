"""How feature networks rank known damage: Frechet distances of blurred, noisy, ... real images.

    python benchmarks/feature_ranking.py IMAGES --seeds=0,1,2 --out=ranking.json

IMAGES is a folder with one subfolder of images per class, for example the JPEG images of CIFAR-10's
training set. For each seed, COUNT images are the reference and COUNT others are damaged and scored,
in the features of EfficientNet-Lite0 (the extra `features`) and of a classifier that this library
trains on the reference, as a run trains its classifier on its training images. The scored images
are equal in number, so that the excess of a Frechet distance of few images is the same for all.
"""

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageFilter

from ddistill.data.dataset import Dataset, identify
from ddistill.data.facts import DataFacts
from ddistill.evaluation.metrics.features import Sampling, extract, reference, score
from ddistill.evaluation.metrics.resampling import Resampling
from ddistill.experiment import run
from ddistill.interop.efficientnet_lite import load_lite0
from ddistill.networks.efficientnet_lite import EfficientNetLite0
from ddistill.planning.planner import plan_stages
from ddistill.recipes.common import network, objective, to_config
from ddistill.runtime.compilation import forward_options
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)
from ddistill.training.trained import load_network

CLASSES = 10
BATCH = 8
Damage = Callable[[Image.Image, np.random.Generator], Image.Image]


def blur(radius: float) -> Damage:
    """Gaussian blur; `radius` is the standard deviation in pixels."""
    return lambda image, rng: image.filter(ImageFilter.GaussianBlur(radius))


def noise(deviation: float) -> Damage:
    """Gaussian noise of a standard deviation in grey levels of 0 to 255."""

    def damage(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        pixels = np.asarray(image, np.float64)
        noisy = pixels + deviation * rng.standard_normal(pixels.shape)
        return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))

    return damage


def jpeg(quality: int) -> Damage:
    """Compression as JPEG at a quality of 1 to 95."""

    def damage(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return damage


# By kind, from the weakest damage to the strongest.
DAMAGES: dict[str, dict[str, Damage]] = {
    "blur": {f"sigma {s:g} px": blur(s) for s in (0.5, 1.0, 2.0)},
    "noise": {f"std {s} of 255": noise(s) for s in (5, 10, 20)},
    "JPEG": {f"quality {q}": jpeg(q) for q in (60, 30, 10)},
}
FEWER = (5, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="images of each set")
    parser.add_argument("--seeds", default="0", help="seeds of the images and of the classifier")
    parser.add_argument("--steps", type=int, default=1000, help="train steps of the classifier")
    parser.add_argument("--weights", default="", help="weight file (default: the package's)")
    parser.add_argument("--out", type=Path, default=Path("feature_ranking.json"))
    given = parser.parse_args()
    found = []
    for seed in map(int, given.seeds.split(",")):
        for record in of_seed(given, seed):
            found.append(record)
            given.out.write_text(json.dumps(found, indent=1) + "\n")
            print(table([record]), flush=True)
    print(table(found))


def of_seed(given: argparse.Namespace, seed: int) -> Iterator[dict]:
    """Yields one record per feature network."""
    rng = np.random.default_rng(seed)
    files = [sorted(folder.iterdir()) for folder in sorted(given.images.iterdir())][:CLASSES]
    orders = [rng.permutation(len(own)) for own in files]
    per_class = given.count // CLASSES

    def images(classes: int, start: int) -> tuple[list[Image.Image], np.ndarray]:
        """`count` images of the first classes, from place `start` of their random order on."""
        count = given.count // classes
        chosen = [(k, i) for k in range(classes) for i in orders[k][start : start + count]]
        opened = [Image.open(files[k][i]).convert("RGB") for k, i in chosen]
        return opened, np.array([k for k, _ in chosen], np.int32)

    real, labels = images(CLASSES, 0)
    clean, own_labels = images(CLASSES, per_class)
    sets = {("none", "none"): array(clean)}
    for kind, strengths in DAMAGES.items():
        for name, damage in strengths.items():
            sets[kind, name] = array([damage(image, rng) for image in clean])
    for classes in FEWER:
        sets["fewer classes", f"{classes} of {CLASSES}"] = array(images(classes, per_class)[0])
    for name in ("efficientnet_lite0", "trained classifier"):
        own = name == "trained classifier"
        apply = trained(given, seed, array(real), labels) if own else lite0(given.weights)
        logits, features = extract(apply, array(real), BATCH)
        target = reference(features, labels, CLASSES)
        # Sets of equal size need no extrapolation to infinitely many images.
        sampling = Sampling(given.count, None, Resampling(subsets=20, splits=0))
        record = {"features": name, "seed": seed, "count": given.count, "dim": features.shape[1]}
        start = time.process_time()
        outputs = {key: extract(apply, pixels, BATCH) for key, pixels in sets.items()}
        record["cpu_ms_per_image"] = (
            (time.process_time() - start) * 1e3 / sum(map(len, sets.values()))
        )
        if own:
            logits = outputs["none", "none"][0]
            record["accuracy"] = float((logits.argmax(axis=1) == own_labels).mean())
        record["scores"] = [
            {
                "kind": kind,
                "strength": strength,
                **plain(score(target, found, None, None, sampling)),
            }
            for (kind, strength), (_, found) in outputs.items()
        ]
        yield record


def array(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def plain(scores: dict) -> dict:
    return {name: [s.value, s.low, s.high] for name, s in scores.items()}


def lite0(weights: str):
    params, module = load_lite0(weights).params, EfficientNetLite0()
    compiled = jax.jit(
        lambda p, x: module.apply({"params": p}, x), compiler_options=forward_options()
    )
    params = jax.device_put(params)
    return lambda images: compiled(params, images)


def trained(given: argparse.Namespace, seed: int, pixels: np.ndarray, labels: np.ndarray):
    """The classifier of the library's recipes, trained on these images."""
    stage = StageSettings(
        objective=objective("classification", shift=4),
        network=network("digits_classifier", width=32),
        steps=given.steps,
        batch_size=64,
        optimizer=OptimizerSettings(learning_rate=1e-3, schedule="cosine", warmup=100),
    )
    settings = Settings(
        name="ranking",
        data={"name": "folder", "path": str(given.images)},
        schedule=ScheduleSettings(),
        stages={"classifier": stage},
        pipeline=("classifier",),
        training=TrainingSettings(loggers=()),
        evaluation=EvaluationSettings(enabled=False),
        seed=seed,
    )
    shape = pixels.shape[1:]
    dataset = Dataset(
        name="ranking",
        images=pixels,
        labels=labels,
        num_classes=CLASSES,
        class_names=tuple(map(str, range(CLASSES))),
        hflip=True,
        identity=identify(f"seed {seed}", labels, shape, CLASSES, True),
    )
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "run"
        run(to_config(settings), at, Path(folder), "classifier", "", dataset)
        plan = plan_stages(settings, DataFacts.of(dataset), at, Path(folder))[0]
        classifier = load_network(plan)
    compiled = jax.jit(lambda classifier, x: classifier(x), compiler_options=forward_options())
    return lambda images: compiled(classifier, images)


def table(records: Sequence[dict]) -> str:
    """A table in Markdown: mean over seeds, and the interval of the first."""
    names = list(dict.fromkeys(r["features"] for r in records))
    lines = ["| damage | strength | " + " | ".join(f"FD, {name}" for name in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    rows = [(s["kind"], s["strength"]) for s in records[0]["scores"]]
    for i, (kind, strength) in enumerate(rows):
        cells = []
        for name in names:
            own = [r["scores"][i]["fd"] for r in records if r["features"] == name]
            values = [value for value, _, _ in own]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3g}{spread} [{own[0][1]:.3g}, {own[0][2]:.3g}]")
        lines.append(f"| {kind} | {strength} | " + " | ".join(cells) + " |")
    for name in names:
        for record in (r for r in records if r["features"] == name):
            lines.append(f"{name}, seed {record['seed']}: {verdict(record)}")
    return "\n".join(lines)


def verdict(record: dict) -> str:
    """By kind of damage, whether the distance grows with it, and whether it is seen at all."""
    clean = record["scores"][0]["fd"]
    found = []
    for kind in [*DAMAGES, "fewer classes"]:
        own = [s["fd"] for s in record["scores"] if s["kind"] == kind]
        values = [clean[0], *(value for value, _, _ in own)]
        grows = all(a < b for a, b in itertools.pairwise(values))
        seen = sum(low > clean[2] for _, low, _ in own)
        found.append(f"{kind} {'grows' if grows else 'DOES NOT GROW'}, {seen} of {len(own)} seen")
    accuracy = f"; accuracy {record['accuracy']:.1%}" if "accuracy" in record else ""
    return "; ".join(found) + f"; {record['cpu_ms_per_image']:.1f} CPU ms per image{accuracy}"


if __name__ == "__main__":
    main()
