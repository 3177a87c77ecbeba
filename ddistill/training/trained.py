"""Networks of complete stages, read from disk."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ddistill.conditions import TextCondition
from ddistill.data.byte_pairs import BytePairTokenizer, parse_merges
from ddistill.errors import CheckpointError
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.pipeline_folders import TOKENIZER, VAE
from ddistill.interop.pipeline_parts import (
    FOLDER,
    Decoder,
    PipelineParts,
    read_decoder,
    read_parts,
)
from ddistill.interop.tokenizer import MERGES
from ddistill.networks.captioned_unet import TEXT, CaptionedUNet
from ddistill.networks.latent_encoding import LatentEncoder
from ddistill.networks.text_encoding import TextEncoder, encode_texts
from ddistill.networks.weights import Weights
from ddistill.objectives.parts import SCALING
from ddistill.planning.manifests import TrainedManifest
from ddistill.planning.plan import StagePlan, complete_manifest, incomplete
from ddistill.runtime.files import DamagedFile, read_text
from ddistill.runtime.sharding import Layout, to_host
from ddistill.students import route
from ddistill.text import one_line
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.initial import abstract_state, abstract_weights
from ddistill.training.state import TrainState
from ddistill.training.text_cells import fitted_partition
from ddistill.typing import Params
from ddistill.wrapped_denoiser import with_guidance


def guided(plan: StagePlan, teacher: Any, texts: TextEncoder | None = None) -> Any:
    """A stage's teacher with the classifier-free guidance of the stage's settings.

    Args:
      plan: the stage.
      teacher: its teacher.
      texts: the encoder of its captions; None for classes.
    """
    if plan.settings.guidance == 1.0:
        return teacher
    if texts is not None:
        return with_guidance(teacher, plan.settings.guidance, null_text(plan, texts))
    # The null class is the teacher's: its network may know fewer classes than the student's.
    network = getattr(teacher, "students", teacher)
    return with_guidance(teacher, plan.settings.guidance, network.apply_fn.module.num_classes)


def null_text(plan: StagePlan, texts: TextEncoder) -> TextCondition:
    """The condition of the empty text, of one example."""
    assert plan.tokenizer is not None
    return encode_texts(texts, np.array([plan.tokenizer.null], np.int32))


def load_weights(plan: StagePlan, rate: float | None = None, step: int | None = None) -> Weights:
    """The weights that a complete stage hands on, strictly loaded.

    Args:
      plan: the stage.
      rate: an EMA rate other than the first one, or 0 for the raw weights.
      step: of a checkpoint that the stage keeps, in place of the one that it hands on.

    Neither the state of optimisers nor other networks are read, apart from the base of a student
    of low rank.

    Raises:
      CheckpointError: as `load_state`, or there is no average of that rate.
    """
    found = _read_weights(plan, rate, step)
    if plan.base is None:
        return found
    return dataclasses.replace(found, base=load_weights(plan.base[0], step=plan.base[1]).params)


def _read_weights(plan: StagePlan, rate: float | None = None, step: int | None = None) -> Weights:
    """The same without a base."""
    key = plan.ema_key() if rate is None else (str(rate) if rate else None)
    rates = sorted(map(str, plan.settings.ema))
    if key is not None and key not in rates:
        raise CheckpointError(f"Stage '{plan.name}' keeps no EMA of rate {key}; it has {rates}.")
    shapes = abstract_weights(plan)
    field, name = ("params", "student") if key is None else ("ema", key)
    like = {field: {name: shapes.params}}
    if shapes.statistics is not None:
        like["statistics"] = {"student": shapes.statistics}
    with _checkpoints_of(plan) as (checkpoints, last):
        found = checkpoints.restore_part(like, last if step is None else step)
    if found is None:
        raise _no_checkpoint(plan, last) if step is None else _not_kept(plan, step)
    return Weights(found[field][name], found.get("statistics", {}).get("student"))


def load_state(plan: StagePlan) -> TrainState:
    """The state that a complete stage hands on, strictly loaded.

    Raises:
      CheckpointError: the stage is not complete or its checkpoint is missing or of another kind.
    """
    with _checkpoints_of(plan) as (checkpoints, step):
        return state_at(checkpoints, plan, step)


@contextlib.contextmanager
def _checkpoints_of(plan: StagePlan) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a complete stage, read only, and the step of the one it hands on."""
    manifest = plan.manifest()
    if not isinstance(manifest, TrainedManifest):
        raise incomplete(plan)
    folder = plan.folder / "checkpoints"
    if not folder.is_dir():
        raise _no_checkpoint(plan, manifest.handed_on)
    checkpoints = Checkpoints(folder, keep=1_000_000, read_only=True)
    try:
        yield checkpoints, manifest.handed_on
    finally:
        checkpoints.close()


