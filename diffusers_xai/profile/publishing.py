"""A profile as a data set repository on the Hub: its files, a card, and a table that the Hub's viewer shows."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from diffusers_xai.hub.transfer import check_push, fetch_file, push_folder
from diffusers_xai.profile.conversion import to_dataframe
from diffusers_xai.profile.pictures import png, to_rgb
from diffusers_xai.profile.storage import Locate, write_profile
from diffusers_xai.profile.writer import INDEX_NAME


TABLE, SCALARS = "table.parquet", "scalars.parquet"
_PICTURES = ("samples", "x0")
_CARD = """# {title}

How a diffusion model made {count}: a *diffusion profile*, recorded with `diffusers_xai`.

```python
from diffusers_xai import DiffusionProfile

profile = DiffusionProfile.from_pretrained("{repo_id}")
print(profile)
profile["{example}"]  # an xarray.DataArray; only this array's file is downloaded
```

| array | dims | shape | dtype |
|---|---|---|---|
{arrays}

{tables}

## How it was made

```json
{provenance}
```
"""


_TABLES = {
    TABLE: f"`{TABLE}`, which the viewer shows, has for each recorded step and sample the state x_t and the clean"
    " image that the model predicts from it (clipped to the range of images; the arrays are not), and the measures."
    " The last row of a sample, without a step, is the finished image.",
    SCALARS: f"`{SCALARS}` has every number that was recorded once per step and sample, such as the measures.",
}


def hub_profile(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> tuple[Path, Locate]:
    """Downloads the index of a profile.

    Returns:
        `tuple[Path, Locate]`: the folder of the index, and a function that downloads an array's file, of the same
        commit, and tells where it lies.
    """

    def fetch(file: str, commit: str | None) -> Path:
        cache = None if cache_dir is None else Path(cache_dir)
        return fetch_file(repo_id, file, repo_type="dataset", revision=commit, token=token, cache_dir=cache)

    folder = fetch(INDEX_NAME, revision).parent
    return folder, lambda file: fetch(file, folder.name)


def push_profile(
    profile: Mapping[str, xr.DataArray], repo_id: str, *, message: str, token: str | bool | None, **options: Any
) -> CommitInfo:
    """Uploads a profile in one commit, see `DiffusionProfile.push_to_hub`."""
    check_push(repo_id, token)
    provenance = getattr(profile, "provenance", {})
    with tempfile.TemporaryDirectory(prefix="diffusers-xai-push-") as temporary:
        folder = Path(temporary, "profile")
        write_profile(folder, profile, provenance, overwrite=False)
        tables = write_tables(profile, provenance, folder)
        (folder / "README.md").write_text(_card(profile, provenance, repo_id, tables), encoding="utf-8")
        return push_folder(
            folder,
            repo_id,
            repo_type="dataset",
            message=message,
            token=token,
            replaced=("*.safetensors", TABLE, SCALARS),
            **options,
        )


def write_tables(profile: Mapping[str, xr.DataArray], provenance: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes the tables that the Hub's viewer shows, a row for each step and sample.

    `table.parquet` has the steps with pictures, the measures beside them; a last row without a step is the finished
    image. `scalars.parquet` has all that is one number per step and sample, at every step where there is any.

    Returns:
        `list[str]`: Names of the files written.
    """
    pictures = {name: profile[name] for name in _PICTURES if name in profile and _is_image(profile[name])}
    measures = {
        name.removeprefix("measures/"): profile[name]
        for name in profile
        if name.startswith("measures/") and profile[name].dims == ("step", "sample")
    }
    final = profile["final_sample"] if "samples" in pictures and "final_sample" in profile else None
    written = []
    if pictures:
        _write_table(pictures, measures, _timesteps(pictures), final, provenance, folder / TABLE)
        written.append(TABLE)
    scalars = to_dataframe(profile, provenance)
    if len(scalars):
        scalars.reset_index().to_parquet(folder / SCALARS, index=False)
        written.append(SCALARS)
    return written


