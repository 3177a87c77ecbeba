"""Sets of latents: what is in them, resuming, damage, reading, batches."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sd
from latent_cases import (
    ENCODER,
    OPTIONS,
    ROWS,
    SIDE,
    TOKENIZER,
    encode,
    files,
    folder,
    make,
    pipeline,
    source,
    states,
    with_text_encoder,
)
from pictures import picture, save, truncate
from test_captions import coco, png, tar

from ddistill import data
from ddistill.commands.dispatch import run
from ddistill.data.batches import batch_indices
from ddistill.data.facts import FACTS, DataFacts
from ddistill.data.latents.posterior import draw_latents, to_decoder
from ddistill.data.latents.reader import check_encoder, stored_rows
from ddistill.data.latents.records import read_record
from ddistill.data.latents.shards import Rows, open_shard
from ddistill.data.latents.writer import make_set
from ddistill.data.summary import summary
from ddistill.errors import ConfigError, DataError
from ddistill.interop.stable_diffusion import read_stable_diffusion


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    return folder(tmp_path / "pictures")


def load(path, split="train", **changes):
    return data.load({"name": "latents", "path": str(path), **changes}, split)


def everything(dataset):
    """All rows of a set: images, tokens, classes and captions."""
    images = np.asarray(dataset.take(range(len(dataset))))
    return images, dataset.tokens, dataset.labels, list(dataset.texts["caption"])


def assert_same(one, two):
    for a, b in zip(everything(one), everything(two)):
        np.testing.assert_array_equal(a, b)


def refused(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# ------------------------------------------------------------------------------- what is in a set


def test_rows_are_what_the_pipeline_makes_of_images_and_captions(pictures, tmp_path):
    lines = []
    record = make(pictures, tmp_path / "set", say=lines.append)
    assert [line.split(" in ")[0] for line in lines] == [
        "train 1/3: 3 rows", "train 2/3: 3 rows", "train 3/3: 1 rows", "no problems",
    ]  # fmt: skip
    found = load(tmp_path / "set")
    moments = encode(np.stack([picture(i, SIDE) for i in range(ROWS)])).astype(np.float16)
    captions = [f"picture number {i}" for i in range(ROWS)]
    for got, expected in zip(
        everything(found), (moments, TOKENIZER(captions), np.zeros(ROWS), captions)
    ):
        np.testing.assert_array_equal(got, expected)
    assert found.images.dtype == np.float16
    assert (found.image_shape, found.encoder, found.hflip) == ((4, 4, 3), ENCODER, False)
    assert found.texts["caption"][-2:] == captions[-2:]
    null = open_shard(tmp_path / "set" / "null.safetensors").arrays["tokens"]
    np.testing.assert_array_equal(null[0], TOKENIZER.facts.null)
    assert null.dtype == np.uint16
    assert [s.rows for s in record.splits["train"]] == [3, 3, 1]
    assert read_record(tmp_path / "set") == record
    assert (tmp_path / "set" / "problems.txt").read_text() == ""


def test_safetensors_reads_the_shards(pictures, tmp_path):
    from safetensors.numpy import load_file

    make(pictures, tmp_path / "set", with_text_encoder())
    path = tmp_path / "set" / "train-00000-of-00003.safetensors"
    known, own = load_file(path), open_shard(path).arrays
    assert known.keys() == own.keys() == {
        "moments", "tokens", "labels", "caption", "caption_offsets", "pooled",
    }  # fmt: skip
    for name, array in known.items():
        np.testing.assert_array_equal(own[name], array)
        assert not own[name].flags.writeable


def test_values_depend_neither_on_batches_nor_on_threads_nor_on_shards(pictures, tmp_path):
    changes = [
        {},
        {"batch_size": 5, "workers": 1},
        {"shard_mb": 1.0},
        {"shard_mb": 1e-6, "batch_size": 64},
    ]
    for kind, count in (({}, 4), ({"sampled": True, "seed": 3}, 2)):
        found = []
        for i, change in enumerate(changes[:count]):
            out = tmp_path / f"{len(kind)}-{i}"
            make(pictures, out, with_text_encoder(), **change, **kind)
            found.append(load(out))
        for other in found[1:]:
            assert_same(found[0], other)
    shards = [len(list((tmp_path / f"0-{i}").glob("train*"))) for i in range(4)]
    assert shards == [3, 3, 1, 7]
    same = [files(tmp_path / f"0-{i}") for i in (0, 1)]
    named = [{**f, "dataset.json": f["dataset.json"].replace(b"0-1", b"0-0")} for f in same]
    # The name of the set is that of its folder, and part of what shards say of their set.
    for name in named[0]:
        if name.startswith("train"):
            arrays = [open_shard(tmp_path / f"0-{i}" / name).content for i in (0, 1)]
            assert arrays[0] == arrays[1]


def test_folder_annotations_and_archive_make_the_same_set(pictures, tmp_path):
    names = [str(i) for i in range(ROWS)]
    captions = [f"picture number {i}" for i in range(ROWS)]
    annotations = coco(
        tmp_path / "captions.json",
        names,
        [{"image_id": 7 + i, "caption": text} for i, text in enumerate(captions)],
    )
    members = [
        (f"{n}{end}", content)
        for n, text in zip(names, captions)
        for end, content in (
            (".png", (pictures / f"{n}.png").read_bytes()),
            (".txt", text.encode()),
        )
    ]
    archive = tar(tmp_path / "0.tar", members)
    for i, place in enumerate((pictures, f"coco:{annotations}:{pictures}", archive)):
        make(place, tmp_path / str(i))
    for other in ("1", "2"):
        assert_same(load(tmp_path / "0"), load(tmp_path / other))
        assert load(tmp_path / "0").identity == load(tmp_path / other).identity


def test_states_flips_pixels_and_splits(pictures, tmp_path):
    made = {"flip": True, "states": True, "pixels": "all", "test_fraction": 0.4}
    make(pictures, tmp_path / "set", with_text_encoder(), **made)
    train, test = load(tmp_path / "set", flip=False), load(tmp_path / "set", "test", flip=False)
    assert len(train) + len(test) == ROWS
    assert data.count({"name": "latents", "path": str(tmp_path / "set")}, "test") == len(test)
    numbers = [int(text.split()[-1]) for text in test.texts["caption"]]
    own = np.stack([picture(i, SIDE) for i in numbers])
    np.testing.assert_array_equal(test.pictures[np.arange(len(test))], own)
    for name, expected in zip(("states", "pooled"), states(test.tokens)):
        stored = stored_rows(tmp_path / "set", "test", name)
        np.testing.assert_array_equal(stored.all(), expected.astype(np.float16))
    with pytest.raises(DataError, match=r"no array 'pool' for 'test'. Did you mean 'pooled'\?"):
        stored_rows(tmp_path / "set", "test", "pool")
    both = load(tmp_path / "set", "test")
    assert len(both) == 2 * len(test)
    mirrored = encode(own[:, :, ::-1]).astype(np.float16)
    np.testing.assert_array_equal(both.take(range(len(test), 2 * len(test))), mirrored)
    np.testing.assert_array_equal(both.tokens, np.tile(test.tokens, (2, 1)))
    assert list(both.texts["caption"]) == 2 * list(test.texts["caption"])
    assert (both.hflip, both.pictures) == (False, None)
    assert both.identity != test.identity
    assert "mirrored  yes: mirrored images are rows of their own" in "\n".join(summary(both))
    assert "mirrored  no: data.flip=False" in "\n".join(summary(test))


def test_by_default_the_test_images_are_kept(pictures, tmp_path):
    make(pictures, tmp_path / "set", test_fraction=0.4)
    assert load(tmp_path / "set").pictures is None
    assert load(tmp_path / "set", "test").pictures.shape[1:] == (SIDE, SIDE, 3)


def test_classes_of_folders_stay(tmp_path):
    for i in range(4):
        save(tmp_path / "set" / "xy"[i % 2] / f"{i}.png", picture(i, SIDE))
    parts = source(tmp_path / "set", template="picture {}").parts(0.0)
    make_set(parts, pipeline(), tmp_path / "out", OPTIONS)
    found = load(tmp_path / "out")
    assert (found.class_names, found.labels.tolist()) == (("x", "y"), [0, 0, 1, 1])
    other = dataclasses.replace(parts["train"], class_names=("x", "z"))
    with pytest.raises(ConfigError, match="Both need the same ones"):
        make_set({**parts, "test": other}, pipeline(), tmp_path / "no", OPTIONS)


def test_prompts_alone(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("picture 1\npicture 2\n")
    make(prompts, tmp_path / "set")
    found = load(tmp_path / "set")
    assert (len(found), found.image_shape, found.has_images) == (2, (4, 4, 3), False)
    np.testing.assert_array_equal(found.tokens, TOKENIZER(["picture 1", "picture 2"]))
    with pytest.raises(DataError, match="has prompts and no images"):
        found.take([0])
    facts = DataFacts.of(found)
    assert not facts.has_images
    assert DataFacts.from_json(facts.to_json()) == facts
    assert "2 prompts for latents of 4x4x3 by means" in "\n".join(summary(found))


# -------------------------------------------------------------------------------------- bad images


def test_images_that_cannot_be_read_are_named_and_counted(pictures, tmp_path):
    truncate(pictures / "1.png")
    (pictures / "5.png").write_bytes(b"no image")
    lines = []
    record = make(pictures, tmp_path / "set", say=lines.append)
    found = load(tmp_path / "set")
    assert [text[-1] for text in found.texts["caption"]] == ["0", "2", "3", "4", "6"]
    moments = encode(np.stack([picture(i, SIDE) for i in (0, 2, 3, 4, 6)])).astype(np.float16)
    np.testing.assert_array_equal(found.images, moments)
    assert record.problems == {"unreadable image": 2}
    assert lines[-1].startswith("2 x unreadable image; ")
    assert [line.partition(":")[0] for line in lines if "cannot be read" in line] == [
        "1.png",
        "5.png",
    ]
    written = (tmp_path / "set" / "problems.txt").read_text().splitlines()
    assert [line.partition(": cannot be read: ")[0] for line in written] == ["1.png", "5.png"]
    assert all(line.endswith("(left out)") for line in written)
    assert "2 x unreadable image" in "\n".join(summary(found))
    # A second call takes shards, and the problems of their images, as they are; also elsewhere.
    before = files(tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / "moved")
    make(pictures, tmp_path / "moved")
    assert files(tmp_path / "moved") == before


def test_shards_without_a_readable_image(pictures, tmp_path):
    for i in (3, 4, 5):
        truncate(pictures / f"{i}.png")
    changes = {"flip": True, "pixels": "all"}
    record = make(pictures, tmp_path / "set", with_text_encoder(), shard_mb=0.0042, **changes)
    assert [s.rows for s in record.splits["train"]] == [3, 0, 1]
    found = load(tmp_path / "set", flip=False)
    assert [text[-1] for text in found.texts["caption"]] == ["0", "1", "2", "6"]
    for i in range(ROWS):
        (pictures / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"No image of the split 'train' .* 0\.png: cannot be read"):
        make(pictures, tmp_path / "none")


# ------------------------------------------------------------------------ stopping and going on


def test_a_stopped_writer_goes_on_where_it_was(pictures, tmp_path):
    make(pictures, tmp_path / "whole" / "set")
    calls = 0

    def failing(images):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(images)

    out = tmp_path / "other" / "set"
    with pytest.raises(KeyboardInterrupt):
        make(pictures, out, pipeline(encode=failing))
    assert [path.name for path in sorted(out.glob("train*"))] == [
        "train-00000-of-00003.safetensors"
    ]
    with pytest.raises(DataError, match="is not finished. Run the command that made it again"):
        load(out)
    before = (out / "train-00000-of-00003.safetensors").stat().st_mtime_ns
    calls = 10
    make(pictures, out, pipeline(encode=failing))
    assert calls == 13  # three batches of the four other rows
    assert (out / "train-00000-of-00003.safetensors").stat().st_mtime_ns == before
    assert files(out) == files(tmp_path / "whole" / "set")


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import latent_cases as cases
def slow(images):
    time.sleep(0.05)
    return cases.encode(images)
from pathlib import Path
cases.make(Path({root!r}), Path({out!r}), cases.pipeline(encode=slow), print, shard_mb=1e-6)
"""


