"""Schedules read from diffusers' configs, and whole trajectories against diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.diffusion import convert, from_eps
from ddistill.errors import ConfigError
from ddistill.interop.ddim import read_schedule, write_scheduler
from ddistill.interop.scheduler_keys import PROCESS_KEYS, SAMPLER_KEYS, SCHEDULERS
from ddistill.samplers import get_sampler
from ddistill.schedules import build_schedule, karras, make_grid, make_schedule, subsequence

T = 200
SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 5e-4, "beta_end": 0.1},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 1e-3, "beta_end": 0.06},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid", "beta_start": 1e-3, "beta_end": 0.1},
    "trained_betas": {"trained_betas": np.geomspace(1e-4, 0.1, T).tolist()},
}


def ours(config):
    made, prediction = read_schedule({"num_train_timesteps": T, **config}, "scheduler_config.json")
    return build_schedule(made["name"], made["steps"], **made["options"]), prediction


def eps_of(z, time):
    """A network whose answer depends on the pixel and on the time."""
    return 0.6 * z + 0.3 * np.sin(np.float32(0.05) * time) - 0.2


def denoiser(z, level, cond=None):
    return from_eps(0.6 * z + 0.3 * jnp.sin(jnp.float32(0.05) * level.time) - 0.2, z, level)


@pytest.mark.parity
@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, **SCHEDULES[name])
    table, _ = ours(SCHEDULES[name])
    abar = theirs.alphas_cumprod.numpy().astype(np.float64)
    # Theirs is a running product in float32.
    np.testing.assert_allclose(np.square(table.alpha[1:], dtype=np.float64), abar, rtol=3e-5)
    np.testing.assert_array_equal(table.time[1:], np.arange(T))


# Configs that leave the defaults of the class to speak.
SILENT = {
    "nothing": {},
    "no ends": {"beta_schedule": "scaled_linear", "num_train_timesteps": 50},
    "no first beta": {"beta_end": 0.03, "num_train_timesteps": 50},
    "no last beta": {"beta_start": 2e-3, "num_train_timesteps": 50},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_defaults_are_those_of_the_class(name):
    diffusers = pytest.importorskip("diffusers")
    their_class = getattr(diffusers, name)
    for case, config in SILENT.items():
        theirs = their_class.from_config(config)
        made, prediction = read_schedule({"_class_name": name, **config}, "x")
        table = build_schedule(made["name"], made["steps"], **made["options"])
        abar = theirs.alphas_cumprod.numpy().astype(np.float64)
        ours = np.square(table.alpha[1:], dtype=np.float64)
        np.testing.assert_allclose(ours, abar, rtol=1e-4, err_msg=case)
        assert (prediction, theirs.config.prediction_type) == ("eps", "epsilon")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_key_that_the_class_writes_is_known(name):
    diffusers = pytest.importorskip("diffusers")
    config = dict(getattr(diffusers, name)(num_train_timesteps=20).config)
    keys = {key for key in config if not key.startswith("_")}
    assert keys <= PROCESS_KEYS | SAMPLER_KEYS
    made, prediction = read_schedule({"_class_name": name, **config}, "x")
    assert (made["steps"], prediction) == (20, "eps")


V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
V_SCHEDULES = {name: config for name, config in SCHEDULES.items() if name != "sigmoid"}


@pytest.mark.parity
@pytest.mark.parametrize("name", V_SCHEDULES)
def test_levels_with_zero_terminal_snr_are_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    config = {**V_SCHEDULES[name], **V}
    theirs = diffusers.DDIMScheduler(num_train_timesteps=T, **config)
    table, prediction = ours({"_class_name": "DDIMScheduler", **config})
    abar = theirs.alphas_cumprod.numpy().astype(np.float64)
    np.testing.assert_allclose(np.square(table.alpha[1:], dtype=np.float64), abar, atol=1e-5)
    assert (table.alpha[-1], table.sigma[-1], prediction) == (0.0, 1.0, "v")


def test_zero_terminal_snr_keeps_the_first_level_and_scales_the_others():
    plain, _ = ours(SCHEDULES["scaled_linear"])
    found, _ = ours({**SCHEDULES["scaled_linear"], **V})
    first, last = (float(plain.alpha[i]) for i in (1, -1))
    wanted = (plain.alpha[1:] - last) * first / (first - last)
    np.testing.assert_allclose(found.alpha[1:], wanted, atol=1e-6)
    assert (found.alpha[0], found.sigma[0], found.alpha[-1]) == (1.0, 0.0, 0.0)


@pytest.mark.parity
def test_ddim_begins_at_pure_noise_where_the_network_predicts_v():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = {**SCHEDULES["scaled_linear"], **V}
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=T, clip_sample=False, timestep_spacing="trailing", **config
    )
    table, _ = ours({"_class_name": "DDIMScheduler", **config})
    levels = subsequence(table, make_grid(table, 5))

    def predicting_v(z, level, cond=None):
        return convert("v", 0.5 * z - 0.1, z, level)

    z = np.random.default_rng(0).standard_normal((2, 3, 3, 1)).astype(np.float32)
    found = get_sampler("ddim")(predicting_v, levels, z, jax.random.key(0))
    theirs.set_timesteps(5)
    state = torch.from_numpy(z)
    for t in theirs.timesteps:
        state = theirs.step(0.5 * state - 0.1, t, state).prev_sample
    np.testing.assert_allclose(found, state.numpy(), atol=1e-4)


def test_the_defaults_of_betas_differ_by_class():
    for name in ("LCMScheduler", "TCDScheduler"):
        made, _ = read_schedule({"_class_name": name}, "x")
        assert made["name"] == "scaled_linear_beta"
        assert made["options"] == {"start": 0.00085, "end": 0.012}
    first = {"DDPMScheduler": (1e-4, 0.02), "HeunDiscreteScheduler": (0.00085, 0.012)}
    for name, (start, end) in first.items():
        options = read_schedule({"_class_name": name}, "x")[0]["options"]
        assert options == {"start": start, "end": end}
        options = read_schedule({"_class_name": name, "beta_end": 0.5}, "x")[0]["options"]
        assert options == {"start": start, "end": 0.5}


@pytest.mark.parametrize(
    "config, prediction",
    [
        ({"predict_epsilon": False}, "x0"),
        ({"predict_epsilon": True}, "eps"),
        ({"predict_epsilon": False, "prediction_type": "sample"}, "x0"),
        ({"predict_epsilon": True, "prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "v_prediction"}, "v"),
    ],
)
def test_what_the_network_predicts(config, prediction):
    assert read_schedule({"_class_name": "DDPMScheduler", **config}, "x")[1] == prediction


def test_options_of_the_sampler_change_nothing():
    plain = ours(SCHEDULES["linear"])
    sampling = {
        "clip_sample": False,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": True,
        "thresholding": True,
        "variance_type": "fixed_large",
        "_diffusers_version": "0.1.1",
    }
    again = ours({**SCHEDULES["linear"], **sampling})
    np.testing.assert_array_equal(again[0].alpha, plain[0].alpha)
    assert again[1] == plain[1]


def test_tables_begin_with_the_first_beta():
    def square(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    first = {
        "linear": 1 - 5e-4,
        "scaled_linear": 1 - 1e-3,
        "squaredcos_cap_v2": square(1 / T) / square(0),
        "sigmoid": 1 - (1e-3 + 0.099 / (1 + np.exp(6))),
        "trained_betas": 1 - 1e-4,
    }
    for name, abar in first.items():
        table, _ = ours(SCHEDULES[name])
        assert abs(np.square(table.alpha[1], dtype=np.float64) - abar) < 1e-7, name
        assert abs(np.square(table.sigma[1], dtype=np.float64) / (1 - abar) - 1) < 1e-6, name


@pytest.mark.parity
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_ddim_walks_the_same_way(name, eta, clip):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=T,
        timestep_spacing="trailing",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        **SCHEDULES[name],
    )
    compare(theirs, name, 10, "ddim", {"eta": eta, "clip": clip}, {"eta": eta})


@pytest.mark.parity
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("steps", [3, 10, T])
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_ddpm_walks_the_same_way(name, steps, clip):
    """The cosine's last level has alpha = 2e-4 and q = 7e-6 in a step of three."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=T,
        timestep_spacing="trailing",
        variance_type="fixed_small",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        **SCHEDULES[name],
    )
    compare(theirs, name, steps, "ddpm", {"clip": clip}, {}, rederives=False)


