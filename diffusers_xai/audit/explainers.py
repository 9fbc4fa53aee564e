"""The explanations that are graded: those of the package, the controls, and any function of the user's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_xai.analysis.structure import edge_strength
from diffusers_xai.audit.case import Case
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.explainers import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    GradientAttention,
    GradientEnergy,
    GradientMaps,
)
from diffusers_xai.measures import max_channel
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.taps import edit_output, tap_output


Explain = Callable[[Case], torch.Tensor]
PROBES = 12
NO_ATTENTION = "no closed form has attention"


@dataclass(frozen=True)
class Explainer:
    """An explanation, and what it claims to tell.

    Args:
        name (`str`): What the table calls it.
        explain (`Callable`): Takes a [`Case`], returns a map `(batch, height, width)` of how much each place of x_t
            matters, not negative, of its own size, up to the samples'; or an attribution `(batch, channel, height,
            width)`, by how much each value contributes to the answer.
        of_label (`bool`): It returns instead how x̂_0 would change at each place, `(batch, height, width)`, signed, if
            the label went towards the other one.
        exact (`Callable`, *optional*): The same of a denoiser whose answer is known, in closed form; if `None`, it
            is to agree with the energy of the gradient of x̂_0.
        of_x0 (`Callable`, *optional*): What is compared with `exact`, where it reads a layer that a closed form has
            not: the same method, asked of the one layer that it has, `x0`.
        why_no_error (`str`): Why a closed form has nothing to compare with; empty where it has.
    """

    name: str
    explain: Explain
    of_label: bool = False
    exact: Explain | None = None
    of_x0: Explain | None = None
    why_no_error: str = ""


def gradient(case: Case) -> torch.Tensor:
    """The gradient of the answer by every value of x_t, by one backward pass."""
    leaf = case.sample.detach().clone().requires_grad_()
    with torch.enable_grad():
        (result,) = torch.autograd.grad(case.answer(case.predict_x0(leaf)).sum(), leaf)
    return result


def exact_gradient(case: Case) -> torch.Tensor:
    """[`gradient`] of a denoiser whose answer is known."""
    direction = torch.as_tensor(case.mask).expand(1, 1, *case.sample.shape[1:])
    return _jacobian_product(case, direction)[:, 0]


def gradient_energy(case: Case) -> torch.Tensor:
    """The package's [`GradientEnergy`] of the noise."""
    profile = case.record(GradientEnergy(mask=case.mask, of="noise", probes=PROBES, steps=[0]))
    return torch.from_numpy(profile["gradient_energy"].values[0])


def exact_noise_energy(case: Case) -> torch.Tensor:
    """[`gradient_energy`] of a denoiser whose answer is known: ε = (x_t − √ᾱ x̂_0) / √(1 − ᾱ)."""
    directions = _pixels(case)
    rows = directions - case.alpha**0.5 * _jacobian_product(case, directions)
    return _energy(rows / (1 - case.alpha) ** 0.5)


def clean_energy(case: Case) -> torch.Tensor:
    """The same of x̂_0: root of the sum of the squared gradients of the mask's pixels, by random projections."""
    leaf = case.sample.detach().clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros(len(leaf), *case.mask.shape)
    with torch.enable_grad():
        x0 = case.predict_x0(leaf).sum(1)
        for _ in range(PROBES):
            signs = 2.0 * torch.randint(2, case.mask.shape, generator=generator) - 1
            weights = (signs * torch.as_tensor(case.mask)).to(x0).expand_as(x0)
            (row,) = torch.autograd.grad(x0, leaf, weights, retain_graph=True)
            squares += row.sum(1).square().cpu() / PROBES
    return squares.sqrt()


def exact_clean_energy(case: Case) -> torch.Tensor:
    """[`clean_energy`] of a denoiser whose answer is known, over all pixels of the mask."""
    return _energy(_jacobian_product(case, _pixels(case)))


def label_sensitivity(case: Case) -> torch.Tensor:
    """The derivative of x̂_0, its colours summed, by the label on its way to the other one.

    It is the package's `label_sensitivity` of all pixels at once, along one direction: by a vector-Jacobian product
    that is differentiated once more.
    """
    embedding = case.pipe.unet.class_embedding
    ends: list[torch.Tensor] = []
    for label in (case.label, case.other_label):
        with torch.no_grad(), tap_output(embedding, ends.append):
            case.predict_x0(label=label)
    leaf = ends[0].detach().clone().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), edit_output(embedding, lambda _: leaf):
        x0 = case.predict_x0().sum(1)
        weights = torch.zeros_like(x0, requires_grad=True)
        (pulled,) = torch.autograd.grad(x0, leaf, weights, create_graph=True)
        (derivative,) = torch.autograd.grad(pulled, weights, ends[1] - ends[0])
    return derivative


def exact_label_sensitivity(case: Case) -> torch.Tensor:
    """[`label_sensitivity`] of a mixture: towards the other label's own prediction, by its share of the likelihood."""
    model: Any = case.pipe.unet
    now, other = (case.predict_x0(label=label).sum(1) for label in (case.label, case.other_label))
    ratio = model.label_posterior(case.sample, case.timestep) / model.class_embedding.shares
    return (ratio[:, case.other_label] / ratio[:, case.label])[:, None, None] * (other - now)


def gradient_map(layer: str) -> Explain:
    """The package's [`GradientMaps`] of a layer: the norm over its channels."""

    def explain(case: Case) -> torch.Tensor:
        profile = case.record(GradientMaps(layer, mask=case.mask, of="noise", steps=[0]))
        values = torch.from_numpy(profile[f"gradient_maps/{layer}"].values[0])
        return values.square().sum(1).sqrt()

    return explain


def gradient_attention(layer: str) -> Explain:
    """The package's [`GradientAttention`] of a layer, the score being the answer."""

    def explain(case: Case) -> torch.Tensor:
        profile = case.record(GradientAttention(layer, mask=case.mask, steps=[0]))
        return torch.from_numpy(profile[f"gradient_attention/{layer}"].values[0])

    return explain


def exact_gradient_map(case: Case) -> torch.Tensor:
    """[`gradient_map`] of x̂_0 as a layer: of ε = (x_t − √ᾱ x̂_0) / √(1 − ᾱ), in the mask's pixels and nowhere else."""
    size = (case.sample.shape[1] * case.alpha / (1 - case.alpha)) ** 0.5  # the norm over the channels
    return size * torch.as_tensor(case.mask).double().expand(len(case.sample), -1, -1)


def exact_gradient_attention(case: Case) -> torch.Tensor:
    """[`gradient_attention`] of x̂_0 as a layer: each channel weighs as much as the mask is of the image."""
    return (case.mask.mean() * _exact_x0(case).sum(1)).relu()


def max_channel_map(layer: str) -> Explain:
    """The package's map of the channel c* of a layer that is most active within the mask, above its minimum."""

    def explain(case: Case) -> torch.Tensor:
        values = torch.from_numpy(case.record(Activations(layer, steps=[0]))[f"activations/{layer}"].values[0])
        best = max_channel(values, mask=case.mask)
        return _above_minimum(values[torch.arange(len(values)), best].float())

    return explain


def exact_max_channel_map(case: Case) -> torch.Tensor:
    """[`max_channel_map`] of x̂_0 as a layer."""
    x0 = _exact_x0(case)
    best = (x0 * torch.as_tensor(case.mask)).sum((2, 3)).argmax(1)
    return _above_minimum(x0[torch.arange(len(x0)), best])


def attention_weights(layer: str) -> Explain:
    """The package's [`AttentionWeights`] of the region's pixels, mean over them and the heads."""

    def explain(case: Case) -> torch.Tensor:
        pixels = [(int(row), int(column)) for row, column in np.argwhere(case.mask)]
        profile = case.record(AttentionWeights(layers=layer, relation="image_to_image", pixels=pixels, steps=[0]))
        values = profile[f"attention_weights_image_to_image/{layer}"].values[0]
        return torch.from_numpy(values).float().mean((1, 2))

    return explain


def attention_outputs(case: Case) -> torch.Tensor:
    """The package's A_t, above its minimum."""
    values = case.record(AttentionOutputs(steps=[0]))["attention_outputs"].values[0]
    return _above_minimum(torch.from_numpy(values))


def edges(case: Case) -> torch.Tensor:
    """The negative control: the edges of the finished image, whatever the model."""
    return torch.from_numpy(edge_strength(case.images.cpu().numpy())).float()


def nearness(case: Case) -> torch.Tensor:
    """How near a place is to the mask: the trivial answer to where a region looks, without any model."""
    near = np.exp(-distance_transform_edt(~case.mask) / (min(case.mask.shape) / 8))
    return torch.from_numpy(near).float().expand(len(case.sample), -1, -1)


EDGES = Explainer("edges of the image (control)", edges)
NEARNESS = Explainer("nearness to the region (no model)", nearness)
GRADIENT = Explainer("gradient", gradient, exact=exact_gradient)


def package_explainers(pipe: XAIPipeline) -> list[Explainer]:
    """What the package shows of a model, as far as the model has it."""
    denoiser = get_denoiser(pipe)
    found = [
        GRADIENT,
        Explainer("gradient energy of x̂_0", clean_energy, exact=exact_clean_energy),
        Explainer("gradient energy of ε", gradient_energy, exact=exact_noise_energy),
    ]
    layers = list(denoiser.attention_outputs())
    if layers:
        chosen = list(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]]))
        for kind, make, exact in (
            ("gradient map", gradient_map, exact_gradient_map),
            ("gradient attention", gradient_attention, exact_gradient_attention),
            ("c* map", max_channel_map, exact_max_channel_map),
        ):
            found += [
                Explainer(f"{kind} {denoiser.short_name(path)}", make(path), exact=exact, of_x0=make("x0"))
                for path in chosen
            ]
        found.append(Explainer("attention outputs A_t", attention_outputs, why_no_error=NO_ATTENTION))
    found += [
        Explainer(f"attention weights {denoiser.short_name(path)}", attention_weights(path), why_no_error=NO_ATTENTION)
        for path in list(denoiser.softmax_attention())[-1:]
    ]
    if getattr(pipe.unet, "class_embedding", None) is not None:
        found.append(Explainer("label sensitivity", label_sensitivity, of_label=True, exact=exact_label_sensitivity))
    return found


def _pixels(case: Case) -> torch.Tensor:
    """For every pixel of the mask the image that is one there in all colours, `(1, pixel, channel, height, width)`."""
    rows, columns = (torch.from_numpy(index) for index in np.nonzero(case.mask))
    images = torch.zeros(1, len(rows), *case.sample.shape[1:])
    images[0, torch.arange(len(rows)), :, rows, columns] = 1
    return images


def _jacobian_product(case: Case, directions: torch.Tensor) -> torch.Tensor:
    model: Any = case.pipe.unet
    labels = {} if case.label is None else {"class_labels": case.labels(case.label, len(case.sample))}
    return model.jacobian_product(case.sample, case.timestep, directions, **labels)


def _exact_x0(case: Case) -> torch.Tensor:
    """The mean of x_0 given x_t, as the closed form has it."""
    model: Any = case.pipe.unet
    return model.predict_x0(case.sample, case.timestep, case.labels(case.label, len(case.sample)))


def _energy(rows: torch.Tensor) -> torch.Tensor:
    return rows.sum(2).square().sum(1).sqrt()


def _above_minimum(maps: torch.Tensor) -> torch.Tensor:
    return maps - maps.amin((1, 2), keepdim=True)
