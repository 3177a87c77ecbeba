"""Captions and latents through planning, training and sampling."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import texted
from clip_cases import write_clip
from finished import plain
from inception_cases import pictures
from PIL import Image
from runs import Notes, plans_of
from scored import frechet_of, project, save_folder, tiny_detector

import ddistill
from ddistill import data, networks
from ddistill.commands.pack import pack
from ddistill.conditions import TextCondition, Tokens, null_like, replace_where
from ddistill.data.facts import DataFacts
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.evaluation import previews, prompted
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.evaluate_run import evaluate_run
from ddistill.evaluation.figures.tables import stat_text
from ddistill.evaluation.interpolation import INNER, collect_paths
from ddistill.evaluation.metrics.clip_score import clip_detector, text_embeddings
from ddistill.evaluation.metrics.features import extract
from ddistill.evaluation.metrics.geometry import Geometry
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.protocol_sets import fitted
from ddistill.evaluation.metrics.protocols import PROTOCOLS
from ddistill.evaluation.prompts import caption_rows, texts_of
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.sampling import Samples, noise_bank, picture_source
from ddistill.interop.clip import find_clip, load_clip
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.networks.text_encoding import TextEncoder, encode_texts
from ddistill.networks.weights import Weights
from ddistill.objectives import Denoising
from ddistill.partitions import EmbeddingPartition, PowerDiagram
from ddistill.planning.planner import plan_stages
from ddistill.protocol_settings import ProtocolSettings
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest
from ddistill.samplers import get_sampler
from ddistill.schedules import cosine
from ddistill.settings import GridSettings, StageSettings, StudentsSettings
from ddistill.students import RoutedDenoiser
from ddistill.training.initial import initial_state
from ddistill.training.pairs import PairMaker, caption_of_pair, make_pairs, read_pairs
from ddistill.training.step_inputs import StepSettings, make_batch
from ddistill.training.trained import guided, read_tokenizer
from ddistill.wrapped_denoiser import GuidedDenoiser

pytest.importorskip("tokenizers")


@dataclasses.dataclass
class Distilled:
    """A finished run of a pipeline and its student."""

    folder: object
    teacher: object
    set: object
    model: object
    settings: object


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    teacher = texted.teacher(root)
    model = read_stable_diffusion(teacher)
    path = texted.latent_set(root, f"diffusers:{teacher}", 8)
    settings = texted.distilled(teacher, path, model)
    return Distilled(root / "run", teacher, path, model, settings)


@pytest.fixture(scope="module")
def run(made):
    return ddistill.train(plain(made.settings), workdir=made.folder, quiet=True)


def refused(settings, folder, *parts):
    with pytest.raises(ConfigError) as caught:
        plans_of(settings, folder)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# ------------------------------------------------------------------------------ trees of conditions


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    states = jnp.asarray(rng.normal(size=(count, 3, 2)), jnp.float32)
    return TextCondition(states, states.mean(axis=1))


class Means(networks.NETWORKS["text_unet"]):
    """The mean of the text's states in every place."""

    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        return jnp.zeros_like(x) + cond.states.mean(axis=(1, 2))[:, None, None, None]


def test_guidance_extrapolates_from_the_null_text():
    cond, null = texts(4), texts(1, seed=1)
    denoiser = Denoiser({}, lambda params, *given, **mode: Means().apply({}, *given), "x0")
    found = GuidedDenoiser(denoiser, 3.0, null)(jnp.ones((4, 2, 2, 1)), cosine(8).at(4), cond).x0
    own, empty = cond.states.mean(axis=(1, 2)), null.states.mean()
    np.testing.assert_allclose(found[:, 0, 0, 0], empty + 3.0 * (own - empty), rtol=1e-5)


