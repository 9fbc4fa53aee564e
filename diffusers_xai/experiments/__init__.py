"""Experiments of the thesis's chapter 5 over many seeds: a pipeline in, labelled numbers and a figure out."""

from diffusers_xai.experiments.base import Experiment
from diffusers_xai.experiments.registry import EXPERIMENTS
from diffusers_xai.experiments.result import ExperimentResult


__all__ = ["EXPERIMENTS", "Experiment", "ExperimentResult"]
