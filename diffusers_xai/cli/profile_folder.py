"""The folder that `diffusers-xai profile` writes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_xai.cli.output import new_folder
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report import write_report


_EDITED = "edited"


def save_profile(
    out: Path,
    profile: DiffusionProfile,
    edited: DiffusionProfile | None,
    command: Sequence[str],
    mask: np.ndarray | None,
    region: np.ndarray | None,
) -> int:
    """Writes the profile, that of the changed run, the region and the report; all appear at once.

    Args:
        out (`Path`): The folder.
        profile (`DiffusionProfile`): The run.
        edited (`DiffusionProfile`, *optional*): The changed run.
        command (sequence of `str`): The command line that makes both.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): The region on the samples, for the report.
        region (`np.ndarray` of shape `(H, W)`, *optional*): The region on the pictures, as it was asked for.

    Returns:
        `int`: The size of the folder in bytes.
    """
    with new_folder(out) as folder:
        profile.save_pretrained(folder)
        if edited is not None:
            edited.save_pretrained(folder / _EDITED)
        if region is not None:
            Image.fromarray(region).save(folder / "mask.png")
        write_report(profile, folder / "report.html", mask=mask, edited=edited, command=command)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
