"""A profile as a data set repository on the Hub: its files, a card, and a table that the Hub's viewer shows."""

import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData
from PIL import Image

from diffusers_xai.hub.transfer import check_push, fetch_file, push_folder
from diffusers_xai.profile.storage import Locate, write_profile
from diffusers_xai.profile.writer import INDEX_NAME


TABLE = "table.parquet"
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

The viewer's table (`{table}`) shows, for each recorded step and sample, the state x_t and the clean image that the
model predicts from it (clipped to the range of images), and the measures. The arrays themselves are not clipped.

## How it was made

```json
{provenance}
```
"""


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
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError("pushing a profile writes a table with pyarrow: pip install 'diffusers-xai[hub]'") from error
    check_push(repo_id, token)
    provenance = getattr(profile, "provenance", {})
    with tempfile.TemporaryDirectory(prefix="diffusers-xai-push-") as temporary:
        folder = Path(temporary, "profile")
        write_profile(folder, profile, provenance, overwrite=False)
        has_table = write_table(profile, provenance, folder / TABLE)
        (folder / "README.md").write_text(_card(profile, provenance, repo_id, has_table), encoding="utf-8")
        return push_folder(
            folder,
            repo_id,
            repo_type="dataset",
            message=message,
            token=token,
            replaced=("*.safetensors", TABLE, INDEX_NAME),
            **options,
        )


def write_table(profile: Mapping[str, xr.DataArray], provenance: Mapping[str, Any], path: Path) -> bool:
    """Writes a row for each recorded step and sample: step, timestep, sample, seed, label, pictures and measures.

    Returns:
        `bool`: Whether there is anything to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = {name: profile[name] for name in _PICTURES if name in profile and _is_image(profile[name])}
    measures = {
        name.removeprefix("measures/"): profile[name]
        for name in profile
        if name.startswith("measures/") and profile[name].dims == ("step", "sample")
    }
    sources = [*pictures.values(), *measures.values()]
    if not sources:
        return False
    timesteps = {
        int(step): float(t)
        for array in sources
        for step, t in zip(array["step"].values, array["timestep"].values, strict=True)
    }
    rows = [(step, sample) for sample in range(sources[0].sizes["sample"]) for step in sorted(timesteps)]
    columns: dict[str, Any] = {
        "sample": pa.array([sample for _, sample in rows], pa.int64()),
        "step": pa.array([step for step, _ in rows], pa.int64()),
        "timestep": pa.array([timesteps[step] for step, _ in rows], pa.float64()),
    }
    for column, key in (("seed", "seeds"), ("label", "class_labels")):
        values = provenance.get(key)
        if values is not None and len(values) == sources[0].sizes["sample"]:
            columns[column] = pa.array([values[sample] for _, sample in rows], pa.int64())
    features: dict[str, Any] = {
        name: {"dtype": str(array.type).replace("double", "float64"), "_type": "Value"}
        for name, array in columns.items()
    }
    for name, source in pictures.items():
        cells = [_png(source, *row) for row in rows]
        columns[name] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        features[name] = {"_type": "Image"}
    for name, source in measures.items():
        columns[name] = pa.array([_value(source, *row) for row in rows], pa.float64())
        features[name] = {"dtype": "float64", "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return True


def _is_image(array: xr.DataArray) -> bool:
    return array.dims == ("step", "sample", "channel", "height", "width") and array.sizes["channel"] in (1, 3)


def _png(source: xr.DataArray, step: int, sample: int) -> dict[str, Any] | None:
    if step not in source["step"].values:
        return None
    pixels = source.sel(step=step).isel(sample=sample).values.astype(np.float32)
    pixels = np.round(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _value(source: xr.DataArray, step: int, sample: int) -> float | None:
    return float(source.sel(step=step).isel(sample=sample)) if step in source["step"].values else None


def _card(profile: Mapping[str, xr.DataArray], provenance: Mapping[str, Any], repo_id: str, has_table: bool) -> str:
    data = DatasetCardData(
        tags=["diffusers_xai", "diffusion-profile", "explainable-ai"],
        configs=[{"config_name": "default", "data_files": TABLE}] if has_table else None,
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
        example="attention_map" if "attention_map" in profile else next(iter(profile), "samples"),
        arrays="\n".join(rows),
        table=TABLE,
        provenance=json.dumps({k: v for k, v in provenance.items() if k != "layer_aliases"}, indent=1),
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
