"""The samplers of the library: the update rule of each paper, followed by the sampler made of it.

An update rule takes one step from the level `here` to the less noisy level `there`:

    update(denoise, z, here, there, key) -> (z at `there`, prediction at `here`)

`denoise` is `(z, level) -> Prediction`, and `z` is `[B, H, W, C]`. `key` is the random key of this
step, or None. A multistep rule takes a sixth argument, the `Previous` step. Keyword-only arguments
of a rule are options of its sampler. Rules can be called on their own, also as `ddim.step(...)`.
"""

import re

import jax
from jaxtyping import Array

from ddistill.diffusion import (
    Prediction,
    add_noise,
    analytic_prediction,
    ddim_step,
    from_x0,
    mean_flow,
    multistep_x0,
    posterior_step,
    trapezoid_x0,
)
from ddistill.errors import ConfigError, check_choice
from ddistill.samplers.loops import Denoise, Previous
from ddistill.samplers.sampler import Sampler
from ddistill.schedules import Level

# ---------------------------------------------------------------------------------------- DDIM


def ddim_update(
    denoise: Denoise,
    z: Array,
    here: Level,
    there: Level,
    key: Array | None = None,
    *,
    eta: float = 0.0,
) -> tuple[Array, Prediction]:
    """DDIM (arXiv 2010.02502 eq. 12): keeps the predicted noise, scaled to the next level.

    `eta` is the share of ancestral noise: 0 for none (Euler's method on the probability-flow ODE),
    1 for `ddpm_update`. `key` is used only if `eta` is above 0.
    """
    prediction = denoise(z, here)
    noise = _normal(key, z, f"ddim with eta={eta}") if eta else None
    return ddim_step(prediction, z, here, there, eta, noise), prediction


# First order. Option: `eta` in [0, 1]; above 0 the sampler needs a key.
ddim = Sampler("ddim", "DDIM", ddim_update)


def analytic_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """DDIM with an analytic first step (arXiv 2210.05475), which calls no denoiser."""
    del denoise, key
    prediction = analytic_prediction(z, here)
    return ddim_step(prediction, z, here, there), prediction


def euler_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """DDIM's step after an analytic first step (arXiv 2210.05475); it adds no noise."""
    return ddim_update(denoise, z, here, there, key)


# For students whose first step is trained to be this one (SFD, arXiv 2409.19681).
ddim_afs = Sampler(
    "ddim_afs",
    "DDIM, analytic first step",
    euler_update,
    first=analytic_update,
    evaluations=lambda steps: max(1, steps - 1),
)

# ---------------------------------------------------------------------------------------- DDPM


def ddpm_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None
) -> tuple[Array, Prediction]:
    """Ancestral sampling (DDPM, arXiv 2006.11239 algorithm 2), with the posterior's variance."""
    prediction = denoise(z, here)
    noise = _normal(key, z, "ddpm")
    return posterior_step(prediction, z, here, there, noise), prediction


ddpm = Sampler("ddpm", "DDPM", ddpm_update, deterministic=False)

# ---------------------------------------------------------------------------------------- Heun


def heun_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """Heun's method (EDM, arXiv 2206.00364 algorithm 1 without churn), see `trapezoid_x0`."""
    first = denoise(z, here)
    second = denoise(ddim_step(first, z, here, there), there)
    prediction = from_x0(trapezoid_x0(first.x0, second.x0, here, there), z, here)
    return ddim_step(prediction, z, here, there), prediction


def heun_flow_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """Heun's method on dz/dt = eps - x0, the ODE of flow matching, see `mean_flow`.

    On other levels z / (alpha + sigma) is taken in place of z. Euler's method on this ODE is DDIM.
    """
    first = denoise(z, here)
    second = denoise(ddim_step(first, z, here, there), there)
    prediction = mean_flow(first, second, z, here)
    return ddim_step(prediction, z, here, there), prediction


# Second order; the last step is Euler's, because networks are not defined at a clean level.
heun = Sampler(
    "heun", "Heun", heun_update, last=ddim_update, evaluations=lambda steps: 2 * steps - 1
)
heun_flow = Sampler(
    "heun_flow",
    "Heun in flow time",
    heun_flow_update,
    last=ddim_update,
    evaluations=lambda steps: 2 * steps - 1,
)

# -------------------------------------------------------------------------------- DPM-Solver++


