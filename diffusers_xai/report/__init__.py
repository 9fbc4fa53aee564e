"""A profile as one self-contained HTML page."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.atomic import replacing
from diffusers_xai.report.hero import hero
from diffusers_xai.report.origin import origin
from diffusers_xai.report.page import page
from diffusers_xai.report.sections import sections
from diffusers_xai.report.words import headline


def write_report(
    profile: DiffusionProfile,
    path: str | os.PathLike,
    *,
    mask: np.ndarray | None = None,
    edited: DiffusionProfile | None = None,
    command: Sequence[str] | None = None,
) -> None:
    """Writes what `profile` holds as one HTML page that needs no network.

    A section is left out where its arrays are not recorded. The file appears at `path` when it is complete; until
    then, and after an error, `path` stays as it was.

    Args:
        profile (`DiffusionProfile`): What to show.
        path (`str` or `os.PathLike`): The HTML file.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): Boolean mask of the region of interest: gradients
            are those of its pixels, and it weights the choice of max channels.
        edited (`DiffusionProfile`, *optional*): The same run with a change, to compare with.
        command (`Sequence[str]`, *optional*): The command line that made the profile, printed on the page.

    Raises:
        OSError: if the file cannot be written.
    """
    body = [hero(profile, mask), *sections(profile, mask, edited), origin(profile, mask, edited, command)]
    write_page(page(headline(profile), body), Path(path))


def write_page(text: str, path: Path) -> None:
    """Writes a page that appears at `path` when it is complete; until then, and after an error, `path` stays."""
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


__all__ = ["write_report"]