def test_kill_9_loses_the_shard_that_was_being_made(tmp_path):
    root, out = folder(tmp_path / "pictures", 40), tmp_path / "a" / "set"
    tests = Path(__file__).parent
    code = SLOW.format(tests=str(tests), root=str(root), out=str(out))
    env = {**os.environ, "PYTHONPATH": str(tests.parent)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    for _ in range(5):
        assert "1 rows" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    there = files(out)
    assert 5 <= len([name for name in there if name.startswith("train")]) < 40
    assert json.loads(there["dataset.json"])["splits"] is None
    make(root, out, shard_mb=1e-6)
    make(root, tmp_path / "b" / "set", shard_mb=1e-6)
    resumed, whole = files(out), files(tmp_path / "b" / "set")
    assert {n: c for n, c in resumed.items() if not n.endswith(".tmp")} == whole
    assert all(resumed[name] == content for name, content in there.items() if "train" in name)


def change(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (truncate, "is cut off: it has"),
        (change, "has changed since it was written"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"x" * 99), "is no safetensors file"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_shards_are_named_and_made_again(pictures, tmp_path, damage, reason):
    out = tmp_path / "set"
    make(pictures, out)
    before = files(out)
    name = "train-00001-of-00003.safetensors"
    assert len(load(out)) == ROWS
    damage(out / name)
    with pytest.raises(DataError) as error:
        load(out)
    refused(error, name, reason, "with the same arguments makes this shard again")
    calls = []
    counted = pipeline(encode=lambda images: calls.append(1) or encode(images))
    make(pictures, out, counted)
    assert len(calls) == 2  # batches of two of three rows
    assert files(out) == before
    assert len(load(out)) == ROWS


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ("dataset.json: not valid JSON", "is no set of latents")),
        ('{"version": 1}', ("key 'spec' is missing",)),
    ],
)
def test_damaged_records_are_named(pictures, tmp_path, text, parts):
    make(pictures, tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_text(text)
    with pytest.raises(DataError) as error:
        load(tmp_path / "set")
    refused(error, *parts)


def test_records_of_other_versions_and_shards_are_refused(pictures, tmp_path):
    make(pictures, tmp_path / "set")
    path = tmp_path / "set" / "dataset.json"
    whole = json.loads(path.read_text())
    for changes, part in (
        ({"version": 2}, "key 'version' is 2"),
        ({"splits": {"train": []}}, "key 'splits' is"),
        ({"splits": {"test": whole["splits"]["train"]}}, "other splits than 'spec'"),
        ({"splits": {"train": whole["splits"]["train"][:2]}}, "names other shards of 'train'"),
    ):
        path.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(DataError) as error:
            load(tmp_path / "set")
        refused(error, part)


def test_a_set_of_other_settings_is_kept(pictures, tmp_path):
    out = tmp_path / "set"
    make(pictures, out)
    before = files(out)
    other = dataclasses.replace(ENCODER, digest="f" * 64)
    for change, part in (
        (lambda: make(pictures, out, pipeline(encoder=other)), "encoder.digest is"),
        (lambda: make(pictures, out, image_size=32), "image_size is 16 there and 32 now"),
        (lambda: make(pictures, out, flip=True), "flip is false there and true now"),
    ):
        with pytest.raises(ConfigError) as error:
            change()
        refused(error, "holds a set of other settings", part, "Choose another folder")
    (pictures / "0.txt").write_text("picture number 9")
    with pytest.raises(ConfigError, match="sources.train.digest is"):
        make(pictures, out)
    assert files(out) == before
    (out / "dataset.json").unlink()
    with pytest.raises(ConfigError, match="has train-00000-of-00003.safetensors and no dataset"):
        make(pictures, out)


# --------------------------------------------------------------------------- options and pipelines


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"image_size": 18}, "needs a multiple of 4 pixels"),
        ({"image_size": 0}, "needs a multiple of 4 pixels"),
        ({"pixels": "tset"}, "Did you mean 'test'?"),
        ({"batch_size": 0}, "batch_size=0 cannot be"),
        ({"shard_mb": -1.0}, "shard_mb=-1.0 cannot be"),
        ({"states": True}, "needs a pipeline with a text encoder"),
        ({"seed": -1}, "seed=-1 cannot be"),
    ],
)
def test_options_that_cannot_be(pictures, tmp_path, changes, part):
    with pytest.raises(ConfigError) as error:
        make(pictures, tmp_path / "set", **changes)
    refused(error, part)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"encode": lambda x: encode(x)[..., :3]}, "gives (2, 4, 4, 3) for 2 images of 16 pixels"),
        (
            {"encode": lambda x: encode(x) * 1e6},
            "values for '0.png' that are not finite in 16 bits",
        ),
        ({"encode": lambda x: encode(x) * np.nan}, "Compute the encoder in float32"),
        ({"tokenize": lambda texts: TOKENIZER(texts)[:, :4]}, "gives int32 (1, 4) for 1 texts"),
        ({"tokenize": lambda texts: TOKENIZER(texts) + 9}, "and its vocabulary has 525"),
    ],
)
def test_pipelines_that_break_their_facts(pictures, tmp_path, changes, part):
    with pytest.raises(DataError) as error:
        make(pictures, tmp_path / "set", pipeline(**changes))
    refused(error, part)


