"""Opening a pipeline by the name that a user gives."""

import os
from pathlib import Path
from typing import Any, TypeVar

from diffusers import DiffusionPipeline


_Pipeline = TypeVar("_Pipeline", bound=DiffusionPipeline)


def open_pipeline(kind: type[_Pipeline], checkpoint: str, revision: str | None = None, **options: Any) -> _Pipeline:
    """The pipeline of a folder or a Hub id, as one of class `kind`, with `options` of its `from_pretrained`.

    Raises:
        ValueError: if there is no such checkpoint, or it cannot be loaded.
    """
    # What is not the form of a Hub id can only be a folder.
    is_path = checkpoint.startswith((".", "~", os.sep)) or checkpoint.count("/") != 1
    if is_path and not Path(checkpoint).is_dir():
        raise ValueError(f"no checkpoint at {checkpoint}: expected a folder or a Hub id such as user/model")
    if Path(checkpoint).is_dir() and not Path(checkpoint, "model_index.json").is_file():
        raise ValueError(f"cannot load the checkpoint {checkpoint}: expected model_index.json in it")
    try:
        return kind.from_pretrained(checkpoint, revision=revision, **options)
    except Exception as error:  # any library's: a folder of another kind, no network, corrupt weights
        raise ValueError(f"cannot load the checkpoint {checkpoint}: {error}") from error