def test_dropped_texts_are_the_null_text_and_others_stay():
    cond, null = texts(3), texts(1, seed=1)
    found = replace_where(jnp.array([True, False, True]), cond, null)
    for ours, given, empty in zip(*map(jax.tree.leaves, (found, cond, null_like(cond, null)))):
        np.testing.assert_array_equal(ours, np.stack([empty[0], given[1], empty[2]]))
    classes = replace_where(jnp.array([True, False]), jnp.array([3, 4]), 10)
    np.testing.assert_array_equal(classes, [10, 4])
    assert classes.dtype == jnp.int32


def test_label_dropout_takes_the_batchs_null_text(made):
    batch = make_batch(*_given(made), jax.random.key(0))
    dropped = Denoising(label_dropout=1.0).condition(batch)
    null = data.load(made.settings.data, "train").tokenizer.null
    np.testing.assert_array_equal(dropped.ids, np.tile(null, (7, 1)))
    kept = Denoising(label_dropout=0.0).condition(batch)
    np.testing.assert_array_equal(kept.ids, data.load(made.settings.data, "train").tokens)


def _given(made):
    """Settings, images and conditions of a batch of the whole set."""
    found = data.load(made.settings.data, "train")
    s = StepSettings(
        Denoising(), {}, "eps", {}, encoder=found.encoder, null_tokens=found.tokenizer.null
    )
    return s, jnp.asarray(found.images), (jnp.asarray(found.labels), Tokens(found.tokens))


def test_latents_of_a_batch_are_drawn_from_their_moments_with_each_step_anew(made):
    s, images, given = _given(made)
    one, other = (make_batch(s, images, given, jax.random.key(i)).image for i in range(2))
    assert one.shape == (7, 4, 4, 4)
    assert not np.allclose(one, other)
    mean, log_variance = np.split(np.float32(images), 2, axis=-1)
    spread = np.exp(0.5 * np.clip(log_variance, -30, 20)) * s.encoder.scaling
    assert (np.abs(one - mean * s.encoder.scaling) < 6 * spread).all()


# ---------------------------------------------------------------------------------------- planning


def test_a_pipeline_is_a_stage_and_its_parts_are_in_the_identity(made, tmp_path):
    plans = plans_of(made.settings, tmp_path)
    teacher, student = plans["teacher"], plans["student"]
    assert teacher.settings.network["name"] == student.settings.network["name"] == "text_unet"
    assert made.model.digest in str(teacher.identity)
    assert teacher.imported.parts["vae"] == made.model.vae.digest
    assert student.text_stage is teacher
    assert student.tokenizer.null == tuple(made.model.tokens([""])[0])
    assert student.tables.classes is None
    assert student.settings.conditional


def test_data_of_other_networks_are_refused(made, tmp_path):
    settings = made.settings
    other = texted.latent_set(tmp_path, "pixels", 8)
    named = dataclasses.replace(settings, data={"name": "latents", "path": str(other)})
    refused(named, tmp_path / "r", "makes images of shape (4, 4, 4)")
    digits = dataclasses.replace(settings, data={"name": "digits"})
    refused(digits, tmp_path / "r", "makes images of shape (4, 4, 4)")
    clipped = dataclasses.replace(settings.evaluation, clip=1.0)
    refused(
        dataclasses.replace(settings, evaluation=clipped),
        tmp_path / "r",
        "config.evaluation.clip=1.0",
        "Set config.evaluation.clip=0.",
    )
    alone = texted.changed(settings, "teacher", source="", steps=1, network=made.model.unet.network)
    refused(alone, tmp_path / "r", "has no text encoder", "'captioned_unet'")
    classes = StudentsSettings(count=2, partition="classes")
    parted = texted.changed(settings, "student", students=classes)
    refused(parted, tmp_path / "r", "students.partition='classes'", "Use partition='texts'")


def test_a_stage_keeps_texts_as_its_losses_see_them(made, tmp_path):
    """States of the encoder where there is one, token ids for a network that learns its own."""
    replay = {"name": "o2mkd", "student_states": 0.5, "replay_batches": 1}
    settings = texted.changed(made.settings, "student", objective=replay)
    memory = plans_of(settings, tmp_path)["student"].objective.memory
    length = data.load(settings.data, "train").tokenizer.length
    assert memory["replay_states"].shape == (4, length, 16)
    assert memory["replay_pooled"].shape == (4, 16)
    assert "replay_class" not in memory


