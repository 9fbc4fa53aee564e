"""Experiments of the thesis's chapter 5 over many seeds: a pipeline in, labelled numbers and a figure out."""

from diffusers_xai.experiments.base import EXPERIMENTS, Experiment, ExperimentResult
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.seed_moments import moments_over_seeds


# isort: off
# Importing an experiment registers it; in the order of the thesis.
from diffusers_xai.experiments import process  # noqa: F401
from diffusers_xai.experiments import layer_types  # noqa: F401
from diffusers_xai.experiments import ssim_trajectory  # noqa: F401
from diffusers_xai.experiments import layer_distance  # noqa: F401
from diffusers_xai.experiments import localisation  # noqa: F401
from diffusers_xai.experiments import emergence  # noqa: F401
from diffusers_xai.experiments import artifact  # noqa: F401
from diffusers_xai.experiments import label_divergence  # noqa: F401
from diffusers_xai.experiments import predetermination  # noqa: F401
from diffusers_xai.experiments import label_pairs  # noqa: F401
from diffusers_xai.experiments import ablation  # noqa: F401

# What the thesis does not ask.
from diffusers_xai.experiments import compare_checkpoints  # noqa: F401
from diffusers_xai.experiments import critical_window  # noqa: F401
from diffusers_xai.experiments import noise_and_back  # noqa: F401
from diffusers_xai.experiments import patching  # noqa: F401
from diffusers_xai.experiments import hierarchy  # noqa: F401
from diffusers_xai.experiments import concepts  # noqa: F401
from diffusers_xai.experiments import words  # noqa: F401
from diffusers_xai.experiments import gradient_attention  # noqa: F401
from diffusers_xai.experiments import directions  # noqa: F401
from diffusers_xai.experiments import label_directions  # noqa: F401
from diffusers_xai.experiments import few_steps  # noqa: F401
from diffusers_xai.experiments import few_step_findings  # noqa: F401
from diffusers_xai.experiments import shapley  # noqa: F401
# isort: on


__all__ = ["EXPERIMENTS", "Experiment", "ExperimentResult", "Sampling", "moments_over_seeds"]
