"""The keys of diffusers' scheduler configs: of the forward process, and of sampling.

Compared with the signatures of diffusers 0.42 by `tests/test_diffusers_schedulers.py`.
"""

from collections.abc import Collection
from dataclasses import dataclass

from ddistill.errors import ConfigError, nearest
from ddistill.typing import JsonRecord


@dataclass(frozen=True)
class Defaults:
    """Defaults of a scheduler class for keys that its config lacks.

    Attributes:
      beta_start, beta_end: the first and the last beta.
      beta_schedule: the name of the way between them.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"


_DDPM, _LATENT = Defaults(), Defaults(0.00085, 0.012)
# Samplers of latent consistency models. Their networks predict eps, x0 or v as others do: the
# functions that mix the output with the input are those of the sampler, and equal x0 up to 1e-4
# from the second level on.
_CONSISTENT = Defaults(0.00085, 0.012, "scaled_linear")
# Classes of the variance-preserving process with betas. The other defaults are equal in all of
# them: `TIMESTEPS` and `PREDICTION_TYPE`.
SCHEDULERS: dict[str, Defaults] = {
    "DDIMInverseScheduler": _DDPM,
    "DDIMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDPMScheduler": _DDPM,
    "DEISMultistepScheduler": _DDPM,
    "DPMSolverMultistepInverseScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverSinglestepScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "LCMScheduler": _CONSISTENT,
    "LMSDiscreteScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "SASolverScheduler": _DDPM,
    "TCDScheduler": _CONSISTENT,
    "UniPCMultistepScheduler": _DDPM,
}
TIMESTEPS, PREDICTION_TYPE = 1000, "epsilon"

# Classes of other processes and other networks.
_FLOW = "flow matching with a sampler that has levels of its own"
_CONSISTENCY = "consistency models, with outputs that are mixed with the input"
_KARRAS = "EDM's levels, with ln(sigma) / 4 as times and inputs scaled by sigma"
OTHERS: dict[str, str] = {
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "EDMDPMSolverMultistepScheduler": _KARRAS,
    "EDMEulerScheduler": _KARRAS,
    "FlowMapEulerDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "KarrasVeScheduler": "variance-exploding levels",
    "SCMScheduler": _CONSISTENCY,
    "ScoreSdeVeScheduler": "variance-exploding levels",
    "ScoreSdeVpScheduler": "a process in continuous time",
    "UnCLIPScheduler": "networks that predict a variance too",
}

# Keys of the forward process in training. All of them are read.
PROCESS_KEYS = frozenset(
    (
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
        *("prediction_type", "predict_epsilon", "rescale_betas_zero_snr"),
        *("variance_type", "timestep_type", "use_flow_sigmas"),
    )
)
# Keys of sampling, which are ignored.
SAMPLER_KEYS = frozenset(
    (
        *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio"),
        *("sample_max_value", "set_alpha_to_one", "set_alpha_to_zero", "skip_prk_steps"),
        *("steps_offset", "timestep_spacing", "interpolation_type", "final_sigmas_type"),
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
        *("sigma_min", "sigma_max", "lambda_min_clipped", "euler_at_final", "lower_order_final"),
        *("algorithm_type", "solver_order", "solver_type", "solver_p", "disable_corrector"),
        *("predict_x0", "predictor_order", "corrector_order", "tau_func"),
        *("original_inference_steps", "timestep_scaling"),
        # These change the levels of flow matching alone; `use_flow_sigmas` is refused.
        *("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),
        # Of versions before 0.3.
        *("tensor_format", "timestep_values"),
    )
)
FIXED_VARIANCES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def check_keys(config: JsonRecord, known: Collection[str], kind: str, where: str) -> None:
    """Raises `ConfigError` for a key that is not known; keys that begin with "_" are notes.

    Args:
      config: content of scheduler_config.json.
      known: the keys that are read, or ignored on purpose.
      kind: the kind of scheduler in words.
      where: the file's name.
    """
    for key, value in config.items():
        if key not in known and not str(key).startswith("_"):
            raise ConfigError(
                f"{where}: {key}={value!r} is not an option of {kind} that is known here."
                f"{nearest(key, sorted(known))} If it changes how images are sampled and not the "
                "noise levels, remove it."
            )


def check_flags(config: JsonRecord, keys: Collection[str], where: str) -> None:
    """Raises `ConfigError` for keys with other values than true and false; arguments as above."""
    for key in keys:
        if not isinstance(config.get(key, False), bool):
            raise ConfigError(f"{where}: {key}={config[key]!r} must be true or false.")
