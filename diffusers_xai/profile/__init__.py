"""The diffusion profile: labelled arrays and JSON that know nothing of modules, weights or hooks."""

from diffusers_xai.profile.diffusion_profile import DiffusionProfile
from diffusers_xai.profile.jsonable import to_json
from diffusers_xai.profile.names import BRANCHES, DIMS, DTYPES
from diffusers_xai.profile.writer import FORMAT_VERSION


__all__ = ["BRANCHES", "DIMS", "DTYPES", "FORMAT_VERSION", "DiffusionProfile", "to_json"]
