"""Runs of experiments on tiny networks, and what a plain loop gives in their place."""

import numpy as np
import torch
from skimage.metrics import structural_similarity

from diffusers_xai.experiments import EXPERIMENTS, Sampling


SEEDS = [4, 9, 2]


def states(pipe, label, seed, steps, **options):
    """All states of a run, the result last, by a plain loop of the pipeline's own callback."""
    kept = []
    pipe(
        class_labels=label, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=lambda pipe, i, t, tensors: kept.append(tensors["sample"][0].clone()) or {}, **options,
    )  # fmt: skip
    first = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return [first, *kept]


def ssim(a, b):
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return structural_similarity(a, b, win_size=7, channel_axis=0, data_range=2.0)


def measured(name, pipe, **settings):
    """`settings` are those of `Sampling`, and the experiment's own options."""
    fields = {key: settings.pop(key) for key in Sampling.__dataclass_fields__ if key in settings}
    if EXPERIMENTS[name].nulls[0] == "gaussian":  # which takes a thousand samples
        settings.setdefault("null", "none")
    result = EXPERIMENTS[name].run(pipe, Sampling(**fields), **settings)
    # Thousands of seeds fit into memory: only numbers are kept of each.
    pictures = {"rgb", "height", "width", "map_height", "map_width", "pixel"}
    assert not [key for key, array in result.data.items() if "seed" in array.dims and pictures & set(array.dims)]
    return result


def run(name, pipe, **settings):
    result = measured(name, pipe, **settings)
    for figure in (result.plot(), result.plot_images()):
        assert figure is None or figure.data
    assert len(result.to_dataframe())
    return result


def clean_image_energy(pipe, x, t, label, mask):
    """Root of the summed squares of the gradients of the region's predicted clean image, but for a factor."""
    x = x[None].clone().requires_grad_()
    output = pipe.unet(x, t, class_labels=torch.tensor([label])).sample
    alpha = pipe.scheduler.alphas_cumprod[t]
    clean = {
        "epsilon": (x - (1 - alpha).sqrt() * output) / alpha.sqrt(),
        "sample": output,
        "v_prediction": alpha.sqrt() * x - (1 - alpha).sqrt() * output,
    }[pipe.scheduler.config.prediction_type]
    energy = torch.zeros(x.shape[-2:])
    for row, column in np.argwhere(mask):
        (gradient,) = torch.autograd.grad(clean[0, :, row, column].sum(), x, retain_graph=True)
        energy += gradient[0].square().sum(0)
    return energy.sqrt().numpy()
