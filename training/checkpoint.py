"""The state of a run on disk: safetensors and JSON, written atomically."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


FORMAT_VERSION = 2
_FOLDER = re.compile(r"checkpoint-(\d{8})")
_PARTIAL = ".partial-"


def list_checkpoints(output: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(p for p in Path(output).glob("checkpoint-*") if _FOLDER.fullmatch(p.name))


def checkpoint_step(path: Path) -> int:
    """The number of finished steps, which the folder's name holds."""
    return int(_FOLDER.fullmatch(path.name)[1])


def remove_leftovers(output: str | Path) -> None:
    """Deletes what a killed run left unfinished: a checkpoint half written, or half deleted."""
    for folder in Path(output).glob(f"{_PARTIAL}*"):
        shutil.rmtree(folder)


def save_checkpoint(
    output: str | Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict, keep: int
) -> Path:
    """Writes `checkpoint-<step>` and deletes all but the last `keep`.

    The folder takes its name when all of it is on the disk, and loses it before it is deleted: whenever the process or
    the machine stops, a folder of that name is complete.

    Args:
        output (`str` or `Path`): Folder of the run.
        step (`int`): Number of finished steps.
        tensors (`dict[str, dict[str, torch.Tensor]]`): One safetensors file for each key.
        state (`dict`): What else has to be kept, as JSON-able values.
        keep (`int`): Number of checkpoints that stay.

    Raises:
        OSError: If writing fails; the checkpoints that were there stay.
    """
    output = Path(output)
    target, unfinished = output / f"checkpoint-{step:08d}", output / f"{_PARTIAL}{step:08d}"
    state = {"format_version": FORMAT_VERSION, "step": step, **state}
    try:
        unfinished.mkdir(parents=True)
        for name, group in tensors.items():
            group = {key: t.detach().cpu().contiguous() for key, t in group.items()}
            save_file(group, unfinished / f"{name}.safetensors")
        (unfinished / "state.json").write_text(json.dumps(state, indent=1))
        for path in (*unfinished.iterdir(), unfinished):
            _flush_to_disk(path)
        unfinished.rename(target)
        _flush_to_disk(output)
    except SafetensorError as error:  # its form of an OSError
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot write the checkpoint of step {step}: {error}") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for old in list_checkpoints(output)[:-keep]:
        doomed = output / f"{_PARTIAL}{old.name}"
        old.rename(doomed)
        shutil.rmtree(doomed)
    return target


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: str | Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Reads what `save_checkpoint` wrote: tensors by file and name, and the state.

    Args:
        path (`str` or `Path`): A checkpoint folder, or a run's folder, of which the last checkpoint is taken.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is damaged or of another format version.
    """
    path = Path(path)
    if not (path / "state.json").is_file():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise FileNotFoundError(f"expected a folder with a checkpoint, got {str(path)!r}")
        path = checkpoints[-1]
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"the checkpoint {str(path)!r} is damaged: {error}") from error
    if state.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"expected format version {FORMAT_VERSION} in {str(path)!r}, got {state.get('format_version')}"
        )
    missing = {"model", "ema", "optimizer"} - set(tensors)
    if missing:
        raise ValueError(f"the checkpoint {str(path)!r} is damaged: {sorted(missing)} missing")
    return tensors, state


def optimizer_states(optimizers: Sequence[torch.optim.Optimizer]) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The optimizers' states as (tensors by `"<optimizer>.<parameter>.<name>"`, JSON-able rest of each)."""
    tensors, rest = {}, []
    for i, optimizer in enumerate(optimizers):
        full = optimizer.state_dict()
        scalars = {}
        for index, entries in full["state"].items():
            for name, value in entries.items():
                if torch.is_tensor(value):
                    tensors[f"{i}.{index}.{name}"] = value
                else:
                    scalars[f"{index}.{name}"] = value
        rest.append({"scalars": scalars, "param_groups": full["param_groups"]})
    return tensors, rest


def load_optimizer_states(
    optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, torch.Tensor], rest: list[dict]
) -> None:
    """Gives the optimizers the states that `optimizer_states` took.

    Raises:
        ValueError: If they are of other optimizers or parameters.
    """
    if len(optimizers) != len(rest):
        raise ValueError(
            f"expected a checkpoint of {len(optimizers)} optimizers, got {len(rest)}: another `optimizer`?"
        )
    for i, (optimizer, part) in enumerate(zip(optimizers, rest, strict=True)):
        own = {key.partition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{i}.")}
        state: dict[int, dict] = {}
        for key, value in [*own.items(), *part["scalars"].items()]:
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": part["param_groups"]})
