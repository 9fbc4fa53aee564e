"""Numbers over many runs: means with intervals, and what curves say."""

from diffusers_xai.analysis.bootstrap import bootstrap_interval, summary
from diffusers_xai.analysis.predetermination import predetermination_index


__all__ = ["bootstrap_interval", "predetermination_index", "summary"]