def state_at(
    checkpoints: Checkpoints, plan: StagePlan, step: int, layout: Layout | None = None
) -> TrainState:
    """The state in the checkpoint that a stage hands on; errors as of `load_state`."""
    found = checkpoints.restore(abstract_state(plan, layout), step)
    if found is None:
        raise _no_checkpoint(plan, step)
    return found[0]


def _no_checkpoint(plan: StagePlan, step: int) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint at step {step}, which stage '{plan.name}' hands on, in {plan.folder} "
        f"is missing or damaged. Delete {plan.manifest_path.name} there and give the run's command "
        "again to train on from the newest checkpoint that is whole."
    )


def _not_kept(plan: StagePlan, step: int) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint at step {step} of stage '{plan.name}' in {plan.folder}, which another "
        "stage names, is missing or damaged. Move that folder away and give the run's command "
        "again to train the stage anew."
    )


def handed_on(state: TrainState, ema: str | None) -> Weights:
    """The student's weights, or their average of the rate `ema` (as text)."""
    params = state.ema[ema] if ema is not None else state.params["student"]
    return Weights(params, state.statistics.get("student"))


def read_tokenizer(plan: StagePlan) -> BytePairTokenizer:
    """The tokenizer of a stage that has learnt its text encoder.

    Raises:
      CheckpointError: its file is not in the folder of the stage, or is damaged.
    """
    path = plan.folder / FOLDER / MERGES
    assert plan.tokenizer is not None
    try:
        pairs = parse_merges(read_text(path))
        tokenizer = BytePairTokenizer(pairs, plan.tokenizer.length)
    except (OSError, ValueError, DamagedFile) as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error)}). Copy it from the folder of the data."
        ) from None
    if tokenizer.facts.digest != plan.tokenizer.digest:
        raise CheckpointError(f"{path} is not the tokenizer that read the captions of the run.")
    return tokenizer


def text_encoder_of(plan: StagePlan, weights: Weights) -> TextEncoder:
    """The text encoder that a network has learnt."""
    assert isinstance(plan.module, CaptionedUNet)
    return TextEncoder(weights.params[TEXT], plan.module.text_encoder())


def latent_scaling(plan: StagePlan) -> float:
    """The factor by which the latents of a complete stage are multiplied.

    Raises:
      CheckpointError: the stage is not complete, or its manifest lacks the factor.
    """
    manifest = complete_manifest(plan)
    if not isinstance(manifest, TrainedManifest) or not manifest.measured:
        raise CheckpointError(
            f"Stage '{plan.name}' has no scaling of its latents in {plan.manifest_path}. Delete "
            "that file and give the run's command again: it measures the scaling and trains "
            "nothing."
        )
    return float(manifest.measured[0][SCALING])


