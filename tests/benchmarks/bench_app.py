"""Memory and disk of the app over 200 runs and over files that no browser's user would send, at a real server."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.app.browser import ROOT, free_port, wait_for_page
from tests.app.hostile_files import UNWANTED, drawings, profiles
from tests.app.visitor import Visitor
from tests.benchmarks.harness import print_table


RUNS, MODEL = 200, "no labels"


def measure():
    """Rows of (what has been done, resident MB, MB of files)."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [sys.executable, "-W", "ignore", "-m", "tests.app.serve", str(port)]
        environment = {**os.environ, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_for_page(url, server)
            process = psutil.Process(server.pid)

            def row(what):
                files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                return what, process.memory_info().rss / 2**20, files / 2**20

            yield from _traffic(url, row)
        finally:
            server.kill()
            server.wait()


def _traffic(url, row):
    visitor = Visitor(url)
    for run in range(RUNS + 1):
        if run in (20, RUNS // 2, RUNS):
            yield row(f"{run} runs")
        visitor.run("sample", model=MODEL, blocks=["mid"], seed=run, steps=3, every=1, gradients=False)
        if run % 10 == 0:
            visitor.call("show")
    good = (ROOT / "diffusers_xai" / "app" / "example.zip").read_bytes()
    sender = Visitor(url)
    for _ in range(3):  # what the first upload loads, such as decoders, stays
        sender.send(good)
    yield row("and 3 sound files")
    count = 0
    for name, data in [*profiles(good), *drawings()]:
        told = sender.send(data)
        if told is None:
            continue
        if any(word in text for word in UNWANTED for text in told):
            print(f"{name}: {' '.join(told)[:200]}", flush=True)
        count += 1
        if count in (50, 100):
            yield row(f"and {count} hostile files")
    yield row(f"and {count} hostile files")
    visitor.run("sample", model=MODEL, blocks=["mid"], seed=0, steps=3, every=1, gradients=False)
    yield row("and one run more")


def main():
    rows = []
    for what, memory, files in measure():
        rows.append((what, f"{memory:.0f}", f"{files:.1f}"))
        print(*rows[-1], flush=True)
    print_table("The app's server: resident memory and files", ("after", "resident, MB", "files, MB"), rows)


if __name__ == "__main__":
    main()
