"""Numbers over many runs: means with intervals, and what curves say."""

from diffusers_xai.analysis.crossing import crossing_difference, falling_crossing
from diffusers_xai.analysis.moments import Moments
from diffusers_xai.analysis.overlap import Overlap, overlap
from diffusers_xai.analysis.paired import paired_difference, ratio_of_means, verdict_difference
from diffusers_xai.analysis.predetermination import predetermination_index
from diffusers_xai.analysis.shapley import (
    shapley_values,
    variance_share_difference,
    variance_share_intervals,
    variance_shares,
)
from diffusers_xai.analysis.statistics import (
    above_test,
    benjamini_hochberg,
    equivalence_test,
    interval_worth,
    mean_interval,
    share_interval,
    summary,
)


__all__ = [
    "Moments",
    "Overlap",
    "above_test",
    "benjamini_hochberg",
    "crossing_difference",
    "equivalence_test",
    "falling_crossing",
    "interval_worth",
    "mean_interval",
    "overlap",
    "paired_difference",
    "predetermination_index",
    "ratio_of_means",
    "shapley_values",
    "share_interval",
    "summary",
    "variance_share_difference",
    "variance_share_intervals",
    "variance_shares",
    "verdict_difference",
]
