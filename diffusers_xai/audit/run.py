"""Runs an audit: every explanation through every test, resumable."""

import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DPMSolverMultistepScheduler
from tqdm.auto import tqdm

from diffusers_xai.audit.case import Case, make_cases
from diffusers_xai.audit.explainers import (
    EDGES,
    GRADIENT,
    NEARNESS,
    Explainer,
    exact_clean_energy,
    package_explainers,
)
from diffusers_xai.audit.grades import (
    RANDOM_MAPS,
    Bench,
    as_maps,
    label_misfit,
    misfit,
    rank_correlation,
    relative_change,
    smooth_random,
)
from diffusers_xai.audit.result import AuditResult, table_of
from diffusers_xai.audit.scale import CHECKPOINT, CLOSED_FORM
from diffusers_xai.audit.shuffling import from_the_output, shuffled
from diffusers_xai.measures import Mask, as_mask
from diffusers_xai.pipelines import XAIPipeline, covariance_null


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers whose weights change places; at 0 the last layer alone
_SCORES = "scores.json"
_NULL_STEPS = 15
_ROUND_OFF = 1e-9


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
        out (`str` or `os.PathLike`, *optional*): A folder that keeps what is finished, explanation by explanation: the
            same call then continues from there.
        bar (`Mapping`, *optional*): Options of tqdm's bar; by default there is one on terminals alone.

    Returns:
        [`AuditResult`].

    Raises:
        ValueError: If the labels, the mask, the timesteps or the seeds do not fit, or an explainer returns neither a
            map nor an attribution; before the work.
        FileExistsError: If `out` holds an audit with other settings.
    """
    mask = _region(pipe, mask)
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
        "parameters": float(sum(parameter.detach().double().sum() for parameter in pipe.unet.parameters())),
        "versions": {name: importlib.metadata.version(name) for name in ("diffusers", "torch")},
    }
    scores = _Scores(out, settings)
    draw = partial(make_cases, pipe, mask=mask, label=label, other_label=other_label)
    _rehearse(draw(seeds=seeds[:1], timesteps=timesteps[-1:], steps=2)[0], chosen)
    cases = draw(seeds=seeds, timesteps=timesteps, steps=steps)
    others = draw(seeds=seeds, timesteps=timesteps, steps=steps, scheduler="DPM-Solver")
    sampler = XAIPipeline(pipe.unet, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config))
    sampler.set_progress_bar_config(disable=True)
    labels = () if label is None or other_label is None else (label, other_label)
    known = covariance_null(
        sampler,
        labels=labels,
        num_samples=null_samples,
        num_inference_steps=min(steps, _NULL_STEPS),
        output_type="pt",
    ).to(pipe.device)
    known.scheduler = pipe.scheduler
    known.unet.double()  # likelihoods of labels differ by many orders of magnitude
    runs = [(CLOSED_FORM, GRADIENT), *((CHECKPOINT, explainer) for explainer in chosen)]  # controls come first
    tests = {
        name: _Tests([case.of(model) for case in cases], [case.of(model) for case in others], known)
        for name, model in ((CHECKPOINT, pipe), (CLOSED_FORM, known))
    }
    for model, explainer in tqdm(runs, **(bar or {"desc": "explanations", "disable": None})):
        if (model, explainer.name) not in scores.done:
            scores.add((model, explainer.name), tests[model].grade(explainer, beyond=model == CHECKPOINT))
    curves = [
        {"model": model, "explanation": name, "share": share, "similarity": similarity}
        for (model, name), numbers in scores.done.items()
        for share, similarity in zip(SHARES, np.mean(numbers["similarities"]["values"], (1, 2)), strict=True)
    ]
    return AuditResult(table_of(scores.done), pd.DataFrame(curves), settings, GRADIENT.name, EDGES.name)


class _Tests:
    """All tests of one model's explanations, with what they share.

    Args:
        cases (`list[Case]`): The samples, and
        others (`list[Case]`): those of the same noise under another scheduler.
        known ([`XAIPipeline`]): The covariance null.
    """

    def __init__(self, cases: list[Case], others: list[Case], known: XAIPipeline):
        self._cases, self._others = cases, others
        self._known = [case.of(known) for case in cases]
        self._benches = [Bench(case) for case in cases]
        self._null_maps = [as_maps(exact_clean_energy(case)) for case in self._known]
        pipe = cases[0].pipe
        layers = from_the_output(pipe.unet, cases[0].predict_x0)
        self._shuffled = []
        for share in SHARES:
            changed = None if share == 1 else set(layers[: max(1, round(share * len(layers)))])
            other = XAIPipeline(shuffled(pipe.unet, changed), pipe.scheduler)
            self._shuffled.append(other)

    def grade(self, explainer: Explainer, beyond: bool) -> dict[str, dict[str, Any]]:
        """Test -> its `values` and `reference`, each (case, seed)."""
        explanations = [explainer.explain(case) for case in self._cases]
        maps = [as_maps(explanation) for explanation in explanations]
        similarities = np.array(
            [
                [rank_correlation(own, as_maps(explainer.explain(case.of(other)))) for own, case in self._pairs(maps)]
                for other in self._shuffled
            ]
        )
        scores: dict[str, dict[str, Any]] = {
            "similarities": {"values": similarities},  # (share, case, seed)
            "randomised": {"values": similarities[-1]},
            "cascade": {"values": similarities[:-1].mean(0)},
            "schedulers": {
                "values": [
                    rank_correlation(own, as_maps(explainer.explain(case)))
                    for own, case in zip(maps, self._others, strict=True)
                ]
            },
            "sensitivity": {"values": [self._sensitivity(explainer, *pair) for pair in self._pairs(explanations)]},
            "seeds": {"values": [_alike(own) for own in maps]},
        }
        chance = [[smooth_random(given, seed) for seed in range(RANDOM_MAPS)] for given in explanations]
        if explainer.of_label:
            scores["infidelity"] = {
                "values": [label_misfit(case, given) for given, case in self._pairs(explanations)],
                "reference": [
                    np.mean([label_misfit(case, given) for given in random], 0) for random, case in self._pairs(chance)
                ],
            }
        else:
            scores |= self._by_changes(explanations, chance)
            if beyond:
                scores["excess"] = {
                    "values": scores["deletion"]["values"],
                    "reference": [
                        bench.deletion(null) for bench, null in zip(self._benches, self._null_maps, strict=True)
                    ],
                }
        if not explainer.needs_layers:
            scores["closed_form"] = {"values": [_error(explainer, case) for case in self._known]}
        return scores

    def _pairs(self, values: Sequence[Any]) -> list[tuple[Any, Case]]:
        return list(zip(values, self._cases, strict=True))

    def _by_changes(self, explanations: list[torch.Tensor], chance: list[list[torch.Tensor]]) -> dict[str, Any]:
        reactions: dict[str, Callable[[Bench, torch.Tensor], np.ndarray]] = {
            "infidelity": lambda bench, given: bench.infidelity(given),
            "deletion": lambda bench, given: bench.deletion(as_maps(given)),
            "insertion": lambda bench, given: bench.insertion(as_maps(given)),
        }
        return {
            name: {
                "values": [react(*pair) for pair in zip(self._benches, explanations, strict=True)],
                "reference": [
                    np.mean([react(bench, given) for given in random], 0)
                    for bench, random in zip(self._benches, chance, strict=True)
                ],
            }
            for name, react in reactions.items()
        }

    def _sensitivity(self, explainer: Explainer, explanation: torch.Tensor, case: Case) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        nearby = []
        for _ in range(2):
            noise = torch.randn(case.sample.shape, generator=generator).to(case.sample)
            moved = case.sample + 0.02 * case.sample.std() * noise
            nearby.append(explainer.explain(_with_sample(case, moved)))
        return relative_change(explanation, nearby)


class _Scores:
    """What is finished, in memory and, where there is a folder, on disk.

    Args:
        out (`str` or `os.PathLike`, *optional*): The folder.
        settings (`Mapping[str, Any]`): What the scores were made with.
    """

    def __init__(self, out: str | os.PathLike | None, settings: Mapping[str, Any]):
        self.done: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        self._settings = json.loads(json.dumps(settings))
        self._file = None if out is None else Path(out) / _SCORES
        if self._file is not None and self._file.is_file():
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            if kept["settings"] != self._settings:
                raise FileExistsError(
                    f"Expected an audit of these settings, got others in {out}: choose another folder."
                )
            self.done = {(row["model"], row["explanation"]): row["tests"] for row in kept["rows"]}
        elif self._file is not None and any(not path.name.startswith(".") for path in self._file.parent.glob("*")):
            raise FileExistsError(f"Expected a new folder or an audit, got {out}: choose another.")
        elif self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def add(self, key: tuple[str, str], tests: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the scores of one explanation."""
        self.done[key] = {
            name: {part: np.asarray(values).tolist() for part, values in numbers.items()}
            for name, numbers in tests.items()
        }
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        rows = [{"model": model, "explanation": name, "tests": tests} for (model, name), tests in self.done.items()]
        new = self._file.with_name(f".{_SCORES}")
        new.write_text(json.dumps({"settings": self._settings, "rows": rows}) + "\n", encoding="utf-8")
        new.replace(self._file)


