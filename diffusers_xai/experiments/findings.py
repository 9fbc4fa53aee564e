"""Verdicts on what the thesis found: effect, control, excess, and what many tests at once are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusers_xai.analysis import above_test, benjamini_hochberg, equivalence_test, mean_interval
from diffusers_xai.experiments.base import ExperimentResult
from diffusers_xai.experiments.claims import NEEDED, Claim, claims


HOLDS, FAILS = "holds", "does not hold"
NOT_BEYOND, CANNOT_TELL = "not beyond the control", "this test cannot tell"
UNASKED = "cannot be asked"  # of a run that has no state where the claim needs one
# And how many there are of each, in words.
VERDICTS = {
    HOLDS: "hold",
    FAILS: "do not hold",
    NOT_BEYOND: "are not beyond the control",
    CANNOT_TELL: "cannot be told",
    UNASKED: "cannot be asked",
}
MIN_SEEDS = 30
LEVEL = 0.05  # of the p-values corrected for their number


@dataclass(frozen=True)
class Finding:
    """A claim and what came out.

    Args:
        claim ([`Claim`]): What was claimed and measured.
        effect (`tuple[float, float, float]`): Mean over the seeds, and its 95 % interval.
        control (`tuple[float, float, float]`, *optional*): The same of the control.
        excess (`tuple[float, float, float]`, *optional*): The same of the effect less that of the control, seed by
            seed.
        seeds (`int`): Number of seeds.
        p_claim (`float`), p_opposite (`float`), p_excess (`float`): p-values of the tests that the effect lies where
            the claim has it, that it lies elsewhere, and that it exceeds the control in the claim's direction,
            corrected together with those of all other claims (Benjamini–Hochberg).
    """

    claim: Claim
    effect: tuple[float, float, float]
    control: tuple[float, float, float] | None
    excess: tuple[float, float, float] | None
    seeds: int
    p_claim: float
    p_opposite: float
    p_excess: float

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.claim.missing:
            return UNASKED
        if self.p_opposite < LEVEL:
            return FAILS
        if not self.p_claim < LEVEL:  # or it is NaN, where a seed gave no number
            return CANNOT_TELL
        return HOLDS if self.control is None or self.p_excess < LEVEL else NOT_BEYOND


def findings(results: Mapping[str, ExperimentResult]) -> list[Finding]:
    """Tests what the thesis found, on the results of the experiments in `NEEDED`.

    A claim *holds* where its effect lies where the claim has it and exceeds the control's; it is *not beyond the
    control* where the effect is there, but not shown to exceed that without anything learned; it *does not hold* where
    the effect lies elsewhere. Where neither can be shown, *this test cannot tell*. All are one-sided t-tests over the
    seeds, of the level 5 % after correction for their number; "changes little" is an equivalence test.

    Source: thesis chapter 5; METHOD: sections 7, 9 and 10.

    Args:
        results (`Mapping[str, ExperimentResult]`): By the experiments' names.

    Raises:
        KeyError: If an experiment is missing.
        ValueError: If the network is not the thesis's kind: the claims name its layers.
    """
    missing = [name for name in NEEDED if name not in results]
    if missing:
        raise KeyError(f"Expected the experiments {', '.join(NEEDED)}, got all but {', '.join(missing)}.")
    return tested(claims(results))


def tested(made: Sequence[Claim]) -> list[Finding]:
    """The verdicts on claims, their tests corrected for the number of them all, see [`findings`]."""
    p_values = np.array([_p_values(claim) for claim in made])
    corrected = benjamini_hochberg(p_values.ravel()).reshape(p_values.shape)
    return [
        Finding(
            claim,
            _mean(claim.values),
            None if claim.control is None else _mean(claim.control),
            None if claim.control is None else _mean(claim.excess),
            len(claim.values),
            *(float(p) for p in row),
        )
        for claim, row in zip(made, corrected, strict=True)
    ]


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    low, high = mean_interval(values)
    return float(values.mean()), float(low), float(high)


def _p_values(claim: Claim) -> tuple[float, float, float]:
    if claim.missing:
        return np.nan, np.nan, np.nan
    values = claim.values
    if np.isinf(claim.high):
        inside, outside = above_test(values, claim.low), above_test(-values, -claim.low)
    else:
        inside = equivalence_test(values, claim.low, claim.high)
        outside = 2 * np.minimum(above_test(-values, -claim.low), above_test(values, claim.high))
    excess = np.nan if claim.control is None else float(above_test(claim.excess))
    return float(inside), float(np.minimum(1.0, outside)), excess
