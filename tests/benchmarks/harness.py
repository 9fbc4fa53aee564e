"""What the benchmarks share: the machine's facts, interleaved repeats and a table."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def machine_facts() -> str:
    """CPU, cores, threads and versions, and the load that others put on the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{names[0] if names else platform.processor()}, {cores} cores, torch {torch.__version__}"
        f" with {torch.get_num_threads()} threads, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; all take turns, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            variants[name]()
            times[name].append(clock() - start)
    return times


def ratios(times: Mapping[str, Sequence[float]], base: str) -> dict[str, tuple[float, float, float]]:
    """Lowest, median and highest of a variant's time by that of `base` in the same round."""
    by_name = {name: [a / b for a, b in zip(seconds, times[base], strict=True)] for name, seconds in times.items()}
    return {name: (min(values), statistics.median(values), max(values)) for name, values in by_name.items()}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table in Markdown below the machine's facts."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n{title}\n{machine_facts()}\n", *lines, sep="\n", flush=True)
