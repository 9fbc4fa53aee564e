"""Sampling with recording."""

from diffusers_xai.pipelines.null import covariance_null
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline, XAIPipelineOutput


__all__ = ["XAIPipeline", "XAIPipelineOutput", "covariance_null"]
