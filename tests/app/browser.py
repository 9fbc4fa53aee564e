"""What the browser tests share: a server in a process of its own, and what a person does on the page."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import expect


ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 180_000  # ms, for a machine that is busy with other things
expect.set_options(timeout=WAIT)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_page(url, process):
    """The page of a server that is starting."""
    for _ in range(1200):  # a machine may be busy with other things
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.5)
    raise TimeoutError("the server did not start")


class Server:
    def __init__(self):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.app.serve", str(port)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_for_page(self.url, self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self):
        self.process.kill()
        self.process.wait()


def opened(page, url):
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.wait_for_selector("#sample")
    page.wait_for_function("document.querySelector('#status').innerText.trim().length > 10")
    return page


def status(page):
    return page.inner_text("#status")


def watch(page, selector):
    """Notes in `told` every text that an element shows from now on: polling may miss one that does not last."""
    page.evaluate(
        """selector => {
            const element = document.querySelector(selector)
            const told = window.told = []
            const changes = {childList: true, subtree: true, characterData: true}
            new MutationObserver(() => told.push(element.innerText)).observe(element, changes)
        }""",
        selector,
    )


def watch_progress(page, selector):
    """Notes in `progress`, while Gradio's progress is shown, how opaque the status' text is, and if both overlap."""
    page.evaluate(
        """selector => {
            const status = document.querySelector(selector), progress = window.progress = []
            const note = () => {
                const bar = status.querySelector('[data-testid=status-tracker]:not(.hide)')
                const text = status.querySelector('[data-testid=markdown-wrapper]')
                if (!bar?.getBoundingClientRect().height) return
                const [one, other] = [bar, text].map(element => element.getBoundingClientRect())
                progress.push([getComputedStyle(text).opacity, one.top < other.bottom && other.top < one.bottom])
            }
            new MutationObserver(note).observe(status, {childList: true, subtree: true, attributes: true})
        }""",
        selector,
    )


def press(page, selector):
    """A press with the pointer, once nothing lies over the element: `click` tries again by scrolling the page."""
    middle = page.wait_for_function(
        """selector => {
            const element = document.querySelector(selector)
            const {x, y, width, height} = element.getBoundingClientRect()
            const middle = [x + width / 2, y + height / 2]
            return element.contains(document.elementFromPoint(...middle)) && middle
        }""",
        arg=selector,
    )
    page.mouse.click(*middle.json_value())


def note_views(page):
    """Notes in `seen` every text that the status shows from now on, and whether all of it is within the window."""
    page.evaluate(
        """() => {
            const status = document.querySelector('#status')
            window.seen = []
            const note = () => {
                const box = status.getBoundingClientRect()
                const text = status.innerText.trim()
                if (text) seen.push([text, box.top >= 0 && box.bottom <= window.innerHeight])
            }
            new MutationObserver(note).observe(status, {childList: true, subtree: true, characterData: true})
        }"""
    )


def tinted_part(page):
    """What is tinted in the region's editor: left, top, right and bottom as shares of its image, which is grey."""
    page.locator("#mask canvas").first.hover()  # which waits until it no longer moves
    picture = np.asarray(Image.open(BytesIO(page.locator("#mask canvas").first.screenshot())).convert("RGB"), int)
    grey, tint = (abs(picture - colour).sum(-1) < 20 for colour in ((128, 128, 128), (157, 117, 82)))

    def extents(there, least):  # lines with fewer such pixels belong to the tools beside the image
        return [np.flatnonzero(there.sum(axis) >= least)[[0, -1]] + (0, 1) for axis in (0, 1)]

    image, part = extents(grey, 100), extents(tint, 8)
    (left, right), (top, bottom) = ((b - a[0]) / (a[1] - a[0]) for a, b in zip(image, part, strict=True))
    return left, top, right, bottom


def sample(page, expected="Done:"):
    """Samples anew, and waits until the new result is shown."""
    watch(page, "#status")
    page.click("#sample")
    wait_for_result(page, expected)


def wait_for_result(page, expected="Done:"):
    """After `watch(page, "#status")` and a start: until the new result is shown."""
    page.wait_for_function("told.some(text => !text.includes('Done:'))")
    expect(page.locator("#status")).to_contain_text(expected)  # which says what stands there instead
    page.wait_for_function(
        """() => {
            const [told, shown] = ['#status', '#shown'].map(name => document.querySelector(name).innerText.trim())
            return told.replace('Done: ', '') === shown.replace('Shown: ', '')
        }"""
    )


def tab(page, name):
    page.click(f"button[role=tab]:has-text('{name}')")
    page.wait_for_selector(f"button[role=tab][aria-selected=true]:has-text('{name}')")


def wait_for_plots(page, count):
    """At least so many figures are drawn and seen."""
    page.wait_for_function(
        """count => [...document.querySelectorAll('.js-plotly-plot')]
            .filter(plot => plot.offsetParent && plot.querySelector('.main-svg')).length >= count""",
        arg=count,
    )


def pixels(page):
    return page.get_attribute("#live img", "src")


def volume_titles(page):
    tab(page, "Gradients")
    page.wait_for_selector("text=above the mean >> visible=true")
    return [text for text in page.locator(".annotation-text").all_text_contents() if "above the mean" in text]
