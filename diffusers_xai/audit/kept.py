"""What an audit has finished, kept in its folder."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from diffusers_xai.profile.atomic import remove_leftovers, replacing


Key = tuple[str, str]  # (model, explanation)
Scores = dict[str, dict[str, Any]]  # by test, and by what is measured in it
_SCORES, _SAMPLES = "scores.json", "samples.safetensors"


class Kept:
    """What is finished, in memory and, where there is a folder, on disk: the same audit resumes from there.

    Args:
        out (`str` or `os.PathLike`, *optional*): The folder.
        settings (`Mapping[str, Any]`): What the scores were made with.
    """

    def __init__(self, out: str | os.PathLike | None, settings: Mapping[str, Any]):
        self._settings = json.loads(json.dumps(settings))
        self._file = None if out is None else Path(out) / _SCORES
        self.done: dict[Key, Scores] = {}
        if out is not None:
            self.done = finished(out, self._settings)
            for name in (_SCORES, _SAMPLES):
                remove_leftovers(Path(out) / name)

    def add(self, key: Key, tests: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps the scores of one explanation."""
        self.done[key] = {
            name: {part: np.asarray(values).tolist() for part, values in numbers.items()}
            for name, numbers in tests.items()
        }
        self._write()

    def samples(self, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `draw` gives, or what it gave before the audit was stopped."""
        file = None if self._file is None else self._file.with_name(_SAMPLES)
        if file is not None and file.is_file():
            return load_file(file)["samples"]
        samples = draw()
        if file is not None:
            self._write()
            with replacing(file) as new:
                save_file({"samples": samples}, new)
        return samples

    def _write(self) -> None:
        if self._file is None:
            return
        rows = [{"model": model, "explanation": name, "tests": tests} for (model, name), tests in self.done.items()]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._file) as new:
            new.write_text(json.dumps({"settings": self._settings, "rows": rows}) + "\n", encoding="utf-8")


def finished(out: str | os.PathLike, settings: Mapping[str, Any] = MappingProxyType({})) -> dict[Key, Scores]:
    """The scores that an audit has left in a folder, of each explanation of a model; none if it is new.

    Args:
        out (`str` or `os.PathLike`): The folder.
        settings (`Mapping[str, Any]`): Those that the audit has to have been made with, as far as they are known.

    Raises:
        FileExistsError: If the folder holds something else, or an audit of other settings.
    """
    file = Path(out) / _SCORES
    if not file.is_file():
        if any(not path.name.startswith(".") for path in Path(out).glob("*")):
            raise FileExistsError(f"Expected a new folder or an audit, got {out}: choose another.")
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        found = dict(kept["settings"])
        done = {(row["model"], row["explanation"]): row["tests"] for row in kept["rows"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileExistsError(f"Expected an audit's {_SCORES}, got another file in {out}: choose another.") from error
    others = [name for name, value in settings.items() if found.get(name) != value]
    if others:
        raise FileExistsError(
            f"Expected an audit of these settings, got one that differs in `{others[0]}` in {out}: choose another"
            " folder."
        )
    return done