def _timesteps(arrays: Mapping[str, xr.DataArray]) -> dict[int, float | None]:
    """The scheduler's t of every step that one of the arrays has, where it is recorded."""
    clocks: dict[int, float | None] = {}
    for array in arrays.values():
        times = array["timestep"].values.tolist() if "timestep" in array.coords else [None] * array.sizes["step"]
        clocks |= dict(zip(array["step"].values.tolist(), times, strict=True))
    return dict(sorted(clocks.items()))


def _write_table(
    pictures: Mapping[str, xr.DataArray],
    measures: Mapping[str, xr.DataArray],
    timesteps: Mapping[int, float | None],
    final: xr.DataArray | None,
    provenance: Mapping[str, Any],
    path: Path,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = max(array.sizes["sample"] for array in [*pictures.values(), *measures.values()])
    steps: list[int | None] = [*timesteps] + ([None] if final is not None else [])
    rows = [(step, sample) for sample in range(samples) for step in steps]
    columns: dict[str, Any] = {
        "sample": pa.array([sample for _, sample in rows], pa.int64()),
        "step": pa.array([step for step, _ in rows], pa.int64()),
        "timestep": pa.array([None if step is None else timesteps[step] for step, _ in rows], pa.float64()),
    }
    for column, key in (("seed", "seeds"), ("label", "class_labels")):
        values = provenance.get(key)
        if values is not None and len(values) == samples:
            columns[column] = pa.array([values[sample] for _, sample in rows], pa.int64())
    features: dict[str, Any] = {
        name: {"dtype": str(array.type).replace("double", "float64"), "_type": "Value"}
        for name, array in columns.items()
    }
    for name, source in pictures.items():
        last = final if name == "samples" else None
        cells = [_png(_cell(source, *row) if row[0] is not None else _finished(last, row[1])) for row in rows]
        columns[name] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        features[name] = {"_type": "Image"}
    for name, source in measures.items():
        values = [_cell(source, *row) for row in rows]
        columns[name] = pa.array([None if value is None else value.item() for value in values], pa.float64())
        features[name] = {"dtype": "float64", "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def _is_image(array: xr.DataArray) -> bool:
    return array.dims == ("step", "sample", "channel", "height", "width") and array.sizes["channel"] in (1, 3)


def _cell(source: xr.DataArray, step: int | None, sample: int) -> np.ndarray | None:
    if step is None or step not in source["step"].values or sample >= source.sizes["sample"]:
        return None
    return source.sel(step=step).isel(sample=sample).values


def _finished(final: xr.DataArray | None, sample: int) -> np.ndarray | None:
    return final.values[sample] if final is not None and sample < final.sizes["sample"] else None


def _png(image: np.ndarray | None) -> dict[str, Any] | None:
    if image is None:
        return None
    return {"bytes": png(to_rgb(image)), "path": None}


def _card(
    profile: Mapping[str, xr.DataArray], provenance: Mapping[str, Any], repo_id: str, tables: Sequence[str]
) -> str:
    data = DatasetCardData(
        tags=["diffusers_xai", "diffusion-profile", "explainable-ai"],
        # The pictures are what the viewer opens with.
        configs=[{"config_name": Path(name).stem, "data_files": name} for name in tables] or None,
    )
    count = next((array.sizes["sample"] for array in profile.values() if "sample" in array.dims), 1)
    rows = [
        f"| `{name}` | {', '.join(map(str, array.dims))} | {' × '.join(map(str, array.shape))} | {array.dtype} |"
        for name, array in profile.items()
    ]
    text = _CARD.format(
        title=repo_id.rsplit("/", 1)[-1],
        count="an image" if count == 1 else f"{count} images",
        repo_id=repo_id,
        example="attention_outputs" if "attention_outputs" in profile else next(iter(profile), "samples"),
        arrays="\n".join(rows),
        tables=" ".join(_TABLES[name] for name in tables) or "It holds no samples or measures for the Hub's viewer.",
        provenance=json.dumps({k: v for k, v in provenance.items() if k != "layer_aliases"}, indent=1),
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
