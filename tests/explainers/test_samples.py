"""Measures that are taken at every step."""

import inspect
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch.overrides import TorchFunctionMode

from diffusers_xai import Samples, record
from tests.tiny import make_pipeline
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


def test_measures_compare_every_state_with_the_next():
    pipe, sample = make_pipeline("xai")
    names = ("ssim", "ssim_contrast", "psnr", "mse")
    profile = sample(record=[Samples(measures=names)]).profile
    states = np.stack([*profile["samples"].values, profile["final_sample"].values]).astype(float)
    for name, expected in (
        ("mse", mean_squared_error),
        ("psnr", lambda a, b: peak_signal_noise_ratio(a, b, data_range=2.0)),
    ):
        by_hand = [
            [expected(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(states, states[1:], strict=False)
        ]
        np.testing.assert_allclose(profile[f"measures/{name}"].values, by_hand, rtol=1e-9)
    few = sample(record=[Samples(measures=names, every=3)]).profile
    for name in names:  # at every step, also where no sample is kept
        np.testing.assert_array_equal(few[f"measures/{name}"].values, profile[f"measures/{name}"].values)
        computed = profile.trajectory(name, **({"win_size": 7} if name.startswith("ssim") else {}))
        assert torch.allclose(torch.from_numpy(computed.values), torch.from_numpy(few[f"measures/{name}"].values))


def test_measures_of_layers_are_refused():
    with pytest.raises(ValueError, match=r"from \['ssim', 'ssim_luminance', .*'mse'\], got \['distance'\]"):
        Samples(measures=("ssim", "distance"))


LIMITS = ("thresholding", "clip_sample", "clip_denoised")
SOLVERS = (
    {},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    {"algorithm_type": "noise_prediction"},
    {"predict_x0": False},
)


def limited_schedulers():
    """Every scheduler of diffusers that can bound x̂_0, with each way to do so and each of its solvers."""
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler")):
        scheduler = getattr(diffusers, name)
        if ".dummy_" in scheduler.__module__:  # needs a library that is not there
            continue
        known = inspect.signature(scheduler.__init__).parameters
        for limit in [limit for limit in LIMITS if limit in known]:
            for solver in SOLVERS:
                if set(solver) <= set(known):
                    try:
                        yield name, scheduler(**{limit: True, **solver})
                    except NotImplementedError:
                        continue


class Bounded(TorchFunctionMode):
    """What torch bounds in the form of the state, the images of a threshold divided by it: the last one counts."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.last = shape, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "clamp" and result.numel() == self.shape.numel():
            maximum = args[2] if len(args) > 2 and isinstance(args[2], torch.Tensor) else 1.0
            self.last = (result / maximum).reshape(self.shape)
        return result


def sampled(network, scheduler):
    """x̂_0 as the solver bounded it at each of three steps; `None` where it bounds none."""
    torch.manual_seed(1)
    state, found = torch.randn(1, 3, 8, 8), []
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        prediction = network(scaled).detach()
        with Bounded(state.shape) as bounded:
            state = scheduler.step(prediction, t, state).prev_sample
        found.append(bounded.last)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_x0_is_the_one_that_the_solver_bounded():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    network.forward = lambda x, t=None: 30 * torch.nn.Conv2d.forward(network, x)
    seen = set()
    for name, scheduler in limited_schedulers():
        try:
            expected = sampled(network, scheduler)
        except (KeyError, RuntimeError, TypeError):  # it fails by itself, or wants an image that is kept
            continue
        with record(SimpleNamespace(network=network, scheduler=scheduler), [Samples(measures=())]) as recording:
            sampled(network, scheduler)
        values = recording.profile["x0"].values
        assert "_threshold_sample" not in vars(scheduler)
        if None in expected:  # an option that is not used
            assert np.abs(values).max() > 5, name
            continue
        np.testing.assert_allclose(values, torch.stack(expected).numpy(), atol=1e-6, err_msg=name)
        assert np.abs(values).max() == pytest.approx(1), name
        seen.add(name)
    assert {"DEISMultistepScheduler", "CMStochasticIterativeScheduler", "DPMSolverSinglestepScheduler"} < seen
    assert len(seen) > 15


def halved(pipe, step, timestep, tensors):
    return {"latents": tensors["latents"] / 2}


@pytest.mark.parametrize("name", ["stable-diffusion, inpainting by blending", "stable-diffusion"])
def test_the_final_sample_is_what_the_loop_ends_with(name):
    entry = replace(ZOO[name], call={**ZOO[name].call, "callback_on_step_end": halved})
    pipe = entry.make()
    with record(pipe, [Samples(x0=False, measures=(), steps=-1)]) as recording:
        result = run(pipe, entry)
    assert "progress_bar" not in vars(pipe)
    assert np.array_equal(recording.profile["final_sample"].values, result)


@pytest.mark.parametrize(("callback", "is_told"), [(halved, False), (None, True)])
def test_a_final_sample_that_nobody_can_read_is_left_out(callback, is_told):
    entry = ZOO["stable-diffusion"]
    entry = replace(entry, call={**entry.call, "callback_on_step_end": callback})
    pipe = entry.make()
    pipe.progress_bar = lambda total: nullcontext(SimpleNamespace(update=lambda: None))
    with record(pipe, [Samples(x0=False, measures=(), steps=-1)]) as recording:
        result = run(pipe, entry)
    assert ("final_sample" in recording.profile) is is_told
    if is_told:
        assert np.array_equal(recording.profile["final_sample"].values, result)