class Networks:
    """The trained networks of a run's complete stages, read from disk at most once.

    Weights that were just trained are not read. All weights lie on the host.
    """

    def __init__(self) -> None:
        self._weights: dict[str, Weights] = {}
        # The latest checkpoint at a step: a chain of stages names many, and each of them once.
        self._kept: tuple[str, int, Weights] | None = None
        self._params: dict[str, Any] = {}
        self._parts: dict[str, PipelineParts] = {}
        self._decoders: dict[str, Decoder | None] = {}

    def add(self, plan: StagePlan, weights: Weights) -> None:
        """Keeps the weights that a stage hands on."""
        own = to_host(dataclasses.replace(weights, base=None))
        self._weights[plan.name] = self._with_base(plan, own)

    def _with_base(self, plan: StagePlan, weights: Weights) -> Weights:
        """The weights with the base of a student of low rank, of which there is one copy."""
        if plan.base is None:
            return weights
        return dataclasses.replace(weights, base=self.weights(*plan.base).params)

    def bases(self, plan: StagePlan, plans: Mapping[str, StagePlan]) -> dict[str, Params]:
        """By name, the parameters that the networks of low rank of a stage are factors for.

        Args:
          plan: the stage.
          plans: all stages by name.
        """
        names = [name for name in plan.modules if plan.settings.low_rank_of(name)]
        stage, step = plan.settings.teacher_checkpoint
        return {
            name: self.weights(*plan.base).params
            if name == "student" and plan.base
            else self.weights(plans[stage], step).whole().params
            for name in names
        }

    def holding(self, plan: StagePlan, weights: Weights) -> "Networks":
        """These networks and one of a stage that is not complete, of weights on the host."""
        found = copy.copy(self)
        found._weights = {**self._weights, plan.name: weights}
        return found

    def weights(self, plan: StagePlan, step: int | None = None) -> Weights:
        """The weights that a stage hands on, or the weights at a step; errors as `load_weights`."""
        if step is not None:
            if self._kept is None or self._kept[:2] != (plan.name, step):
                found = self._with_base(plan, to_host(_read_weights(plan, step=step)))
                self._kept = plan.name, step, found
            return self._kept[2]
        if plan.name not in self._weights:
            self.add(plan, _read_weights(plan))
        return self._weights[plan.name]

    def read(self, plans: Iterable[StagePlan]) -> None:
        """Reads the weights of these stages, as far as they are not in memory."""
        for plan in plans:
            if plan.objective.trains.kind != "pairs":
                self.weights(plan)
            if plan.objective.diagnostics.panels:
                self.params(plan)

    def params(self, plan: StagePlan) -> Any:
        """By name the raw parameters of a complete stage's networks; errors as `load_state`."""
        if plan.name not in self._params:
            self._params[plan.name] = to_host(load_state(plan).params)
        return self._params[plan.name]

    def __call__(self, plan: StagePlan, student: int | None = None, step: int | None = None) -> Any:
        """The network of a stage, or one of its students alone, as `load_network` gives it.

        With `step` it is the network of a checkpoint that the stage keeps.
        """
        return bind(plan, self.weights(plan, step), student)

    def parts(self, plan: StagePlan) -> PipelineParts | None:
        """The parts of the pipeline that a stage's teacher comes from; None without one.

        Raises:
          CheckpointError: they are not in the folder of the stage that has imported the teacher.
        """
        stage = plan.text_stage
        imported = stage.imported
        if imported is None or not imported.parts:
            return None
        if stage.name not in self._parts:
            self._parts[stage.name] = read_parts(stage.folder, TOKENIZER in imported.parts)
        return self._parts[stage.name]

    def latent_encoder(self, plan: StagePlan) -> LatentEncoder | None:
        """The encoder of the images of a stage's data; None for networks that see what these have.

        Raises:
          CheckpointError: its stage is not complete.
        """
        source = plan.latent_source
        if source is None:
            return None
        scaling = jnp.float32(latent_scaling(source))
        return LatentEncoder(self.weights(source).params, scaling, source.module)

    def decoder(self, plan: StagePlan) -> Decoder | None:
        """What makes pictures of the latents of a stage; None for networks that see pixels.

        Raises:
          CheckpointError: as `parts`, or the stage of the latents is not complete.
        """
        if plan.name not in self._decoders:
            self._decoders[plan.name] = self._read_decoder(plan)
        return self._decoders[plan.name]

    def _read_decoder(self, plan: StagePlan) -> Decoder | None:
        source = plan.latent_source
        if source is not None:
            scaling = Scaling(latent_scaling(source))
            return Decoder(source.module, jax.device_put(self.weights(source).params), scaling)
        parts = self.parts(plan)
        if parts is not None:
            return parts.decoder
        if not plan.sees_latents:
            return None
        stage = plan.text_stage
        found = read_decoder(stage.folder)
        if found is None:
            raise CheckpointError(
                f"Stage '{stage.name}' was trained on latents by {plan.encoder}, and their decoder "
                f"is not in {stage.folder / FOLDER / VAE}. Copy the folder {VAE} of the set there; "
                "the command that made the set adds it to an older set."
            )
        return found

    def text_encoder(self, plan: StagePlan) -> TextEncoder | None:
        """The encoder of a stage's captions; None for networks that read no texts.

        Raises:
          CheckpointError: as `parts`, or as `load_weights`.
        """
        parts, stage = self.parts(plan), plan.text_stage
        if plan.tokenizer is None:
            return None
        own = text_encoder_of(stage, self.weights(stage)) if parts is None else parts.text_encoder
        return None if own is None else dataclasses.replace(own, pool=plan.text_pool)

    def tokenize(self, plan: StagePlan, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 of texts, for a stage that reads texts.

        Raises:
          CheckpointError: the tokenizer is not in the folder of the stage with the text encoder.
        """
        parts, stage = self.parts(plan), plan.text_stage
        if parts is None:
            return read_tokenizer(stage)(texts)
        assert parts.tokenizer is not None  # of a network that reads texts
        return parts.tokenizer(texts)

    def teacher(self, plan: StagePlan, plans: Mapping[str, StagePlan]) -> Any:
        """The network of a stage's teacher, without guidance; None where there is no teacher."""
        stage, step = plan.settings.teacher_checkpoint
        return self(plans[stage], step=step) if stage else None


def load_network(plan: StagePlan, rate: float | None = None, student: int | None = None) -> Any:
    """The trained network of a complete stage, bound to its parameters.

    The students of a partition are one denoiser, which calls the owner of a level and a class;
    `student` picks one of them.

    Raises:
      ValueError: the stage is a sweep, a network for each student, and no student is named.
    """
    return bind(plan, load_weights(plan, rate), student)


def bind(plan: StagePlan, weights: Weights, student: int | None = None) -> Any:
    """Weights of a stage as a network; arguments and errors as of `load_network`."""
    if student is not None:
        weights = weights.student(student)
    elif plan.stacked and plan.partition is None:
        raise ValueError(f"Stage '{plan.name}' is a sweep; say which student is wanted.")
    network = plan.objective.trains.bind(plan.module, weights, plan.settings.prediction)
    return network if student is not None else route(network, fitted_partition(plan))