# ----------------------------------------------------------------------------------------- reading


def test_batches_are_the_same_from_memory_and_from_files(pictures, tmp_path):
    make(pictures, tmp_path / "set")
    memory, mapped = load(tmp_path / "set"), load(tmp_path / "set", in_memory_limit_mb=0.0)
    assert isinstance(memory.images, np.ndarray)
    assert isinstance(mapped.images, Rows)
    assert memory.identity == mapped.identity
    batches = []
    for dataset in (memory, mapped, load(tmp_path / "set")):
        for step in (0, 5, 2):
            rows = batch_indices(11, step, 4, len(dataset))
            batches.append((dataset.take(rows), dataset.take_conditions(rows).ids))
    for k in range(3):
        for other in (batches[k + 3], batches[k + 6]):
            for a, b in zip(batches[k], other):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(IndexError):
        mapped.take([ROWS])
    np.testing.assert_array_equal(mapped.take([-1, 0]), memory.take([-1, 0]))


def test_draws_have_the_stored_moments_and_the_scaling_of_the_encoder():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 1, 2, 2, 3)).astype(np.float32)
    stored = jnp.concatenate([mean, log_variance], axis=-1).astype(jnp.float16)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = draw_latents(keys, jnp.broadcast_to(stored, (4000, 2, 2, 6)), ENCODER)
    assert found.dtype == jnp.float32
    back = np.asarray(to_decoder(found, ENCODER))
    np.testing.assert_allclose(back.mean(axis=0), mean[0], atol=0.12)
    np.testing.assert_allclose(back.std(axis=0), np.exp(log_variance[0] / 2), rtol=0.05)
    np.testing.assert_allclose(found, (back - 0.25) * 0.5, atol=1e-6)
    # A row alone has the draw that it has in a batch; another key gives another one.
    alone = draw_latents(keys[7:8], stored, ENCODER)
    np.testing.assert_allclose(alone[0], found[7], rtol=1e-6)
    assert not np.allclose(found[7], found[8])
    latents = dataclasses.replace(ENCODER, kind="latents")
    plain = draw_latents(keys[:1], jnp.asarray(mean), latents)
    np.testing.assert_allclose(plain, (mean - 0.25) * 0.5, rtol=1e-6)
    # Variances beyond the range of the autoencoders are clipped.
    wide = jnp.concatenate([jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 60000.0)], axis=-1)
    assert np.isfinite(np.asarray(draw_latents(keys[:1], wide, ENCODER))).all()