def pairs_plan(made, folder, **changes):
    teacher = made.settings.stages["teacher"]
    stage = dataclasses.replace(
        teacher,
        objective={"name": "pairs", "sampler": "ddim", "shard": 2},
        source="",
        teacher="teacher",
        grid=GridSettings(steps=2),
        ema=StageSettings.ema,
        **changes,
    )
    settings = dataclasses.replace(
        made.settings, stages={"teacher": teacher, "pairs": stage}, pipeline=("teacher", "pairs")
    )
    return settings, plans_of(settings, folder)["pairs"]


def test_pairs_of_a_teacher_that_divides_texts_are_of_its_students(made, run, tmp_path):
    _, plan = pairs_plan(made, tmp_path, steps=1)
    tokens, encoder = run.networks.tokenize(plan, ["a", "b", "c"]), run.networks.text_encoder(plan)
    whole, pooled = run.networks(run.plan("teacher")), encode_texts(encoder, tokens).pooled
    cells = PowerDiagram(pooled[:2], jnp.zeros(2))
    scales = (1.0, 0.5)
    stacked = dataclasses.replace(
        whole, params=jax.tree.map(lambda x: jnp.stack([x * s for s in scales]), whole.params)
    )
    teacher = RoutedDenoiser(stacked, EmbeddingPartition(2, cells=cells))
    make_pairs(plan, PairMaker(teacher, tokens, encoder), Reporter(), StopRequest())
    pairs = read_pairs(plan)
    owners, text = np.asarray(cells(pooled))[[0, 1, 2, 0]], encode_texts(encoder, pairs.text.ids)
    assert set(owners) == {0, 1}
    for k in (0, 1):
        images = get_sampler("ddim")(teacher.student(k), plan.levels, pairs.noise, cond=text)
        same = np.abs(images - pairs.image).max(axis=(1, 2, 3)) < 1e-3
        np.testing.assert_array_equal(same, owners == k)


def test_pairs_are_of_the_captions_in_turn(made, run, tmp_path):
    settings, plan = pairs_plan(made, tmp_path, steps=3, guidance=2.0)
    found, encoder = data.load(settings.data, "train"), run.networks.text_encoder(plan)
    network = guided(plan, run.networks(run.plan("teacher")), encoder)
    make_pairs(plan, PairMaker(network, found.tokens, encoder), Reporter(), StopRequest())
    pairs = read_pairs(plan)
    # Twelve pairs of seven captions.
    np.testing.assert_array_equal(pairs.text.ids, found.tokens[np.arange(12) % 7])
    words = [found.texts["caption"][i % 7] for i in range(12)]
    sampled = dataclasses.replace(run, stage="teacher")
    given = {"noise": pairs.noise[:4], "guidance": 2.0, "nfe": 4, "trajectory": True}
    states = sampled.sample(prompts=words[:4], **given).states
    np.testing.assert_allclose(pairs.image[:4], states[-1], atol=2e-4 * np.abs(states[-1]).max())
    # Fewer pairs than captions have some of all of them.
    np.testing.assert_array_equal(caption_of_pair(np.arange(3), 3, 9), [0, 3, 6])


@pytest.mark.parametrize(
    "part, words", [("encoder", "has the image encoder"), ("tokenizer", "has the tokenizer")]
)
def test_latents_and_captions_of_another_pipeline_are_refused(made, tmp_path, part, words):
    facts = DataFacts.of(data.load(made.settings.data, "train"))
    changed = dataclasses.replace(getattr(facts, part), digest="0" * 64)
    facts = dataclasses.replace(facts, **{part: changed})
    with pytest.raises(ConfigError, match=words) as caught:
        plan_stages(made.settings, facts, tmp_path, tmp_path / "shared")
    assert "ddistill data latents SOURCE SET --pipeline=diffusers:" in str(caught.value)


