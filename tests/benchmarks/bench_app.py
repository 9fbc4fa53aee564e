"""Memory and disk of the app over 200 runs and over files that no browser's user would send, at a real server."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.app.browser import ROOT, free_port, wait_for_page
from tests.app.hostile_files import drawings, profiles
from tests.app.visitor import Visitor
from tests.benchmarks.harness import print_table


RUNS, MODEL = 200, "no labels"
UNWANTED = ("Traceback", "Something went wrong", "/tmp", "recursion", "NoneType", "Error")
FILE = {"_type": "gradio.FileData"}


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
    for _ in range(3):  # what the first upload loads, such as decoders, stays
        _send(url, "a sound file", good)
    yield row("and 3 sound files")
    count = 0
    for name, data in [*profiles(good), *drawings()]:
        count += _send(url, name, data)
        if count in (50, 100):
            yield row(f"and {count} hostile files")
    yield row(f"and {count} hostile files")
    visitor.run("sample", model=MODEL, blocks=["mid"], seed=0, steps=3, every=1, gradients=False)
    yield row("and one run more")


def _send(url, name, data):
    """A visitor's file, as a profile and as a layer of the drawing; whether the server has taken it."""
    sender = Visitor(url)
    status, path = sender.upload("profile.zip", data)
    if status != 200:
        return False
    file = {"path": path, "meta": FILE}
    drawing = {"background": None, "layers": [file], "composite": None}
    for _, answer in (sender.call("upload", upload=file), sender.call("share", mask=drawing)):
        told = str(answer.get("error", ""))
        if any(word in told for word in UNWANTED):
            print(f"{name}: {told[:200]}", flush=True)
    return True


def main():
    rows = []
    for what, memory, files in measure():
        rows.append((what, f"{memory:.0f}", f"{files:.1f}"))
        print(*rows[-1], flush=True)
    print_table("The app's server: resident memory and files", ("after", "resident, MB", "files, MB"), rows)


if __name__ == "__main__":
    main()