def test_sampled_latents_are_draws_of_the_moments(pictures, tmp_path):
    for seed in (0, 1):
        make(pictures, tmp_path / str(seed), sampled=True, seed=seed, flip=True)
    found = [np.float32(load(tmp_path / str(seed), flip=False).images) for seed in (0, 1)]
    moments = encode(np.stack([picture(i, SIDE) for i in range(ROWS)]))
    mean, deviation = moments[..., :3], np.exp(moments[..., 3:] / 2)
    for images in found:
        noise = (images - mean) / deviation
        assert abs(noise.mean()) < 0.2
        assert abs(noise.std() - 1) < 0.15
    assert not np.allclose(found[0], found[1])
    assert load(tmp_path / "0").encoder == dataclasses.replace(ENCODER, kind="latents")
    # Mirrored rows have draws of their own.
    both = np.float32(load(tmp_path / "0").images)
    own = (both[:ROWS] - mean) / deviation
    mirrored = encode(np.stack([picture(i, SIDE)[:, ::-1] for i in range(ROWS)]))
    other = (both[ROWS:] - mirrored[..., :3]) / np.exp(mirrored[..., 3:] / 2)
    assert not np.allclose(own, other, atol=0.05)


def test_facts_summary_and_description(pictures, tmp_path):
    make(pictures, tmp_path / "set", test_fraction=0.4)
    found = load(tmp_path / "set")
    facts = DataFacts.of(found)
    assert (facts.image_shape, facts.encoder, facts.tokenizer) == (
        (4, 4, 3), ENCODER, TOKENIZER.facts,
    )  # fmt: skip
    written = json.loads(json.dumps(facts.to_json()))
    assert FACTS.problem(written) == ""
    assert DataFacts.from_json(written) == facts
    four = {**written, "image_shape": [4, 4, 4]}
    assert FACTS.problem(four) == ""
    del four["encoder"]
    assert "4 channels, and 1 or 3 are needed" in FACTS.problem(four)
    assert "key 'tokenizer'" in FACTS.problem({**written, "tokenizer": {"name": "x"}})
    text = "\n".join(summary(found))
    assert f"{len(found)} moments of 4x4x3 by means" in text
    assert "6 tokens each, by the tokenizer byte pairs" in text
    line = data.describe({"name": "latents", "path": str(tmp_path / "set")})
    assert f"{len(found)} train rows (txt), {ROWS - len(found)} test rows (txt)" in line
    assert "moments of 4x4x3 by means eeeeeeeeeeeeeeee, 6 tokens by byte pairs" in line


