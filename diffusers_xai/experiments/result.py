"""What an experiment returns: labelled numbers that can be saved, tabulated and drawn without the model."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


FORMAT_VERSION = 1
_PICTURE_DIMS = ("rgb", "channel", "height", "width", "map_height", "map_width")
_INDEX, _ARRAYS = "result.json", "arrays.safetensors"


@dataclass(frozen=True)
class ExperimentResult:
    """The outcome of an experiment.

    Args:
        name (`str`): Name of the experiment in `EXPERIMENTS`.
        data (`xarray.Dataset`): Labelled numbers; `seed` is a dim wherever there is one value per seed.
        settings (`dict[str, Any]`): How it was made, JSON-able: model, labels, seeds, steps, versions ….
    """

    name: str
    data: xr.Dataset
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        """The numbers as one tidy table, a row for each seed, step, layer and so on.

        Of pictures it has the mean; those of one seed alone are left out.
        """
        averaged = {
            name: array.mean([dim for dim in _PICTURE_DIMS if dim in array.dims])
            for name, array in self.data.data_vars.items()
            if "seed" in array.dims
        }
        return xr.Dataset(averaged).to_dataframe().reset_index()

    def plot(self) -> go.Figure:
        """Draws the numbers."""
        return self._experiment().plot(self)

    def plot_images(self) -> go.Figure | None:
        """Draws the images and maps behind the numbers, of the first seed; `None` where the experiment keeps none."""
        draw = self._experiment().plot_images
        return None if draw is None else draw(self)

    def _experiment(self) -> Any:
        from diffusers_xai.experiments.registry import EXPERIMENTS  # which knows the experiments, which make results

        return EXPERIMENTS[self.name]

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes `result.json` and `arrays.safetensors` into a new folder, which appears when it is complete.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false, or what is there is no result.
            OSError: If writing fails; what was there stays.
        """
        path = Path(path)
        if path.exists() and not (overwrite and (path / _INDEX).is_file()):
            raise FileExistsError(f"{path} exists already: choose another folder, or pass overwrite=True for a result")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {}
        entries = {str(name): _entry(str(name), array, arrays) for name, array in self.data.variables.items()}
        index = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "settings": self.settings,
            "variables": entries,
            "coords": sorted(map(str, self.data.coords)),
        }
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as staging:
            new = Path(staging, "new")
            new.mkdir()
            save_file(arrays, new / _ARRAYS)
            (new / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
            if path.exists():
                path.rename(Path(staging, "old"))
            new.rename(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ExperimentResult":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no result at `path`.
            ValueError: If it is damaged, or of another format version.
        """
        path = Path(path)
        if not (path / _INDEX).is_file():
            raise FileNotFoundError(f"no result at {path}: expected a folder with {_INDEX}")
        try:
            index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
            if index["format_version"] != FORMAT_VERSION:
                raise ValueError(f"expected format_version {FORMAT_VERSION}, got {index['format_version']!r}")
            arrays = load_file(path / _ARRAYS)
            variables = {
                name: (
                    entry["dims"],
                    arrays[name] if "values" not in entry else np.array(entry["values"], dtype=object),
                )
                for name, entry in index["variables"].items()
            }
            coords = {name: variables.pop(name) for name in index["coords"]}
            return cls(index["name"], xr.Dataset(variables, coords), index["settings"])
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"the result at {path} is damaged: {error}") from error


def remove(path: Path) -> None:
    """Deletes a result's folder, if it is one."""
    if (path / _INDEX).is_file():
        shutil.rmtree(path)


def _entry(name: str, variable: xr.Variable, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    values = variable.values
    if values.dtype.kind in "OU":  # text stands in the index
        return {"dims": list(variable.dims), "values": values.tolist()}
    arrays[name] = np.ascontiguousarray(values)
    return {"dims": list(variable.dims)}
