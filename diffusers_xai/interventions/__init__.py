"""What to change during a run: one intervention per file."""

from diffusers_xai.interventions.spec import Edits, EditSpec, edits_with_samples


__all__ = ["EditSpec", "Edits", "edits_with_samples"]