def test_sets_that_cannot_be_read_say_why(pictures, tmp_path):
    make(pictures, tmp_path / "set")
    for changes, split, error, part in (
        ({"path": ""}, "train", ConfigError, "data.path is missing"),
        ({"path": str(pictures)}, "train", DataError, "is no set of latents"),
        ({"path": str(tmp_path / "none")}, "train", DataError, "is no set of latents"),
        ({"flip": True}, "train", ConfigError, "the set has no mirrored images"),
        ({}, "test", DataError, "has no split 'test'. Make the set with --test-fraction"),
    ):
        with pytest.raises(error) as caught:
            data.load({"name": "latents", "path": str(tmp_path / "set"), **changes}, split)
        refused(caught, part)


def test_latents_of_another_encoder_are_refused(pictures, tmp_path):
    make(pictures, tmp_path / "set")
    found = load(tmp_path / "set")
    check_encoder(found, "e" * 64, "the teacher")
    with pytest.raises(ConfigError) as error:
        check_encoder(found, "f" * 64, "the teacher")
    refused(error, "encoder means eeeeeeeeeeeeeeee, and the teacher has the encoder ffff")


# ------------------------------------------------------------------------------------- the command


def test_the_command_makes_a_set_that_can_be_read(pictures, tmp_path, capsys):
    out = tmp_path / "set"
    words = ["data", "latents", str(pictures), str(out), "--pipeline=pixels", "--image-size=16"]
    assert run([*words, "--test-fraction=0.3"]) == 0
    said = capsys.readouterr().out
    assert f"Use it with data.name='latents', data.path='{out}'." in said
    found = load(out)
    assert (found.encoder.kind, found.image_shape) == ("latents", (16, 16, 3))
    number = int(found.texts["caption"][0].split()[-1])
    grey = (np.float32(found.images[0]) + 1) * 127.5
    np.testing.assert_array_equal(np.round(grey), picture(number, SIDE))
    vocabulary = {i: token for token, i in json.loads((out / "vocab.json").read_text()).items()}
    named = "".join(vocabulary[i] for i in found.tokens[0])
    shown = found.texts["caption"][0].replace(" ", "</w>")
    assert named == f"<|startoftext|>{shown}</w>" + "<|endoftext|>" * 28
    # Prompts by the same tokenizer.
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("picture unheard\n")
    same = ["data", "latents", str(prompts), str(tmp_path / "p"), "--image-size=16"]
    assert run([*same, f"--pipeline=pixels:{out}/merges.txt"]) == 0
    assert load(tmp_path / "p").tokenizer == found.tokenizer