@pytest.mark.parity
@pytest.mark.parametrize("steps", [8, 20])
def test_dpm_solver_pp_walks_the_same_way(steps):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T,
        timestep_spacing="trailing",
        solver_order=2,
        final_sigmas_type="zero",
        **SCHEDULES["linear"],
    )
    compare(theirs, "linear", steps, "dpm_solver_pp", {}, {})


def compare(theirs, name, steps, sampler, options, their_options, rederives=True):
    """Runs both from one noise, with one noise a step, and compares every state."""
    torch = pytest.importorskip("torch")
    table, _ = ours(SCHEDULES[name])
    levels = subsequence(table, make_grid(table, steps))
    z = np.random.default_rng(0).standard_normal((2, 3, 3, 1)).astype(np.float32)
    key = jax.random.key(4)
    _, states = get_sampler(sampler)(denoiser, levels, z, key, trajectory=True, **options)
    drawn = iter(
        torch.from_numpy(
            np.array(jax.random.normal(jax.random.fold_in(key, i), z.shape, np.float32))
        )
        for i in range(steps)
    )
    # Their float32 running product is off by more than what is compared here.
    theirs.alphas_cumprod = torch.from_numpy(np.square(table.alpha[1:], dtype=np.float64))
    module = __import__(type(theirs).__module__, fromlist=["randn_tensor"])
    before = module.randn_tensor
    module.randn_tensor = lambda *_, **__: next(drawn)
    theirs.set_timesteps(steps)
    # Ours re-derives eps from a clipped x0.
    if options.get("clip") and rederives:
        their_options = {**their_options, "use_clipped_model_output": True}
    try:
        state = torch.from_numpy(z).double()
        for i, t in enumerate(theirs.timesteps):
            answer = torch.from_numpy(eps_of(state.numpy(), t.numpy()))
            state = theirs.step(answer, t, state, **their_options).prev_sample
            wanted = state.numpy()
            scale = max(1.0, np.abs(wanted).max())
            assert np.abs(states[i + 1] - wanted).max() < 1e-5 * scale, (i, int(t))
    finally:
        module.randn_tensor = before


