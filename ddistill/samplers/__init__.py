"""Samplers: a denoiser and a schedule of noise levels in, images out.

    images = ddim(denoiser, subsequence(schedule, grid), noise, clip=1.0)

A `Sampler` is a value: the update rule of its paper, the number of denoiser calls, a name. All
samplers are called in the same way (see `Sampler.__call__`) and share one loop. `algorithms` holds
the update rules, `register_sampler` adds a sampler, and `get_sampler` finds one by its name.
"""

from ddistill.samplers.algorithms import (
    SAMPLERS,
    ddim,
    ddim_afs,
    ddpm,
    dpm_solver_pp,
    from_noise,
    get_sampler,
    heun,
    heun_flow,
    nfe,
    register_sampler,
    renoise,
)
from ddistill.samplers.loops import LOOPS, Denoise, Previous
from ddistill.samplers.sampler import Sampler

__all__ = [
    "LOOPS",
    "SAMPLERS",
    "Denoise",
    "Previous",
    "Sampler",
    "ddim",
    "ddim_afs",
    "ddpm",
    "dpm_solver_pp",
    "from_noise",
    "get_sampler",
    "heun",
    "heun_flow",
    "nfe",
    "register_sampler",
    "renoise",
]
