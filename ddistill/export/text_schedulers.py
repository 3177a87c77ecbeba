"""The scheduler of diffusers that samples a text-to-image student on the student's own levels.

`UNet2DConditionModel` knows integer timesteps alone. Levels are therefore rows of the teacher's
table, and the scheduler keeps that table: `DDIMScheduler` on even grids of as many steps as divide
it, `DPMSolverMultistepScheduler` of order 1 (the same update) on other grids, and `LCMScheduler`
for samplers that add noise in every step.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.interop.ddim import PREDICTIONS, expressible, named_betas
from ddistill.schedules import Schedule, build_schedule
from ddistill.settings import ScheduleSettings
from ddistill.typing import JsonRecord

SAMPLERS = ("ddim", "renoise")
# `LCMScheduler` mixes x0 with the state by c_skip = 0.25 / ((t * scaling)^2 + 0.25): at most 1e-5
# from this timestep on with its default scaling of 10, and with 10^4 from timestep 1 on.
_FIRST, _SCALING, _STEEP = 16, 10.0, 1e4


@dataclass(frozen=True)
class PipelineScheduler:
    """A scheduler and the arguments with which its pipeline visits the levels of a student.

    Attributes:
      config: scheduler_config.json.
      arguments: by name, of the call of the pipeline: `num_inference_steps`, or `timesteps`.
    """

    config: JsonRecord
    arguments: JsonRecord

    @property
    def kind(self) -> str:
        """The class of the scheduler."""
        return str(self.config["_class_name"])


def pipeline_scheduler(
    run: SamplerRun, schedule: ScheduleSettings, prediction: str
) -> PipelineScheduler:
    """The scheduler that samples as `run` does.

    Args:
      run: a sampler run of a network that reads texts.
      schedule: of the run's levels.
      prediction: the prediction type of the network.

    Raises:
      ConfigError: diffusers has no such sampler, prediction type or levels.
    """
    if run.sampler not in SAMPLERS:
        raise ConfigError(
            f"'{run.key}' is sampled with {run.sampler}; the export to diffusers supports "
            f"{', '.join(SAMPLERS)}. Use --to=stablehlo, or choose another --nfe."
        )
    if prediction not in PREDICTIONS.values():
        raise ConfigError(
            f"'{run.key}' predicts {prediction}, and a StableDiffusionPipeline knows "
            f"{', '.join(PREDICTIONS.values())}. Use --to=stablehlo."
        )
    whole = build_schedule(schedule.name, schedule.steps, **schedule.options)
    times = np.asarray(run.grid[1:]) - 1
    _check_levels(run, whole, times)
    table = _table(schedule, whole, prediction)
    timesteps, even = [int(t) for t in times[::-1]], _is_even(run.grid, whole.num_steps)
    divides = whole.num_steps % run.steps == 0
    arguments = {"num_inference_steps": run.steps} if even else {"timesteps": timesteps}
    if run.sampler == "renoise" and run.steps > 1:
        if not divides:
            arguments = {"timesteps": timesteps}
        return PipelineScheduler(_lcm(table, run, timesteps[-1]), arguments)
    made = _ddim(table) if even and divides else _first_order(table)
    return PipelineScheduler(made, arguments)


def _check_levels(run: SamplerRun, whole: Schedule, times: Int[np.ndarray, " N"]) -> None:
    """Raises `ConfigError` for levels that are not timesteps of the table."""
    own, rows = run.levels, times + 1
    same = all(
        np.allclose(theirs[rows], ours[1:], rtol=1e-4, atol=1e-6)
        for theirs, ours in ((whole.alpha, own.alpha), (whole.sigma, own.sigma))
    )
    if not same or not np.array_equal(np.asarray(own.time[1:]), times) or own.sigma[0] > 0:
        raise ConfigError(
            f"'{run.key}' has levels or times that are not timesteps 0 to {whole.num_steps - 1} of "
            "the teacher's table, and UNet2DConditionModel knows no others. Use --to=stablehlo."
        )


def _is_even(grid: Int[np.ndarray, " N_1"], steps: int) -> bool:
    """Whether a grid is diffusers' for `timestep_spacing="trailing"`."""
    count = len(grid) - 1
    trailing = np.round(np.arange(steps, 0, -steps / count)).astype(np.int64)
    return np.array_equal(trailing[::-1], grid[1:])


def _table(s: ScheduleSettings, whole: Schedule, prediction: str) -> JsonRecord:
    """The keys that all schedulers share: the levels, and what the network predicts."""
    options = dict(s.options)
    zero = bool(options.pop("zero_snr", False))
    found = named_betas(s.name, options)
    if not found:
        betas = options["betas"] if s.name == "listed_beta" else expressible(whole, prediction)
        found = {"trained_betas": [float(beta) for beta in betas]}
    return {
        "num_train_timesteps": whole.num_steps,
        **found,
        "rescale_betas_zero_snr": zero,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[prediction],
        # Spacings that are written here do not read it; other values draw a warning.
        "steps_offset": 1,
        "thresholding": False,
    }


def _ddim(table: JsonRecord) -> JsonRecord:
    return {
        "_class_name": "DDIMScheduler",
        **table,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        # With the first beta in place of a clean end, the last step would not end at x0.
        "set_alpha_to_one": True,
    }


def _first_order(table: JsonRecord) -> JsonRecord:
    """DDIM as the first order of DPM-Solver++ (arXiv 2211.01095), which takes any timesteps."""
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        **table,
        "timestep_spacing": "trailing",
        "algorithm_type": "dpmsolver++",
        "solver_order": 1,
        "final_sigmas_type": "zero",
        "use_karras_sigmas": False,
    }


def _lcm(table: JsonRecord, run: SamplerRun, last: int) -> JsonRecord:
    """Renoising.

    Raises:
      ConfigError: the network is called at timestep 0, of which the scheduler makes no prediction.
    """
    if last == 0:
        raise ConfigError(
            f"'{run.key}' is called at timestep 0, where LCMScheduler returns its input. Use "
            "--to=stablehlo."
        )
    return {
        "_class_name": "LCMScheduler",
        **table,
        "clip_sample": False,
        "set_alpha_to_one": True,
        # As many as the steps of a call, so that its timesteps are trailing ones.
        "original_inference_steps": run.steps,
        "timestep_scaling": _SCALING if last >= _FIRST else _STEEP,
    }
