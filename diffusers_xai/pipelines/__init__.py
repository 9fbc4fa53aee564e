"""Sampling with recording."""

from diffusers_xai.pipelines.pipeline_xai import XAIPipeline, XAIPipelineOutput


__all__ = ["XAIPipeline", "XAIPipelineOutput"]
