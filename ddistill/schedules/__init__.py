"""Noise levels: what `z = alpha * x0 + sigma * eps` means at every step, and which steps are used.

A `Schedule` is a table of levels; index 0 is the clean end, index T the noisiest. A student's
process is a `subsequence` of its teacher's table, picked by a grid of indices. Everything is
computed in float64 and stored in float32, because 1 - abar loses all its digits in float32.
"""

from ddistill.schedules.constructors import (
    cosine,
    cosine_log_snr,
    edm_sampling,
    from_alphas_cumprod,
    karras,
    linear_beta,
    linear_path,
    listed_beta,
    logistic_beta,
    scaled_linear_beta,
    sigmoid_beta,
)
from ddistill.schedules.ending import NOISE, last_log_snr
from ddistill.schedules.grids import (
    SPACINGS,
    check_grid,
    index_time,
    log_snr_grid,
    make_grid,
    subsequence,
    uniform_grid,
)
from ddistill.schedules.levels import Level, Schedule, betas, log_snr, snr
from ddistill.schedules.named import SCHEDULES, build_schedule, make_schedule

__all__ = [
    "NOISE",
    "SCHEDULES",
    "SPACINGS",
    "Level",
    "Schedule",
    "betas",
    "build_schedule",
    "check_grid",
    "cosine",
    "cosine_log_snr",
    "edm_sampling",
    "from_alphas_cumprod",
    "index_time",
    "karras",
    "last_log_snr",
    "linear_beta",
    "linear_path",
    "listed_beta",
    "log_snr",
    "log_snr_grid",
    "logistic_beta",
    "make_grid",
    "make_schedule",
    "scaled_linear_beta",
    "sigmoid_beta",
    "snr",
    "subsequence",
    "uniform_grid",
]
