"""Grades explanations against known truth and controls."""

from diffusers_xai.audit.case import Case
from diffusers_xai.audit.explainers import Explainer
from diffusers_xai.audit.result import AuditResult
from diffusers_xai.audit.run import audit


__all__ = ["AuditResult", "Case", "Explainer", "audit"]
