"""Peak resident memory of sampling while the profile is written to disk: it must not grow with the number of steps.

Every run has a process of its own, which records x_t, x0, A_t and the blocks of the embedded checkpoint at every step.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers.utils import logging

from diffusers_xai import Activations, AttentionOutputs, Samples, XAIPipeline, demo_checkpoint
from tests.benchmarks.harness import print_table


SPECS = [Samples(), AttentionOutputs(), Activations(layers=["down_blocks.*", "up_blocks.*"])]


def sample(steps, profile_dir):
    """Samples in this process; prints the peak of resident memory and the profile's size."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    pipe = XAIPipeline.from_pretrained(demo_checkpoint("lfw-32"))
    pipe.set_progress_bar_config(disable=True)
    profile = pipe(class_labels=3, num_inference_steps=steps, record=SPECS, profile_dir=profile_dir).profile
    nbytes = pipe.plan(SPECS, num_inference_steps=steps).nbytes
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    print(peak, nbytes, len(profile["samples"].step))


def measure(steps, streams):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--child", str(steps)]
        command += ["--profile-dir", f"{folder}/profile"] if streams else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(number) for number in output.split()[-3:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs=2, default=[100, 1000], metavar=("SHORT", "LONG"))
    parser.add_argument("--child", type=int)
    parser.add_argument("--profile-dir")
    args = parser.parse_args()
    if args.child:
        sample(args.child, args.profile_dir)
        return
    rows = []
    for streams, name, target in ((True, "profile_dir=…", "≤ 1.20"), (False, "in memory", "")):
        peaks = []
        for steps in args.steps:
            peak, nbytes, _ = measure(steps, streams)
            peaks.append(peak)
            ratio = f"{peak / peaks[0]:.2f}"
            rows.append(
                [name, steps, f"{nbytes / 1e6:.0f}", f"{peak / 1e6:.0f}", ratio, target if len(peaks) > 1 else ""]
            )
    header = ["", "steps", "profile (MB)", "peak resident (MB)", "times the short run", "target"]
    print_table("Memory, embedded checkpoint", header, rows)


if __name__ == "__main__":
    main()
