"""All tests of an explanation, on one model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffusers_xai.audit.case import Case
from diffusers_xai.audit.explainers import Explainer, exact_clean_energy
from diffusers_xai.audit.grades import (
    RANDOM_MAPS,
    Bench,
    as_coarse,
    as_maps,
    full_size,
    label_misfit,
    misfit,
    rank_correlation,
    relative_change,
    smooth_random,
)
from diffusers_xai.audit.shuffling import from_the_output, shuffled
from diffusers_xai.pipelines import XAIPipeline


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the layers whose weights change places; at 0 the last layer alone
_ROUND_OFF = 1e-9


class Tests:
    """All tests of one model's explanations, with what they share.

    Args:
        cases (`list[Case]`): The samples, and
        others (`list[Case]`): those of the same noise under another scheduler.
        known ([`XAIPipeline`]): The covariance null.
        permuted ([`XAIPipeline`], *optional*): The model after it has learned labels that mean nothing.
    """

    def __init__(self, cases: list[Case], others: list[Case], known: XAIPipeline, permuted: XAIPipeline | None):
        self._cases, self._others, self._permuted = cases, others, permuted
        self._known = [case.of(known) for case in cases]
        self._benches = [Bench(case) for case in cases]
        self._null_maps = [exact_clean_energy(case) for case in self._known]
        pipe = cases[0].pipe
        layers = from_the_output(pipe.unet, cases[0].predict_x0)
        self._shuffled = []
        for share in SHARES:
            changed = None if share == 1 else set(layers[: max(1, round(share * len(layers)))])
            other = XAIPipeline(shuffled(pipe.unet, changed), pipe.scheduler)
            self._shuffled.append(other)

    def grade(self, explainer: Explainer, beyond: bool) -> dict[str, dict[str, Any]]:
        """Test -> its `values` and `reference`, each (case, seed).

        Maps are compared with each other at their own size, and enlarged where places of x_t are asked for.
        """
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
        height, width = explanations[0].shape[-2:]
        own_size, size = (height, width), self._cases[0].mask.shape
        if own_size != size:
            scores["size"] = {"values": own_size}
        if self._permuted is not None:
            scores["permuted"] = {
                "values": [
                    rank_correlation(own, as_maps(explainer.explain(case.of(self._permuted))))
                    for own, case in self._pairs(maps)
                ],
                "told": not explainer.of_label,
            }
        explanations = [full_size(given, size) for given in explanations]
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
                        bench.deletion(as_maps(full_size(as_coarse(null, own_size), size)))
                        for bench, null in zip(self._benches, self._null_maps, strict=True)
                    ],
                }
        if explainer.why_no_error:
            scores["closed_form"] = {"values": [], "why_not": explainer.why_no_error}
        else:
            scores["closed_form"] = {
                "values": [
                    _error(explainer, case, null if explainer.exact is None else explainer.exact(case))
                    for case, null in zip(self._known, self._null_maps, strict=True)
                ]
            }
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


def _alike(maps: np.ndarray) -> np.ndarray:
    """For each map, the mean rank correlation with the others."""
    others = [rank_correlation(maps, np.roll(maps, shift, axis=0)) for shift in range(1, len(maps))]
    return np.mean(others, 0)


def _error(explainer: Explainer, case: Case, exact: torch.Tensor) -> np.ndarray:
    """How much an explanation misses of the exact one, up to a factor."""
    given = (explainer.of_x0 or explainer.explain)(case)
    if given.ndim == 4 and exact.ndim == 3:
        given = torch.from_numpy(as_maps(given))
    elif given.shape != exact.shape:  # a smaller map
        exact = as_coarse(exact, (given.shape[1], given.shape[2]))
    told, true = (values.detach().flatten(1).double().cpu().numpy() for values in (given, exact))
    # Where a label has no chance left, its derivative is nothing but round-off.
    nothing = _ROUND_OFF * case.predict_x0().detach().flatten(1).norm(dim=1).cpu().numpy()
    both = (np.linalg.norm(told, axis=1) < nothing) & (np.linalg.norm(true, axis=1) < nothing)
    return np.where(both, 0.0, misfit(told, true))


def _with_sample(case: Case, sample: torch.Tensor) -> Case:
    return Case(case.pipe, sample, case.timestep, case.mask, case.images, case.label, case.other_label)
