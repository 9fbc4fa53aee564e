"""Gradients against `torch.autograd.functional.jacobian`, finite differences and the thesis's pixel loop."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from diffusers_xai import (
    Activations,
    ConvNextUNet2DModel,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
    record,
)
from tests.explainers.gradients import make, run
from tests.reference import article_unet, pixel_loop
from tests.tiny import convnext_unet, make_pipeline, unet_2d


PIXELS = [(0, 0), (3, 12), (9, 7), (15, 15)]
SCHEDULERS = {
    "ddpm": lambda **kw: DDPMScheduler(clip_sample=False, **kw),
    "ddim": lambda **kw: DDIMScheduler(clip_sample=False, **kw),
    "dpm": DPMSolverMultistepScheduler,
    "heun": HeunDiscreteScheduler,
}


def ddpm_mean(pipe, x, t, previous_t, model_output):
    """μ_θ of DDPM (Ho et al. 2020, eq. 7) from ε, v or x̂_0, in float64, without clipping."""
    # The scheduler's own table in single precision: 1 − ᾱ at t = 0 hangs on its last bits.
    alpha_bars = pipe.scheduler.alphas_cumprod.double()
    ab = alpha_bars[t]
    ab_previous = alpha_bars[previous_t] if previous_t >= 0 else torch.tensor(1.0, dtype=torch.float64)
    kind = pipe.scheduler.config.prediction_type
    x0 = {
        "epsilon": lambda o: (x - (1 - ab) ** 0.5 * o) / ab**0.5,
        "v_prediction": lambda o: ab**0.5 * x - (1 - ab) ** 0.5 * o,
        "sample": lambda o: o,
    }[kind](model_output)
    alpha = ab / ab_previous
    return (ab_previous**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - ab_previous) * x) / (1 - ab)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_volume_of_the_step_equals_the_jacobian(prediction_type, guidance_scale):
    pipe = make(scheduler=DDPMScheduler(clip_sample=False, prediction_type=prediction_type))
    specs = [Samples(), GradientVolume(pixels=PIXELS, channels="separate")]
    profile = run(pipe, specs, guidance_scale=guidance_scale).profile
    volume, sensitivity = profile["gradient_volume"], profile["label_sensitivity"]
    assert volume.dims == ("step", "sample", "pixel", "channel", "height", "width")
    assert list(zip(volume.row.values, volume.column.values, strict=True)) == PIXELS

    unet, timesteps = pipe.unet, [666, 333, 0]

    def mean(x, channels, step):
        """The mean at the chosen pixels, colours summed, as a function of x_t and of the label channels."""

        def denoise(label_channels):
            hooked = unet.class_embedding.register_forward_hook(lambda *args: label_channels)
            out = unet(x, timesteps[step], torch.tensor([5])).sample
            hooked.remove()
            return out

        output = denoise(channels)
        if guidance_scale != 1:
            uncond = denoise(torch.full_like(channels, -1.0))
            output = uncond + guidance_scale * (output - uncond)
        previous = timesteps[step] - 333  # the spacing of three steps
        summed = ddpm_mean(pipe, x, timesteps[step], previous, output)[0].sum(0)
        return torch.stack([summed[r, c] for r, c in PIXELS])

    for step in range(3):
        x = torch.from_numpy(profile["samples"].sel(step=step).values)
        channels = torch.full((1, 1, 16, 16), 5.0)
        jacobian_x, jacobian_y = torch.autograd.functional.jacobian(partial(mean, step=step), (x, channels))
        expected = jacobian_x[:, 0].numpy()
        np.testing.assert_allclose(
            volume.sel(step=step).values[0], expected, rtol=1e-5, atol=1e-5 * abs(expected).max()
        )
        expected = jacobian_y[:, 0].numpy()
        recorded = sensitivity.sel(step=step).values[0]
        np.testing.assert_allclose(recorded, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


def test_volume_equals_the_thesis_pixel_loop():
    """Listing C.3, one backward pass per pixel through an independent evaluation of the network."""
    state = {k: w.requires_grad_() for k, w in article_unet.random_state(dim=8, multipliers=(1, 2)).items()}
    pipe = make(ConvNextUNet2DModel.from_annotated({k: w.detach() for k, w in state.items()}, sample_size=16))
    mask = np.zeros((16, 16), bool)
    mask[5:7, 3:6] = True
    profile = record_one_step_of_a_thousand(pipe, mask)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bars = torch.cumprod(1 - betas, 0)
    t = int(profile["gradient_volume"].timestep.item())
    x = torch.from_numpy(profile["samples"].sel(step=profile["gradient_volume"].step.item()).values)
    channel = torch.full((1, 1, 16, 16), 3.0)
    volume = pixel_loop.gradient_volume(
        lambda x, t: article_unet.forward(state, x, t),
        torch.cat([x, channel], 1),
        torch.tensor([t]),
        betas[t].item(),
        1 - betas[t].item(),
        alpha_bars[t].item(),
        np.flatnonzero(mask),
    )
    recorded = profile["gradient_volume"].values[0, 0]
    np.testing.assert_allclose(recorded, volume[:, :3].sum(1).numpy(), rtol=1e-4, atol=1e-6)
    recorded = profile["label_sensitivity"].values[0, 0, :, 0]
    np.testing.assert_allclose(recorded, volume[:, 3].numpy(), rtol=1e-4, atol=1e-6)


def record_one_step_of_a_thousand(pipe, mask):
    """The listing's coefficients are those of the full schedule, which is stopped after the recorded step."""

    def stop(pipeline, step, timestep, tensors):
        if step == 2:
            raise KeyboardInterrupt

    specs = [Samples(steps=[1], measures=()), GradientVolume(mask=mask, steps=[1])]
    with pytest.raises(KeyboardInterrupt), record(pipe, specs) as recording:
        pipe(3, generator=torch.Generator().manual_seed(0), callback_on_step_end=stop)
    return recording.profile


