"""Runs an audit: every explanation through every test, resumable."""

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DPMSolverMultistepScheduler
from tqdm.auto import tqdm

from diffusers_xai.audit.case import Case, make_cases
from diffusers_xai.audit.explainers import EDGES, GRADIENT, NEARNESS, Explainer, package_explainers
from diffusers_xai.audit.kept import Kept
from diffusers_xai.audit.permuting import check_same_network, trained_on_permuted_labels
from diffusers_xai.audit.result import AuditResult, table_of
from diffusers_xai.audit.scale import CHECKPOINT, CLOSED_FORM
from diffusers_xai.audit.testing import SHARES, Tests
from diffusers_xai.measures import Mask
from diffusers_xai.measures.masks import region_or_middle
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.null import draw_samples, fit_to_samples
from diffusers_xai.prediction import is_flow


_NULL_STEPS = 15


def audit(
    pipe: XAIPipeline,
    explainers: Sequence[Explainer | Callable[[Case], torch.Tensor]] = (),
    *,
    label: int | None = None,
    other_label: int | None = None,
    mask: Mask | None = None,
    seeds: Sequence[int] = range(6),
    timesteps: Sequence[int] = (600, 200),
    steps: int = 50,
    null_samples: int = 256,
    permuted: XAIPipeline | None = None,
    out: str | os.PathLike | None = None,
    bar: Mapping[str, Any] | None = None,
) -> AuditResult:
    """Grades the package's explanations of a model, and the user's, against known truth and controls.

    The question is always the same: how the part of x̂_0 within the mask comes about from x_t (or from the label). The
    control that must fail is an edge detector of the finished image, and the one that must pass the exact gradient of
    a denoiser whose answer is known: see `AuditResult.broken_controls`.

    ```py
    def occlusion(case):
        base = case.answer(case.predict_x0())
        ...  # a map (batch, height, width), or an attribution (batch, channel, height, width)


    print(audit(pipe, [occlusion], label=0b0011, other_label=0b0100, mask=eyes).to_markdown())
    ```

    Args:
        pipe ([`XAIPipeline`]): The model.
        explainers (sequence of [`Explainer`] or functions of a [`Case`]): Graded beside those of the package.
        label (`int`, *optional*): The label of all samples, and
        other_label (`int`, *optional*): another one, which label sensitivity is about; both needed by a conditional
            model.
        mask (array of shape `(height, width)`, bool, *optional*): The part that is asked about; a square in the middle
            if `None`.
        seeds (`Sequence[int]`): A sample for each; what is averaged over, at least three.
        timesteps (`Sequence[int]`): Where in the process; the steps of the schedule nearest to them are taken.
        steps (`int`, defaults to 50): Denoising steps of the samples.
        null_samples (`int`, defaults to 256): Samples that the closed form is fitted to.
        permuted ([`XAIPipeline`], *optional*): The same network, trained on permuted labels from the beginning. If
            `None`, a copy of a model with labels is trained further on those samples, with labels that have changed
            places.
        out (`str` or `os.PathLike`, *optional*): A folder that keeps what is finished, explanation by explanation: the
            same call then continues from there.
        bar (`Mapping`, *optional*): Options of tqdm's bar; by default there is one on terminals alone.

    Returns:
        [`AuditResult`].

    Raises:
        ValueError: If the scheduler, the labels, the mask, the timesteps, the seeds or the permuted network do not
            fit, or an explainer returns neither a map nor an attribution, or one that is not finite; before the work.
        FileExistsError: If `out` holds an audit with other settings.
    """
    if not hasattr(pipe.scheduler, "alphas_cumprod") or is_flow(pipe.scheduler):
        raise ValueError(f"Expected a scheduler with `alphas_cumprod`, got {type(pipe.scheduler).__name__}.")
    mask = region_or_middle(mask, pipe.sample_shape[-2:])
    seeds, timesteps = [int(seed) for seed in seeds], sorted({int(t) for t in timesteps}, reverse=True)
    if len(set(seeds)) < 3 or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected at least three different seeds, got {seeds}.")
    last = pipe.scheduler.config.get("num_train_timesteps", 1000) - 1
    if not timesteps or not 0 <= timesteps[-1] <= timesteps[0] <= last:
        raise ValueError(f"Expected timesteps in 0..{last}, got {timesteps}.")
    takes_labels = pipe.unet.config.get("num_class_embeds") is not None
    if not takes_labels == (label is not None) == (other_label is not None):
        raise ValueError("Expected `label` and `other_label` for a model with labels, and neither for one without.")
    if label is not None and label == other_label:
        raise ValueError(f"Expected two different labels, got {label} twice.")
    if permuted is not None:
        _check_permuted(pipe, permuted)
    own = [entry if isinstance(entry, Explainer) else Explainer(_name(entry), entry) for entry in explainers]
    chosen = [EDGES, NEARNESS, *package_explainers(pipe), *own]
    names = [explainer.name for explainer in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected explainers of different names, got {names}.")
    settings = {
        "checkpoint": str(pipe.config.get("_name_or_path") or ""),
        "label": label,
        "other_label": other_label,
        "mask": mask.astype(int).tolist(),
        "seeds": seeds,
        "timesteps": timesteps,
        "steps": steps,
        "null_samples": null_samples,
        "explanations": names,
        "parameters": _sum_of_parameters(pipe),
        "permuted": None if permuted is None else _sum_of_parameters(permuted),
        "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "torch")},
    }
    kept = Kept(out, settings)
    runs = [(CLOSED_FORM, GRADIENT), *((CHECKPOINT, explainer) for explainer in chosen)]  # controls come first
    left = [(model, explainer) for model, explainer in runs if (model, explainer.name) not in kept.done]
    if left:
        draw = partial(make_cases, pipe, mask=mask, label=label, other_label=other_label)
        _rehearse(draw(seeds=seeds[:1], timesteps=timesteps[-1:], steps=2)[0], chosen)
        stages = 5 if permuted is None and label is not None else 4
        total = stages + len(left)
        with tqdm(total=total, **(bar or {"disable": None})) as progress:
            progress.set_description_str("sampling")
            cases = draw(seeds=seeds, timesteps=timesteps, steps=steps)
            progress.update()
            others = draw(seeds=seeds, timesteps=timesteps, steps=steps, scheduler="DPM-Solver")
            progress.update()
            progress.set_description_str("sampling for the closed form")
            labels = () if label is None or other_label is None else (label, other_label)
            samples = kept.samples(partial(_own_samples, pipe, labels, null_samples, steps))
            progress.update()
            of_samples = [labels[i % 2] for i in range(len(samples))] if labels else None
            known = fit_to_samples(pipe, samples, of_samples).to(pipe.device)
            known.unet.double()  # likelihoods of labels differ by many orders of magnitude
            progress.update()
            meaningless: dict[str, XAIPipeline | None] = {CHECKPOINT: permuted, CLOSED_FORM: None}
            if of_samples is not None:
                meaningless[CLOSED_FORM] = trained_on_permuted_labels(known, samples.double(), of_samples)
                if permuted is None:
                    progress.set_description_str("learning permuted labels")
                    meaningless[CHECKPOINT] = trained_on_permuted_labels(pipe, samples, of_samples)
                    progress.update()
            tests: dict[str, Tests] = {}
            for name, explainer in left:
                progress.set_description_str(explainer.name)
                if name not in tests:
                    model = pipe if name == CHECKPOINT else known
                    tests[name] = Tests(
                        [case.of(model) for case in cases],
                        [case.of(model) for case in others],
                        known,
                        meaningless[name],
                    )
                kept.add((name, explainer.name), tests[name].grade(explainer, beyond=name == CHECKPOINT))
                progress.update()
    curves = [
        {"model": model, "explanation": name, "share": share, "similarity": similarity}
        for (model, name), numbers in kept.done.items()
        for share, similarity in zip(SHARES, np.mean(numbers["similarities"]["values"], (1, 2)), strict=True)
    ]
    return AuditResult(table_of(kept.done), pd.DataFrame(curves), settings, GRADIENT.name, EDGES.name)


def _rehearse(case: Case, explainers: Sequence[Explainer]) -> None:
    shape = case.sample.shape
    largest = (shape[0], *shape[2:])
    for explainer in explainers:
        result = explainer.explain(case)
        shape_of = tuple(result.shape) if isinstance(result, torch.Tensor) else ()
        is_map = len(shape_of) == 3 and all(0 < a <= b for a, b in zip(shape_of, largest, strict=True))
        if shape_of != tuple(shape) and not (is_map and shape_of[0] == shape[0]):
            got = shape_of or type(result).__name__
            raise ValueError(
                f"{explainer.name}: expected a tensor of shape {largest}, with fewer rows and columns, or of"
                f" {tuple(shape)}, got {got}."
            )
        if not result.isfinite().all():
            raise ValueError(f"{explainer.name}: expected finite values, got NaN or infinity.")
        if is_map and not explainer.of_label and (result < 0).any():
            raise ValueError(
                f"{explainer.name}: expected a map without negative values, got one down to {float(result.min()):.3g}."
                " What has a sign is an attribution, (batch, channel, height, width)."
            )


def _check_permuted(pipe: XAIPipeline, permuted: XAIPipeline) -> None:
    config, other = ({**p.unet.config, "_class_name": type(p.unet).__name__} for p in (pipe, permuted))
    check_same_network(config, other)
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        ours, theirs = pipe.scheduler.config.get(name), permuted.scheduler.config.get(name)
        if ours != theirs:
            raise ValueError(
                f"Expected the model's own scheduler for `permuted`, got {name} {theirs} instead of {ours}."
            )
    if _sum_of_parameters(pipe) == _sum_of_parameters(permuted):
        raise ValueError("Expected a network trained on permuted labels for `permuted`, got the model itself.")


def _own_samples(pipe: XAIPipeline, labels: Sequence[int], count: int, steps: int) -> torch.Tensor:
    """The model's samples that the closed form is fitted to."""
    sampler = XAIPipeline(pipe.unet, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config))
    sampler.set_progress_bar_config(disable=True)
    steps = min(steps, _NULL_STEPS)
    return draw_samples(sampler, labels=labels, num_samples=count, num_inference_steps=steps, output_type="pt")


def _sum_of_parameters(pipe: XAIPipeline) -> float:
    return float(sum(parameter.detach().double().sum() for parameter in pipe.unet.parameters()))


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
