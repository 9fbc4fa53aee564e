"""A profile from a visitor's file: unpacked, bounded in shape before anything is drawn of it."""

import shutil
from pathlib import Path

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.settings import Limits, SettingsError
from diffusers_xai.profile.archive import read_archive


MAX_ARRAYS = 128
MAX_RATIO = 8  # of an image's sides
# The most entries along a dim; the sides of an image are `Limits.max_side`.
MAX_SIZES = {"step": 1000, "sample": 16, "branch": 4, "head": 64, "query": 4096, "channel": 4096, "token": 4096}


def open_profile(file: str, folder: Path, limits: Limits) -> DiffusionProfile:
    """The profile of a zip file, unpacked into a new folder.

    Raises:
        SettingsError: If it is no sound profile, or larger than a server that many share can draw.
    """
    size = Path(file).stat().st_size
    if size > limits.upload:
        raise SettingsError(f"Expected a file of at most {limits.upload / 2**20:.0f} MB, got {size / 2**20:.1f} MB.")
    try:
        profile = read_archive(file, folder, limits.max_bytes)
    except ValueError as error:
        text = str(error).replace(str(folder), "the profile").replace(file, "the file")
        raise SettingsError(f"This file cannot be opened: {text}") from error
    except (TypeError, KeyError, MemoryError, RecursionError) as error:
        raise SettingsError("This file cannot be opened: its index is damaged.") from error
    try:
        check_shapes(profile, limits)
    except SettingsError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return profile


def check_shapes(profile: DiffusionProfile, limits: Limits) -> None:
    """Refuses what would take too much memory, or nobody could see.

    Raises:
        SettingsError: If an array is too large along a dim, or an image too narrow; the text names both.
    """
    if len(profile) > MAX_ARRAYS:
        raise SettingsError(f"Expected at most {MAX_ARRAYS} arrays in a profile, got {len(profile)}.")
    for name, array in profile.items():
        for dim, size in array.sizes.items():
            most = MAX_SIZES.get(str(dim), limits.max_side)
            if not 1 <= size <= most:
                raise SettingsError(f"Expected 1 to {most} along {dim} of {name[:60]}, got {size}.")
        sides = [array.sizes[side] for side in ("height", "width") if side in array.dims]
        if len(sides) == 2 and max(sides) > MAX_RATIO * min(sides):
            raise SettingsError(
                f"Expected images whose sides differ at most {MAX_RATIO} times, got {sides[0]} × {sides[1]}"
                f" in {name[:60]}."
            )
    if not {"samples", "final_sample"} & set(profile):
        raise SettingsError("This profile holds no samples, so there is nothing to show.")