def test_volume_equals_finite_differences_in_double_precision():
    pipe = make(convnext_unet().double())
    specs = [Samples(steps=1), GradientVolume(pixels=PIXELS, steps=1, of="noise", dtype="float64")]
    profile = run(pipe, specs).profile
    x = torch.from_numpy(profile["samples"].values[0])
    volume = profile["gradient_volume"].values[0, 0]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        direction = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64).expand(-1, 3, -1, -1)
        h = 1e-5
        with torch.no_grad():
            up, down = (pipe.unet(x + s * h * direction, 333, torch.tensor([5])).sample[0].sum(0) for s in (1, -1))
        derivative = ((up - down) / (2 * h)).numpy()
        # The directional derivative along the same change of all colours is the volume against that change.
        expected = [derivative[r, c] for r, c in PIXELS]
        np.testing.assert_allclose((volume * direction[0, 0].numpy()).sum((1, 2)), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_volume_of_the_step_holds_for_any_scheduler(scheduler, prediction_type):
    """Against central differences of the recorded run itself: the next state for a perturbed state."""
    pipe = make(convnext_unet().double(), SCHEDULERS[scheduler](prediction_type=prediction_type))
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    specs = [Samples(measures=()), GradientVolume(pixels=PIXELS, steps=0, dtype="float64")]

    def states(start):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            5, sample=start, generator=generator, num_inference_steps=3, record=specs, output_type="np"
        ).profile

    profile = states(noise)
    volume = profile["gradient_volume"].values[0, 0]
    direction = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # DPM-Solver computes in single precision whatever it is given.
    h, tolerance = (1e-3, 2e-3) if scheduler == "dpm" else (1e-5, 1e-7)
    up, down = (states(noise + sign * h * direction)["samples"].values[1, 0].sum(0) for sign in (1, -1))
    scale = float(pipe.scheduler.init_noise_sigma)  # the start is scaled before the first step
    derivative = (up - down) / (2 * h * scale)
    expected = np.array([derivative[r, c] for r, c in PIXELS])
    np.testing.assert_allclose((volume * direction[0, 0].numpy()).sum((1, 2)), expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("name", ["xai", "ddpm", "ddim", "stable_diffusion"])
def test_volume_of_the_noise_in_any_pipeline(name):
    pipe, sample = make_pipeline(name)
    calls = []
    pipe.unet.register_forward_pre_hook(
        lambda m, args, kwargs: None if calls else calls.append((args, kwargs)), with_kwargs=True
    )
    plain = sample().images
    calls.clear()
    size = pipe.unet.config.sample_size
    with record(pipe, [GradientVolume(pixels=[(2, 5), (7, 0)], of="noise", steps=0)]) as recording:
        images = sample().images
    assert np.array_equal(images, plain)
    args, kwargs = calls[0]
    volume = recording.profile["gradient_volume"]

    def output(x):
        summed = pipe.unet(x, *args[1:], **kwargs)[0].sum(1)
        return torch.stack([summed[:, 2, 5], summed[:, 7, 0]], 1)

    jacobian = torch.autograd.functional.jacobian(output, args[0])
    rows = args[0].shape[0]
    expected = torch.stack([jacobian[b, :, b].sum(1) for b in range(rows)]).numpy()  # colours summed
    if name == "stable_diffusion":
        assert volume.dims == ("step", "sample", "branch", "pixel", "height", "width")
        expected = expected.reshape(2, 2, 2, size, size).swapaxes(0, 1)
    np.testing.assert_allclose(volume.values[0], expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_gradients_leave_the_run_and_the_parameters_alone():
    pipe = make()
    parameter = next(pipe.unet.parameters())
    parameter.grad = torch.full_like(parameter, 7.0)
    random_state = torch.random.get_rng_state()
    specs = [
        GradientVolume(pixels=PIXELS),
        GradientMaps(layers="mid_attn.fn"),
        Activations(layers="mid_attn.fn"),
        Samples(),
    ]
    plain = run(pipe, None)
    recorded = run(pipe, specs)
    assert np.array_equal(plain.images, recorded.images)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert torch.equal(parameter.grad, torch.full_like(parameter, 7.0))
    assert all(p.grad is None for p in list(pipe.unet.parameters())[1:])
    # The replay is no part of the run: activations are recorded once per step.
    assert recorded.profile["activations/mid_attn.fn"].shape[0] == 3


def test_gradients_work_under_inference_mode():
    pipe = make()
    expected = run(pipe, [GradientVolume(pixels=PIXELS)]).profile["gradient_volume"]
    with torch.inference_mode():
        profile = run(pipe, [GradientVolume(pixels=PIXELS)]).profile
    np.testing.assert_allclose(profile["gradient_volume"].values, expected.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", ["step", "noise"])
def test_energy_estimate_lies_within_its_error(of):
    pipe = make()
    mask = np.zeros((16, 16), bool)
    mask[4:10, 4:12] = True
    exact = run(pipe, [GradientVolume(mask=mask, steps=1, of=of)]).profile["gradient_volume"].values[0, 0]
    energy = np.sqrt((exact.astype(np.float64) ** 2).sum(0))
    profile = run(pipe, [GradientEnergy(mask=mask, steps=1, of=of, probes=400)]).profile
    estimate, error = (profile[name].values[0, 0] for name in ("gradient_energy", "gradient_energy_error"))
    relevant = energy > 1e-3 * energy.max()
    z = (estimate - energy)[relevant] / error[relevant]
    assert np.median(np.abs(estimate - energy)[relevant] / energy[relevant]) < 0.06  # √(1/800) = 3.5 %
    assert 0.6 < z.std() < 1.5
    assert abs(z.mean()) < 0.5
    np.testing.assert_allclose(np.median(error[relevant] / energy[relevant]), (1 / 800) ** 0.5, rtol=0.3)


def test_every_step_has_random_signs_of_its_own():
    """A network that is the same convolution at every t: only the signs make its estimates differ."""

    class Blur(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blur = torch.nn.Conv2d(3, 3, 5, padding=2)

        def forward(self, x, t):
            return self.blur(x)

    torch.manual_seed(0)
    own = SimpleNamespace(network=Blur(), scheduler=DDIMScheduler(clip_sample=False))
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    with torch.no_grad(), record(own, [GradientEnergy(mask=mask, of="noise", probes=8)]) as recording:
        own.scheduler.set_timesteps(3)
        x = torch.randn(1, 3, 8, 8)
        for t in own.scheduler.timesteps:
            x = own.scheduler.step(own.network(x, t), t, x).prev_sample
    first, *others = recording.profile["gradient_energy"].values
    for other in others:
        assert np.abs(other - first).max() > 0.05 * first.max()


def test_gradients_see_what_was_ablated():
    pipe = make()
    volumes = []
    for hook in (False, True):
        handle = pipe.unet.mid_block.register_forward_hook(lambda m, a, out: out * 0) if hook else None
        volumes.append(run(pipe, [GradientVolume(pixels=PIXELS, steps=0)]).profile["gradient_volume"].values)
    handle.remove()
    assert not np.allclose(*volumes)


def test_dtype_is_that_of_storage():
    profile = run(make(), [GradientVolume(pixels=PIXELS, steps=0, dtype="float16")]).profile
    assert profile["gradient_volume"].dtype == np.float16


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: GradientVolume(mask=np.zeros((16, 16), bool)), "at least one True pixel"),
        (lambda: GradientVolume(mask=np.ones((16, 16))), "dtype bool, got"),
        (lambda: GradientVolume(mask=np.ones((8, 8), bool)), r"\(16, 16\), got \(8, 8\)"),
        (lambda: GradientVolume(pixels=[(16, 0)]), r"within \(16, 16\), got \(16, 0\)"),
        (lambda: GradientVolume(pixels=[3]), "pairs of integers"),
        (lambda: GradientVolume(mask=np.ones((16, 16), bool), pixels=[(0, 0)]), "got both"),
        (lambda: GradientVolume(of="image"), "'image'"),
        (lambda: GradientVolume(channels="mean"), "'mean'"),
        (lambda: GradientEnergy(probes=1), "2 `probes`"),
        (lambda: GradientVolume(chunk_size=0), "chunk_size"),
        (lambda: GradientMaps(layers="mid_block", mask=np.ones((8, 8), bool)), r"got \(8, 8\)"),
        (lambda: [GradientVolume(pixels=[(0, 0)]), GradientVolume(pixels=[(1, 0)])], "one per profile"),
    ],
)
def test_bad_requests_are_refused_before_sampling(spec, message):
    pipe = make()
    pipe.unet.conv_in.register_forward_hook(lambda *args: pytest.fail("the denoiser ran"))

    def request():
        specs = spec()
        run(pipe, specs if isinstance(specs, list) else [specs])

    with pytest.raises(ValueError, match=message):
        request()


def test_step_gradients_of_a_guided_pipeline_of_others_have_its_guidance_in_them():
    pipe, sample = make_pipeline("stable_diffusion")
    calls = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with record(pipe, [GradientVolume(pixels=[(2, 5)], steps=1)]) as recording:
        sample(num_inference_steps=3)
    handle.remove()
    (stacked, t), kwargs = calls[1]
    x = stacked[:2].clone().requires_grad_()
    uncond, cond = pipe.unet(torch.cat([x, x]), t, **{**kwargs, "return_dict": False})[0].chunk(2)
    mean = pipe.scheduler.step(uncond + 3.0 * (cond - uncond), t, x).prev_sample
    (expected,) = torch.autograd.grad(mean[:, :, 2, 5].sum(), x)
    got = recording.profile["gradient_volume"].values[0, :, 0]
    np.testing.assert_allclose(got, expected.sum(dim=1).numpy(), rtol=1e-3, atol=1e-5)


def test_embedded_conditions_have_a_sensitivity_by_their_embedding():
    pipe = make(unet_2d(num_class_embeds=4))
    profile = run(pipe, [GradientVolume(pixels=PIXELS, steps=0)], label=2).profile
    assert profile["label_sensitivity"].dims == ("step", "sample", "pixel", "channel")
    assert profile["label_sensitivity"].shape == (1, 1, 4, 32)


@pytest.mark.parametrize("of", ["noise", "x0", "step"])
def test_without_any_signal_gradients_are_finite_or_refused_by_name(of):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    spec = GradientVolume(pixels=[(3, 4)], of=of, steps=0, channels="separate")

    def volume(kind):
        pipe = DDIMPipeline(unet_2d(), DDIMScheduler(prediction_type=kind, **settings))
        with record(pipe, [spec]) as recording:
            pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0))
        array = recording.profile["gradient_volume"].isel(step=0, sample=0, pixel=0)
        assert np.isinf(array.sigma)
        return array.values, pipe

    values, pipe = volume("v_prediction")
    state = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (of_v,) = torch.autograd.grad(pipe.unet(state, 999).sample[0, :, 3, 4].sum(), state)
    of_state = torch.zeros(3, 16, 16)
    of_state[:, 3, 4] = 1
    alpha = pipe.scheduler.alphas_cumprod[666]  # x̂_0 = -v, ε = x_t
    step = -alpha.sqrt() * of_v[0] + (1 - alpha).sqrt() * of_state
    expected = {"noise": of_state, "x0": -of_v[0], "step": step}[of]
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)
    if of == "noise":
        assert np.isfinite(volume("epsilon")[0]).all()
    else:  # it would be divided by a signal of zero
        with pytest.raises(FloatingPointError, match="expected finite gradients"):
            volume("epsilon")