def dpm_solver_pp_update(
    denoise: Denoise,
    z: Array,
    here: Level,
    there: Level,
    key: Array | None = None,
    previous: Previous | None = None,
) -> tuple[Array, Prediction]:
    """DPM-Solver++(2M) (arXiv 2211.01095 algorithm 2): extrapolates from the previous x0.

    The first step (`previous` is None or at the level `here`) and a step to a clean level are of
    first order.
    """
    prediction = denoise(z, here)
    if previous is None:
        return ddim_step(prediction, z, here, there), prediction
    x0 = multistep_x0(prediction.x0, previous.x0, previous.level, here, there)
    return ddim_step(from_x0(x0, z, here), z, here, there), prediction


# Second order.
dpm_solver_pp = Sampler("dpm_solver_pp", "DPM-Solver++", dpm_solver_pp_update, multistep=True)

# ----------------------------------------------------------------------------------- renoising


def renoise_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None
) -> tuple[Array, Prediction]:
    """Multistep sampling of consistency models (arXiv 2303.01469 algorithm 1) and of DMD2.

    Predicts the image and adds fresh noise of the next level.
    """
    prediction = denoise(z, here)
    noise = _normal(key, z, "renoise in several steps")
    return add_noise(prediction.x0, noise, there), prediction


# `clip` bounds the final images alone: in training, a few-step student continues from its images
# without clipping. A single step needs no key; the noise of a clean level has weight 0.
renoise = Sampler(
    "renoise",
    "renoising",
    renoise_update,
    deterministic=False,
    single_step_deterministic=True,
    clip_predictions=False,
)


# ------------------------------------------------------------------------------- from noise alone


def from_noise_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """The image that a student of BOOT or PID makes of noise; it is told the level `there`."""
    del key
    prediction = denoise(z, Level(here.alpha, here.sigma, there.time))
    return prediction.x0, prediction


def keep_update(
    denoise: Denoise, z: Array, here: Level, there: Level, key: Array | None = None
) -> tuple[Array, Prediction]:
    """The image as it is."""
    del denoise, there, key
    return z, from_x0(z, z, here)


# From the noisiest level to level 1, the cleanest one that networks know.
from_noise = Sampler(
    "from_noise",
    "one call on noise",
    from_noise_update,
    last=keep_update,
    evaluations=lambda steps: 1,
    rows=lambda steps: (0, 1, steps),
)


def _normal(key: Array | None, like: Array, what: str) -> Array:
    if key is None:
        raise ValueError(f"{what} draws noise and needs a key, for example jax.random.key(0).")
    return jax.random.normal(key, like.shape, like.dtype)


# ------------------------------------------------------------------------------------ registry

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (ddim, ddim_afs, ddpm, heun, heun_flow, dpm_solver_pp, renoise, from_noise)
}


def register_sampler(sampler: Sampler) -> Sampler:
    """Makes a sampler available to settings under its name.

    `ddistill.register.sampler` also notes it for digests, results and finished runs.

    Returns:
      The sampler.

    Raises:
      ConfigError: another sampler has the name, or the name has characters other than letters,
        digits and underscores (it becomes part of file names and of protocol strings).
    """
    name = sampler.name
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise ConfigError(
            f"register_sampler: the name {name!r} must consist of letters, digits and underscores."
        )
    known = SAMPLERS.get(name, sampler)
    if known != sampler and _defined_at(known) != _defined_at(sampler):
        raise ConfigError(
            f"register_sampler: the name '{name}' is taken by the sampler "
            f"'{SAMPLERS[name].label}'. Choose a name other than {', '.join(sorted(SAMPLERS))}."
        )
    SAMPLERS[name] = sampler
    return sampler


def _defined_at(sampler: Sampler) -> tuple[str, str, str]:
    """Label and place of a definition: equal where a module, such as a config file, is reloaded."""
    step = sampler.step
    return sampler.label, step.__module__, getattr(step, "__qualname__", repr(step))


def get_sampler(name: str) -> Sampler:
    """The sampler registered under a name.

    Raises:
      ConfigError: there is no sampler of that name; the message suggests the nearest one.
    """
    check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def nfe(name: str, steps: int) -> int:
    """Denoiser calls per image of the named sampler with `steps` steps.

    Raises:
      ConfigError: there is no sampler of that name; the message suggests the nearest one.
    """
    return get_sampler(name).evaluations(steps)
