"""Along which directions the prediction and an inner layer answer the state, how many there are, and what they do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from diffusers_xai.analysis.singular import Jacobian, most_products
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, register
from diffusers_xai.experiments.direction_figures import plot, plot_images, table
from diffusers_xai.experiments.direction_walks import IN_LAYER, SIGNS, effects, ways_of
from diffusers_xai.experiments.jacobians import (
    CLEAN,
    ITERATIONS,
    LAYER,
    PROBES,
    Spectra,
    Spectrum,
    clean_image,
    middle_layer,
    moments,
)
from diffusers_xai.experiments.judging import Judge, named_attributes, probabilities
from diffusers_xai.experiments.nulls import Null, null_pipeline
from diffusers_xai.experiments.pushes import Push, pushed_images
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.explainers import Samples
from diffusers_xai.measures import Mask, as_mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.recording.replay import frozen
from diffusers_xai.taps.probe import shortest_time


RIGHT = ("seed", "object", "step", "direction", "rgb", "height", "width")


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    input_mask: Mask | None = None,
    layer: str | None = None,
    count: int = 8,
    walked: int = 3,
    strength: float = 0.1,
    judge: Judge | None = None,
    null: Null = "gaussian",
) -> xr.Dataset:
    """The leading singular triplets of ∂x̂_0/∂x_t and ∂h/∂x_t at four moments, and where steps along them lead.

    x_t is pushed once along a right singular vector v, or the layer's output h along a left one u, and the run goes on
    to its image with the same noise. A push of x_t has the norm `strength · |x_t|`; one of h is what that push does to
    h to first order, σ times as much. Controls are pushes of the same norm along random orthonormal directions, and
    along the leading directions of the control's own x̂_0: of Gaussians fitted to the model's samples, these are what
    pixels that covary give without any network.

    The local dimension is (Σσ²)² / Σσ⁴ over all singular values, see `local_dimension`.

    Source: METHOD, section 11; Voynov and Babenko 2020; Haas et al. 2023, *Discovering Interpretable Directions in the
    Semantic Latent Space of Diffusion Models*.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled, by two steps at least.
        mask (`(height, width)` bool, *optional*): The pixels of x̂_0 that are asked about; all if `None`.
        input_mask (`(height, width)` bool, *optional*): The pixels of x_t that may be moved; all if `None`.
        layer (`str`, *optional*): Name of the layer h, one that puts out maps; the middle block if `None`.
            A network without such a block has no h then.
        count (`int`): How many triplets, at most as many as the image has values.
        walked (`int`): Along how many of them to go.
        strength (`float`): Norm of a push as a share of the norm of x_t, above 0.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes in images `(image,
            channel, height, width)` in [-1, 1], as a tensor `(image, attribute)`.
        null (`str` or [`XAIPipeline`]): `"gaussian"`, `"random-weights"`, a pipeline, or `"none"`.

    Returns:
        `xarray.Dataset`: `values` and `residual` (seed, object, step, rank), `dimension` (seed, object, step),
        the objects being x̂_0 (`"x0"`) and `"h"`, and the control's as `null_values` and `null_dimension`. `change`
        (seed, walk, step, direction): root mean square change of the final image, of both signs together, and
        `inside`, its square's share within the mask, with one. With a judge `judged` (seed, walk, step, direction,
        sign, attribute) and `judged_intact`. Of the first seed `right` (object, step, direction, rgb, height, width),
        the directions in x_t, `images` (walk, step, direction, sign, rgb, height, width) and `intact`. `products`
        (seed): how many products with a Jacobian it took.

    Raises:
        ValueError: For numbers that do not fit, or a layer without maps.
        KeyError: If there is no such layer.
    """
    if sampling.steps < 2:
        raise ValueError(f"Expected at least two steps, the state being pushed after the first, got {sampling.steps}")
    if strength <= 0 or not 1 <= walked <= count:
        raise ValueError(
            f"Expected strength above 0 and walked in 1..count, got {strength}, {walked} and count {count}"
        )
    attributes = [] if judge is None else named_attributes(pipe)
    path = middle_layer(pipe, layer)
    seen, moved = (None if part is None else as_mask(part, pipe.sample_shape[-2:]) for part in (mask, input_mask))
    weights = [None if part is None else torch.from_numpy(part) for part in (moved, seen)]
    other = null_pipeline(null, pipe, sampling)
    steps = moments(pipe, sampling)
    objects = {CLEAN: None} if path is None else {CLEAN: None, LAYER: path}
    spectra = Spectra(sampling, steps, objects, count, inputs=weights[0], outputs=weights[1])

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(steps=steps, measures=())])
        states = torch.from_numpy(profile["samples"].values).to(pipe.device)
        sizes = strength * states.flatten(2).double().norm(dim=2)
        before, own = spectra.products, spectra.of(pipe, states)
        theirs = {} if other is None else spectra.of(other, states)
        data = _numbers(own, list(objects))
        if theirs:
            data = data.assign({f"null_{name}": array for name, array in _numbers(theirs, list(objects)).items()})
        right = [torch.stack([x.triplets.right[:, :walked] for x in own[name]], 1) for name in objects]
        data["right"] = RIGHT, torch.stack(right, 1).unflatten(-1, states.shape[2:]).cpu().numpy()
        data["products"] = "seed", [spectra.products - before] * len(part)
        walks = []
        for index, seed in enumerate(part):
            pushes: list[Push | None] = [None]
            ways = ways_of(own, theirs, index, walked, seed, weights[0])
            for name, by_moment in ways.items():
                where = path if name in IN_LAYER else None
                for step, size, directions in zip(steps, sizes[:, index], by_moment, strict=True):
                    pushes += [Push(step, sign * size * v, where) for v in directions for sign in SIGNS]
            images = pushed_images(pipe, sampling, seed, pushes)
            told = None if judge is None else probabilities(judge, images, pipe)
            walks.append(effects(images, (len(ways), len(steps), walked), seen, told))
        coords: dict[str, Any] = {"step": steps, "object": list(objects), "walk": list(ways)}
        coords["timestep"] = "step", profile["samples"]["timestep"].values
        if judge is not None:
            coords["attribute"] = attributes
        return data.assign(xr.concat(walks, "seed").data_vars).assign_coords(coords)

    at_once, pictures = max(1, sampling.batch_size // count), ["right", "images", "intact"]
    data = sampling.over_seeds(measure_batch, "directions", seeds_at_once=at_once, of_first=pictures)
    if seen is not None:
        data["mask"] = ("height", "width"), seen
    name = "" if path is None else get_denoiser(pipe).short_name(path)
    return data.assign_attrs(layer=name, strength=strength)


def _numbers(spectra: Mapping[str, Sequence[Spectrum]], objects: Sequence[str]) -> xr.Dataset:
    """Singular values, residuals and dimension; NaN of an object that a control has not."""
    parts: dict[str, list[torch.Tensor]] = {"values": [], "residual": [], "dimension": []}
    for name in objects:
        found = spectra.get(name, spectra[CLEAN])
        factor = 1.0 if name in spectra else math.nan
        parts["values"].append(factor * torch.stack([x.triplets.values for x in found], 1))
        parts["residual"].append(factor * torch.stack([x.triplets.residuals for x in found], 1))
        parts["dimension"].append(factor * torch.stack([x.dimension for x in found], 1))
    dims = ("seed", "object", "step", "rank")
    return xr.Dataset({name: (dims[: p[0].ndim + 1], torch.stack(p, 1).numpy()) for name, p in parts.items()})


def plan(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layer: str | None = None,
    count: int = 8,
    walked: int = 3,
    null: Null = "gaussian",
    **options: Any,
) -> str:
    """What `measure` will cost, in words; a product and a run of the network are timed. Arguments as there."""
    path, steps = middle_layer(pipe, layer), moments(pipe, sampling)
    objects, controls = 1 + (path is not None), int(null != "none")
    of_control = controls if null == "gaussian" else controls * objects  # a Gaussian has no layer
    products = (objects + of_control) * len(steps) * most_products(count, ITERATIONS, PROBES)
    ways = 2 + controls + (3 if path is not None else 0)
    calls = sampling.steps * (2 + 2 * ways * walked * len(steps))
    state = torch.zeros(1, *pipe.sample_shape, device=pipe.device, dtype=pipe.unet.dtype)
    with frozen(pipe.unet):
        function = clean_image(pipe, sampling, steps[0])
        jacobian = Jacobian(function, state, max_rows=sampling.batch_size)
        directions = torch.ones(1, count, state.numel())
        product = shortest_time(lambda: jacobian.push(directions), pipe.device) / count
        rows = state.repeat(count, 1, 1, 1)
        with torch.no_grad():
            call = shortest_time(lambda: function(rows), pipe.device) / count
    seconds = len(sampling.seeds) * (products * product + calls * call)
    return (
        f"at most {products} products with the Jacobian and {calls} calls of the network for each seed, about"
        f" {max(1, math.ceil(seconds / 60))} min in all, beside the control's fit"
    )


register(
    Experiment(
        "directions",
        "Along which directions the image can be pushed",
        "The leading singular triplets of ∂x̂_0/∂x_t, and of ∂h/∂x_t for a layer h in the middle, at four moments."
        " Above: how the singular values fall. Middle: the local dimension, how many directions count, (Σσ²)²/Σσ⁴."
        " Below: by how much the final image changes (root mean square, the image's range being 2) when the state is"
        " pushed once along a direction by a tenth of its norm, on average over three directions and both signs; of a"
        " push in the layer, by what the push of the state would do to it. Grey or dotted: the control. Where"
        " that is Gaussians fitted to the model's own samples, it has the directions that any network would find in"
        " pixels that covary. Random directions of the same norm are drawn beside. Then, of one seed, the directions"
        " and the images that they lead to.",
        "Voynov and Babenko 2020; Haas et al. 2023; beyond the thesis",
        measure,
        plot,
        nulls=("gaussian", "random-weights"),
        seeds=4,
        steps=50,
        runs=150.0,
        region="image",
        judged=True,
        plot_images=plot_images,
        table=table,
        plan=plan,
    )
)
