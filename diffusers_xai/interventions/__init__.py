"""What to change during a run: one intervention per file."""

from diffusers_xai.interventions.spec import Edits, EditSpec, check_samples, count_samples, edits_with_samples


__all__ = ["EditSpec", "Edits", "check_samples", "count_samples", "edits_with_samples"]