def test_the_command_encodes_with_the_pipeline_of_a_teacher(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    teacher = tiny_sd.write_folder(tmp_path / "teacher")
    root, out = folder(tmp_path / "pictures", rows=3), tmp_path / "set"
    words = ["data", "latents", str(root), str(out), f"--pipeline=diffusers:{teacher}"]
    assert run([*words, "--image-size=16", "--batch-size=2"]) == 0
    capsys.readouterr()
    model, found = read_stable_diffusion(teacher), load(out)
    ids = model.tokens(list(found.texts["caption"]))
    np.testing.assert_array_equal(found.tokens, ids)
    pooled = stored_rows(out, "train", "pooled")[np.arange(3)]
    np.testing.assert_allclose(pooled, model.encode_text(ids).pooled, atol=2e-3)
    images = np.stack([picture(int(c.split()[-1]), SIDE) for c in found.texts["caption"]])
    moments = model.moments(images / np.float32(127.5) - 1)
    assert found.image_shape == (8, 8, 4)
    np.testing.assert_allclose(np.float32(found.images), moments, rtol=2e-3, atol=2e-3)
    assert (found.encoder.digest, found.encoder.scaling) == (model.vae.digest, 0.25)
    assert found.tokenizer.null == tuple(model.tokens([""])[0])


def test_the_command_reads_the_embedded_digits(tmp_path, capsys):
    words = ["data", "latents", "digits:train", str(tmp_path / "set"), "--test=digits:test"]
    assert run([*words, "--pipeline=pixels", "--image-size=8", "--batch-size=512"]) == 0
    capsys.readouterr()
    for split in ("train", "test"):
        found, known = load(tmp_path / "set", split), data.load({"name": "text_digits"}, split)
        assert list(found.texts["caption"]) == list(known.texts["caption"])
        np.testing.assert_array_equal(found.labels, known.labels)
        np.testing.assert_allclose(
            np.float32(found.images).mean(axis=-1), known.images[..., 0], atol=0.006
        )
    assert found.class_names[3] == "three"


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--pipeline=pixel"], "Did you mean 'pixels'?"),
        (["--pipeline=diffusers"], "needs the folder of a pipeline: diffusers:FOLDER"),
        (["--pipeline=pixels", "--template=a"], "it needs {} once"),
        (["--pipeline=pixels", "--test=x", "--test-fraction=0.1"], "exclude each other"),
        (["--pipeline=pixels", "--test-fraction=1"], "data.test_fraction=1.0 cannot be"),
        (["--pipeline=pixels:nowhere.txt"], "nowhere.txt cannot be read"),
        (["--pipeline=pixels:{}/0.txt"], "0.txt is no file of merges: line 1 is not a pair"),
    ],
)
def test_the_command_ends_with_one_line(pictures, tmp_path, flags, part):
    words = ["data", "latents", str(pictures), str(tmp_path / "set"), "--image-size=16"]
    with pytest.raises(SystemExit) as end:
        run([*words, *(flag.replace("{}/", f"{pictures}/") for flag in flags)])
    text = str(end.value)
    assert text.startswith("error: ")
    assert "\n" not in text
    assert part in text
    assert not (tmp_path / "set").exists()


def test_archives_are_read_where_an_image_is_truncated(tmp_path):
    half = png(1)[: len(png(1)) // 2]
    path = tar(
        tmp_path / "0.tar", [("0.png", png(0)), ("0.txt", b"x"), ("1.png", half), ("1.txt", b"y")]
    )
    record = make(path, tmp_path / "set")
    assert record.problems == {"unreadable image": 1}
    assert list(load(tmp_path / "set").texts["caption"]) == ["x"]
