"""Starts the same training again and again, and kills it at random moments: a process of its own, see `test_killed`.

    python -m tests.training.killed_run KILLS SEED SECONDS STEPS ARGUMENTS-OF-train.py …

Each training is a fork of this process, which has imported everything, and lives for at most SECONDS, or STEPS on a
machine so fast that it would end before it is killed. Prints how many were killed.
"""

import os
import random
import signal
import sys
import time

import torch

from training.checkpoint import checkpoint_step, list_checkpoints
from training.train import main


def train_in_fork(arguments: list[str]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    return child


def steps_done(output: str) -> int:
    return max(map(checkpoint_step, list_checkpoints(output)), default=0)


if __name__ == "__main__":
    kills, seed, seconds, steps = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    arguments = sys.argv[5:]
    output = arguments[arguments.index("--output") + 1]
    torch.set_num_threads(1)
    moments, killed = random.Random(seed), 0
    while killed < kills:
        resume = ["--resume"] if list_checkpoints(output) else []
        last_step = steps_done(output) + steps
        child = train_in_fork([*arguments, *resume])
        moment = time.monotonic() + moments.uniform(0, seconds)
        while time.monotonic() < moment and steps_done(output) < last_step:
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the training ended with status {status} before it was killed: give it more steps")
    resume = ["--resume"] if list_checkpoints(output) else []
    _, status = os.waitpid(train_in_fork([*arguments, *resume]), 0)
    print(killed)
    sys.exit(os.waitstatus_to_exitcode(status))