def _alike(maps: np.ndarray) -> np.ndarray:
    """For each map, the mean rank correlation with the others."""
    others = [rank_correlation(maps, np.roll(maps, shift, axis=0)) for shift in range(1, len(maps))]
    return np.mean(others, 0)


def _error(explainer: Explainer, case: Case) -> np.ndarray:
    """How much an explanation misses of the exact one, up to a factor."""
    exact = (explainer.exact or exact_clean_energy)(case)
    given = explainer.explain(case)
    if given.shape != exact.shape:
        given = torch.from_numpy(as_maps(given))
    told, true = (values.detach().flatten(1).double().cpu().numpy() for values in (given, exact))
    # Where a label has no chance left, its derivative is nothing but round-off.
    nothing = _ROUND_OFF * case.predict_x0().detach().flatten(1).norm(dim=1).cpu().numpy()
    both = (np.linalg.norm(told, axis=1) < nothing) & (np.linalg.norm(true, axis=1) < nothing)
    return np.where(both, 0.0, misfit(told, true))


def _with_sample(case: Case, sample: torch.Tensor) -> Case:
    return Case(case.pipe, sample, case.timestep, case.mask, case.images, case.label, case.other_label)


def _rehearse(case: Case, explainers: Sequence[Explainer]) -> None:
    shape = case.sample.shape
    for explainer in explainers:
        result = explainer.explain(case)
        allowed = [(shape[0], *shape[2:]), tuple(shape)]
        if not isinstance(result, torch.Tensor) or tuple(result.shape) not in allowed:
            got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(f"{explainer.name}: expected a tensor of shape {allowed[0]} or {allowed[1]}, got {got}.")


def _region(pipe: XAIPipeline, mask: Mask | None) -> np.ndarray:
    height, width = pipe.sample_shape[-2:]
    if mask is not None:
        return as_mask(mask, (height, width))
    region = np.zeros((height, width), dtype=bool)
    region[3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = True
    return region


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
