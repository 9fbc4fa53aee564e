"""One run of a pipeline as it is recorded and changed: its clock, what is stored, what it will cost."""

from diffusers_xai.recording.edits import Edits, EditSpec, check_samples, count_samples, edits_with_samples
from diffusers_xai.recording.plan import RecordingPlan
from diffusers_xai.recording.record import plan, record
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec


__all__ = [
    "EditSpec",
    "Edits",
    "RecordSpec",
    "Recording",
    "RecordingPlan",
    "check_samples",
    "count_samples",
    "edits_with_samples",
    "plan",
    "record",
]