def test_what_is_written_is_read_again():
    table, _ = ours(SCHEDULES["scaled_linear"])
    levels = subsequence(table, [0, 40, 90, 200])
    written = write_scheduler(levels, "v", 1.0)
    made, prediction = read_schedule(written, "here")
    again = make_schedule(made["name"], made["steps"], **made["options"])
    assert prediction == "v"
    np.testing.assert_allclose(again.alpha, levels.alpha, rtol=1e-6)
    np.testing.assert_allclose(again.sigma, levels.sigma, rtol=1e-4)
    np.testing.assert_array_equal(again.time, [-1, 0, 1, 2])


@pytest.mark.parametrize(
    "config, message",
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, "_class_name='FlowMatch.*not known"),
        ({"beta_schedule": "linaer"}, "beta_schedule='linaer' is not known. Did you mean 'linear'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'.*epsilon"),
        ({"rescale_betas_zero_snr": True}, "ends in pure noise .*with it: prediction_type v_pred"),
        ({"trained_betas": [0.1]}, "1 trained_betas for num_train_timesteps=200"),
        ({"trained_betas": 5}, "trained_betas must be a list of numbers"),
        ({"trained_betas": ["a"]}, "trained_betas must be a list of numbers"),
        ({"beta_start": None}, "beta_start=None must be a number"),
        ({"num_train_timesteps": None}, "num_train_timesteps=None must be an integer above 0"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "it is for flow matching"),
        ({"_class_name": "SCMScheduler"}, "_class_name='SCMScheduler' .* consistency models"),
        ({"_class_name": ["DDPMScheduler"]}, "_class_name=.'DDPMScheduler'. is not known"),
        ({"_class_name": None}, "_class_name=None is not known"),
        ({"beta_stard": 0.001}, "beta_stard=0.001 is not an option .* Did you mean 'beta_start'"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale=3.0 is not an option of a scheduler"),
        ({"beta_start": "0.001"}, "beta_start='0.001' must be a number"),
        ({"beta_start": True}, "beta_start=True must be a number"),
        ({"beta_start": float("nan")}, "beta_start=nan must be above 0 and below 1"),
        ({"beta_end": 20}, "beta_end=20 must be above 0 and below 1"),
        ({"beta_schedule": None}, "beta_schedule=None is not known"),
        ({"prediction_type": None}, "prediction_type=None is not known"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps=1000.0 must be an integer"),
        ({"trained_betas": [0.1] * 199 + [0]}, r"trained_betas\[199\]=0 must be above 0"),
        ({"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr='false' must be true or"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True is flow matching"),
        ({"variance_type": "learned_range"}, "'learned_range' is not supported. The network also"),
        ({"variance_type": "large"}, "variance_type='large' is not supported. Allowed: None, fix"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous' is not supported"),
        ({"predict_epsilon": "no"}, "predict_epsilon='no' must be true or false"),
        (
            {"predict_epsilon": False, "prediction_type": "epsilon"},
            "predict_epsilon=False and prediction_type='epsilon' contradict",
        ),
        ({"beta_schedule": "linear"}, "beta_start is missing, and _class_name too"),
        ({"beta_start": 0.1, "beta_end": 0.2}, "beta_schedule is missing, and _class_name too"),
    ],
)
def test_what_cannot_be_read_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        ours(config)


@pytest.mark.parametrize(
    "levels, prediction, message",
    [
        (karras(4), "v", "variance-preserving levels only"),
        (make_schedule("cosine", 8, clean=False), "eps", "ends at a clean image; .* sigma = 0.184"),
        (
            # One minus the last beta is 2e-8, which float32 rounds to nothing.
            subsequence(make_schedule("cosine", 1000), [0, 300, 1000]),
            "eps",
            r"in float32, would have these levels 100.0% off",
        ),
        (make_schedule("linear_beta", 8, zero_snr=True), "v", "end in pure noise .alpha = 0."),
        (make_schedule("cosine", 8), "edm", "no prediction type 'edm'; it has eps, x0, v"),
    ],
)
def test_what_cannot_be_written_is_named(levels, prediction, message):
    with pytest.raises(ConfigError, match=message):
        write_scheduler(levels, prediction, 0.0)
