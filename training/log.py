"""The log of a run: one JSON record a line."""

import contextlib
import json
from pathlib import Path

from diffusers_xai.profile.atomic import replacing


LOG_FILE = "log.jsonl"


def read_log(run: Path) -> list[dict]:
    """The records of a run, which may be under way: a line that is not written to its end is left out.

    Raises:
        FileNotFoundError: If the folder has no log.
        ValueError: If the log is damaged.
    """
    try:
        lines = (run / LOG_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise ValueError(f"{run / LOG_FILE} is damaged: {error}") from error


def write_record(run: Path, record: dict) -> None:
    """Adds a record."""
    with (run / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def forget_after(run: Path, step: int) -> list[dict]:
    """Takes out what a killed run wrote after the step that this one resumes from; returns the records that stay."""
    log = run / LOG_FILE
    if not log.is_file():
        return []
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the kill
            if json.loads(line)["step"] <= step:
                kept.append(json.loads(line))
    with replacing(log) as new:
        new.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    return kept