# ---------------------------------------------------------------------------------------- training


def test_a_student_of_a_guided_pipeline_learns_and_the_parts_stay_with_the_run(made, run):
    teacher = run.plan("teacher")
    assert run.plan("student").manifest().steps == 4
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        run.networks.weights(run.plan("student")).params,
        run.networks.weights(teacher).params,
    )
    assert max(jax.tree.leaves(moved)) > 0
    # Read again from the run's own folder, byte for byte.
    copied = teacher.folder / "pipeline"
    for file in ("vae/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt"):
        assert (copied / file).read_bytes() == (made.teacher / file).read_bytes()
    parts = run.networks.parts(run.plan("student"))
    ids = parts.tokenizer(["a small cat"])
    np.testing.assert_allclose(
        encode_texts(parts.text_encoder, ids).states, made.model.encode_text(ids).states, atol=1e-6
    )
    latents = np.random.default_rng(0).normal(size=(9, 4, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(parts.decoder(latents), made.model.decode(latents), atol=1e-5)


def test_prompts_become_pictures(made, run):
    words = ["a red cat", "a small dog", "a red cat"]
    found = run.sample(prompts=words, nfe=2, batch_size=2)
    assert (found.shape, found.dtype) == ((3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(run.sample(2, prompts=words, nfe=2, batch_size=2), found[:2])
    noise = np.repeat(np.random.default_rng(0).normal(size=(1, 4, 4, 4)), 3, axis=0)
    noise = noise.astype(np.float32)
    same = run.sample(prompts=words, noise=noise)
    np.testing.assert_array_equal(same[0], same[2])
    assert (same[0] != same[1]).any()
    states = run.sample(prompts=words, noise=noise, trajectory=True).states
    decoded = made.model.decode(states[-1])
    np.testing.assert_allclose(same, np.clip(decoded * 127.5 + 127.5, 0, 255), atol=1.0)


def test_a_guided_teacher_is_that_of_its_parts(made, run):
    """Sampling with guidance is DDIM with eps of the empty text + w (eps - eps of no text)."""
    teacher = dataclasses.replace(run, stage="teacher")
    noise = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    words, levels = ["a red cat", "a small dog"], teacher.sampler_run("teacher").levels
    found = teacher.sample(prompts=words, noise=noise, guidance=7.5, trajectory=True).states
    unet, params = made.model.unet.build(), made.model.unet.params
    cond, null = (made.model.encode_text(made.model.tokens(t)) for t in (words, ["", ""]))
    apply, z = jax.jit(unet.apply), noise * max(1.0, float(levels.sigma[-1]))
    for i in range(levels.num_steps, 0, -1):
        time = jnp.full(2, levels.time[i])
        own, empty = (apply({"params": params}, z, time, text) for text in (cond, null))
        eps = empty + 7.5 * (own - empty)
        x0 = (z - levels.sigma[i] * eps) / levels.alpha[i]
        z = levels.alpha[i - 1] * x0 + levels.sigma[i - 1] * eps
    scale = np.abs(z).max()
    np.testing.assert_allclose(found[-1] / scale, z / scale, atol=1e-4)


def test_a_packed_run_has_all_that_prompts_need(run, tmp_path):
    said = pack(run.folder, tmp_path / "packed")
    assert "2 stages" in said
    packed = ddistill.load(tmp_path / "packed")
    given = {"prompts": ["a red cat", "a small dog"], "nfe": 2}
    np.testing.assert_array_equal(packed.sample(**given), run.sample(**given))


def test_paths_between_noises_are_of_their_prompts(run):
    a, b = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    words = ["a red cat", "a small dog"]
    found = run.interpolate(a, b, 3, prompts=words)
    ends = run.sample(noise=np.stack([a, b]), prompts=["a red cat"])
    np.testing.assert_array_equal(found[[0, 2]], ends)
    other = run.interpolate(a, b, 3, prompts=words[0])
    np.testing.assert_array_equal(other[[0, 2]], ends)
    assert (found[1] != other[1]).any()


def test_inversion_follows_the_ode_from_the_latents_of_pictures(made, run):
    """As arXiv 2010.02502 section 5.4 says it, with the texts and the encoder of the pipeline."""
    sampled = run.sampler_run("student")
    levels, words = sampled.levels, ["a red cat", "a small dog"]
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = run.invert(pictures, nfe=2, prompts=words)
    cond = made.model.encode_text(made.model.tokens(words))
    variables = run.networks.weights(sampled.plan).variables()
    apply = jax.jit(sampled.plan.module.apply)
    z = made.model.encode(pictures.astype(np.float32) / 127.5 - 1)
    for i in range(levels.num_steps):
        here, there = levels.at(i), levels.at(i + 1)
        at = levels.at(max(i, 1))  # networks are not defined at the clean end
        eps = apply(variables, z, jnp.full(2, at.time), cond)
        x0 = (z - at.sigma * eps) / at.alpha
        if here.alpha > here.sigma:
            up = there.alpha / here.alpha
            z = up * z + (there.sigma - here.sigma * up) * eps
        else:
            up = there.sigma / here.sigma
            z = up * z + (there.alpha - here.alpha * up) * x0
    wanted = np.asarray(z) / max(1.0, float(levels.sigma[-1]))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_prompts_that_cannot_be(run):
    for given, part in [
        ({}, "give prompts=['a text', ...]"),
        ({"prompts": []}, "give prompts=['a text', ...]"),
        ({"prompts": ["a", 3]}, "give prompts=['a text', ...]"),
        ({"prompts": "a", "labels": 1}, "labels were given"),
        ({"prompts": "a", "guidance": -1.0}, "guidance=-1 must be 0 or above"),
    ]:
        with pytest.raises(ConfigError) as caught:
            run.sample(**given)
        assert part in str(caught.value)


def test_an_evaluation_samples_captions_and_keeps_pictures(made, run):
    found = data.load(made.settings.data, "train")
    key = run.sampler_run("student").key
    kept = np.load(run.folder / "samples" / f"{key}.npz")["images"]
    seed = made.settings.evaluation.noise_seed
    captions = [found.texts["caption"][i * 7 // 4] for i in range(4)]
    again = run.sample(prompts=captions, seed=seed, nfe=2, batch_size=4)
    np.testing.assert_allclose(again, np.clip(kept * 127.5 + 127.5, 0, 255), atol=1.0)
    report = (run.folder / "report.html").read_text()
    assert f"Texts of the columns: 1. {captions[0]}; 2. {captions[1]}" in report
    rows = json.loads((run.folder / "results.json").read_text())
    assert rows


def test_paths_of_an_evaluation_have_the_text_of_their_first_end(made, run):
    found = data.load(made.settings.data, "train")
    sampled = run.sampler_run("student")
    samples = Samples(np.load(run.folder / "samples" / f"{sampled.key}.npz")["images"], 1.0)
    assert (run.folder / "samples" / f"{sampled.key}.paths.npz").is_file()
    evaluation = Evaluation(
        run.settings, list(run.plans), found, run.networks, run.folder, Reporter(), StopRequest()
    )
    paths = collect_paths(sampled, samples, evaluation)
    assert paths.shape == (2, INNER + 2, 8, 8, 3)
    np.testing.assert_array_equal(paths[:, 0], samples.images[[0, 2]])
    bank = np.asarray(noise_bank(run.settings.evaluation, (4, 4, 4), 0, 4))
    captions = [found.texts["caption"][i * 7 // 4] for i in (0, 2)]
    last = run.sample(noise=bank[[1, 3]], prompts=captions)
    np.testing.assert_allclose(last, np.clip(paths[:, -1] * 127.5 + 127.5, 0, 255), atol=1.0)


def test_an_evaluation_under_a_protocol_scores_its_prompts(made, run, tmp_path, monkeypatch):
    texts, pixels = ("a red cat", "a small dog", "two"), pictures(5, 20)
    tiny = dataclasses.replace(
        PROTOCOLS["coco30k_dmd"],
        name="tiny",
        prompts=3,
        real=5,
        geometry=Geometry(16, True, "bicubic"),
    )
    monkeypatch.setitem(PROTOCOLS, "tiny", tiny)
    monkeypatch.setattr(prompted, "load_inception", lambda path: path)
    monkeypatch.setattr(prompted, "inception_detector", lambda *_, **__: tiny_detector())
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    protocol = ProtocolSettings(
        name="tiny",
        prompts=str(tmp_path / "prompts.txt"),
        real=str(save_folder(tmp_path / "real", pixels)),
        clip=str(write_clip(tmp_path / "clip")),
    )
    changes = {"interpolations": 0, "protocol": protocol}
    settings = dataclasses.replace(
        run.settings, evaluation=dataclasses.replace(run.settings.evaluation, **changes)
    )
    plans, notes = list(run.plans), Notes()
    prompted.check_protocol(settings, plans)
    found = data.load(made.settings.data, "train").as_pictures()
    evaluation = Evaluation(
        settings, plans, found, run.networks, tmp_path / "out", notes, StopRequest()
    )
    rows = evaluate_run(evaluation)
    scores = {(row.method, row.metric): row for row in rows}
    # The images are those that the run gives for the same prompts and noise.
    sampled, model = run.sampler_run("student"), load_clip(find_clip(protocol.clip))
    source = dataclasses.replace(
        picture_source(sampled, evaluation),
        texts=texts_of(sampled.plan, run.networks, run.networks.tokenize(sampled.plan, texts)),
    )
    images = quantise(source(range(4))[:3])
    again = run.sample(prompts=list(texts), seed=settings.evaluation.noise_seed, nfe=2)
    np.testing.assert_allclose(images.astype(int), again.astype(int), atol=1)
    fake, real = (fitted(x, tiny.geometry) for x in (images, pixels))
    distance = frechet_of(project(fake)[0], project(real)[0])
    assert scores["o2mkd", "fid_protocol"].value == pytest.approx(distance, rel=1e-6)
    detector = clip_detector(model, 4)
    seen = extract(detector.apply, fake, detector.batch, pixels=True)[0]
    cosines = (seen * text_embeddings(model, texts, "A photo depicts ")).sum(axis=1)
    own = scores["o2mkd", "clip_score"]
    assert own.value == pytest.approx(cosines.mean(), abs=1e-6)
    assert own.low < own.value < own.high
    assert ("ddim", "clip_score") in scores
    # All rows say it, and the report shows and explains it.
    parts = {Protocol.parse(row.protocol).prompted for row in rows}
    assert {p.clip_model for p in parts} == {f"clip-4-8@{model.sha256[:8]}"}
    assert {p.protocol for p in parts} == {"tiny"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Published protocol tiny" in page
    assert "Not drawn" not in page
    assert METRICS["clip_score"].meaning.split(" by the")[0] in page
    assert stat_text("clip_score", Stat(own.value, None, 1, own.low, own.high)).split()[0] in page
    assert any(text.startswith("tiny, ") and "CLIP score" in text for text in notes.said)
    # Features of samples and real images are kept.
    monkeypatch.setattr(prompted, "_features", None)
    (tmp_path / "out" / "results.json").unlink()
    assert [(r.metric, r.value) for r in evaluate_run(evaluation) if r.metric == "clip_score"] == [
        (r.metric, r.value) for r in rows if r.metric == "clip_score"
    ]
    notes.said.clear()
    evaluate_run(evaluation)
    assert "found on disk" in notes.said[-1]


def test_a_preview_shows_the_first_samples_of_the_evaluation(made, run, tmp_path, monkeypatch):
    drawn = []
    draw = previews.grid_image
    monkeypatch.setattr(previews, "grid_image", lambda grids: drawn.append(grids) or draw(grids))
    plan = run.plan("student")
    dataset = data.load(made.settings.data, "train")
    maker = previews.Previews(run.settings, tmp_path, run.networks, dataset)
    assert maker.obstacle(plan) == ""
    maker.make(plan, run.networks.weights(plan), 4)
    ((grid,),) = drawn
    (row,) = grid.rows
    kept = np.load(run.folder / "samples" / f"{run.sampler_run('student').key}.npz")["images"]
    np.testing.assert_allclose(row.images, kept[:3], atol=1e-4)
    shown = caption_rows(run.settings.evaluation, len(dataset))[:3]
    assert grid.texts == [dataset.texts["caption"][int(i)] for i in shown]
    assert "no captions" in previews.Previews(run.settings, tmp_path).obstacle(plan)


def test_scores_read_the_pictures_of_latents(made, tmp_path):
    found = data.load(made.settings.data, "train")
    pictures = found.as_pictures()
    number = int(found.texts["caption"][2].split()[-1])
    taken = pictures.take([2])
    assert (taken.shape, taken.dtype, pictures.image_shape) == ((1, 8, 8, 3), np.uint8, (8, 8, 3))
    with Image.open(made.set.parent / "pictures" / f"{number}.png") as image:
        np.testing.assert_array_equal(taken[0], image.resize((8, 8), Image.Resampling.LANCZOS))
    bare = dataclasses.replace(found, pictures=None)
    with pytest.raises(ConfigError, match="--pixels=all"):
        bare.as_pictures()
    assert pictures.as_pictures() is pictures


def test_a_network_learns_its_text_encoder(tmp_path):
    path = texted.latent_set(tmp_path, "pixels", 4)
    facts = data.load({"name": "latents", "path": str(path)}, "train").tokenizer
    settings = texted.joint(path, facts.vocabulary, facts.length)
    refused(
        texted.joint(path, facts.vocabulary - 1, facts.length),
        tmp_path / "r",
        f"have {facts.vocabulary} tokens and {facts.length} positions",
    )
    off = dataclasses.replace(settings.evaluation, enabled=False)
    often = dataclasses.replace(settings.training, preview_every=4)
    settings = dataclasses.replace(settings, evaluation=off, training=often)
    found = ddistill.train(plain(settings), workdir=tmp_path / "run", quiet=True)
    (plan,) = found.plans
    weights = found.networks.weights(plan)
    first = Weights(initial_state(plan).params["student"])
    before, after = (w.params["text_encoder"]["layer_0"]["fc1"]["kernel"] for w in (first, weights))
    assert np.abs(after - before).max() > 1e-4
    encoder = found.networks.text_encoder(plan)
    assert isinstance(encoder, TextEncoder)
    # As many as a preview has, which is then the same program.
    assert found.sample(prompts=["picture number 1", "other words", ""]).shape == (3, 4, 4, 3)
    assert read_tokenizer(plan).facts == facts
    # The preview of the last step is of the weights that are handed on, and so of their texts.
    shown = np.asarray(Image.open(tmp_path / "run" / "previews" / "teacher" / "0000004.png"))
    dataset = data.load(settings.data, "train")
    maker = previews.Previews(settings, tmp_path / "again", dataset=dataset)
    np.testing.assert_array_equal(maker.make(plan, weights, 4), shown)
    assert (maker.make(plan, first, 2) != shown).any()
    # Conditions that are encoded once are what the network reads itself.
    ids = np.array([facts.null, facts.null[::-1]], np.int32)
    z, time = jnp.ones((2, 4, 4, 3)), jnp.ones(2)
    apply = jax.jit(plan.module.apply)
    own = apply(weights.variables(), z, time, Tokens(ids))
    np.testing.assert_allclose(
        own, apply(weights.variables(), z, time, encode_texts(encoder, ids)), atol=1e-5
    )
