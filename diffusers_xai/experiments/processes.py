"""This process among those of `accelerate launch`."""

from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


_PATIENCE = timedelta(days=30)  # a process that is done waits for the others; who dies ends the launch


def process_state() -> PartialState:
    """This process among those of `accelerate launch`, on CPUs with `ACCELERATE_USE_CPU=true` in the environment."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
