"""The switch sweep in the browser: its steps are told, and it can be cancelled."""

import re
import zipfile

import pytest
from playwright.sync_api import expect

from tests.app.browser import opened, sample, tab, watch, watch_progress


pytestmark = [pytest.mark.browser]


def start(page):
    tab(page, "Switch")
    watch(page, "#sweep-status")
    page.click("#sweep")
    page.wait_for_function("told.some(text => /step \\d+ of 50/.test(text))")


def test_the_sweep_tells_its_steps_and_shows_curve_and_images(page):
    start(page)
    page.wait_for_function("document.querySelector('#sweep-status').innerText.includes('Done.')")
    assert len(set(re.findall(r"step (\d+) of 50", " ".join(page.evaluate("told"))))) >= 3
    expect(page.locator("#sweep-shown")).to_contain_text("seeds 7 to 9")
    page.wait_for_selector("#sweep-images img")
    assert page.locator("#sweep-images .thumbnail-item").count() == 11
    page.wait_for_selector("text=index >> visible=true")


@pytest.mark.parametrize("button", ["#cancel", "#sweep-cancel"])
def test_a_cancelled_sweep_ends_and_the_model_is_free(page, button):
    start(page)
    page.click(button)
    sample(page)  # without waiting until it has ended
    expect(page.locator("#sweep-status")).to_contain_text("Cancelled: nothing was changed")
    assert not page.is_visible("#sweep-images")


def test_a_switch_to_the_same_label_is_refused(page):
    tab(page, "Switch")
    for name in ("Male", "Wearing Lipstick"):
        page.click(f"#sweep-to label:has-text('{name}')")
    page.click("#sweep")
    expect(page.get_by_text("Expected another label to switch to")).to_be_visible()


def test_a_phone_shows_all_images_of_the_sweep(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = opened(context.new_page(), server.url)
    tab(page, "Switch")
    page.click("#sweep")
    images = page.locator("#sweep-images .thumbnail-item")
    expect(images).to_have_count(11)
    images.last.hover()  # which waits until it no longer moves
    boxes = [image.bounding_box() for image in images.all()]
    frame = page.locator("#sweep-images").bounding_box()
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert all(box["y"] >= frame["y"] for box in boxes)  # nothing is scrolled away within the frame
    assert all(box["y"] + box["height"] <= frame["y"] + frame["height"] for box in boxes)
    context.close()


def test_an_experiment_is_chosen_run_and_downloaded(page, tmp_path):
    tab(page, "Experiments")
    page.click("#experiment input")
    page.click("[role=option]:has-text('What the layers of one block see')")
    page.wait_for_function("document.querySelector('#experiment-words').innerText.includes('Control: the same')")
    page.click("#experiment-cost")
    page.wait_for_function("/Plan: about \\d+ s/.test(document.querySelector('#experiment-status').innerText)")
    watch(page, "#experiment-status")
    watch_progress(page, "#experiment-status")
    page.click("#experiment-run")
    page.wait_for_function("document.querySelector('#experiment-status').innerText.includes('Done.')")
    assert {tuple(seen) for seen in page.evaluate("progress")} == {("1", False)}
    assert re.search(r"about \d+% done", " ".join(page.evaluate("told")))
    shown = page.locator("#experiment-shown")
    expect(shown).to_contain_text("What the layers of one block see; Smiling, seeds 7 to 8, 25 steps")
    expect(shown).to_contain_text("; control: the same network with random weights")
    page.wait_for_selector("#experiment-plot .main-svg")
    with page.expect_download() as download:
        page.click("#experiment-file")
    download.value.save_as(tmp_path / "experiment.zip")
    names = zipfile.ZipFile(tmp_path / "experiment.zip").namelist()
    assert {"report.html", "layer-types/profile.json"} <= set(names)
    # What stands below the words of another question is not its answer, and is said not to be.
    page.click("#experiment input")
    page.click("[role=option]:has-text('Where the runs of two labels part')")
    page.wait_for_selector("#experiment-to", state="visible")
    expect(page.locator("#experiment-words")).to_contain_text("No control here")
    expect(page.locator("#experiment-status")).to_contain_text("still the answer to the earlier question")
    page.click("#experiment input")
    page.click("[role=option]:has-text('What the layers of one block see')")
    page.wait_for_selector("#experiment-to", state="hidden")
    expect(page.locator("#experiment-status")).to_have_text("Done.")


def test_words_of_a_typed_prompt_are_shown_and_a_wrong_one_is_told(page):
    tab(page, "Words")
    page.fill("#words-words textarea, #words-words input", "hat")
    page.click("#words-run")
    expect(page.locator("#words-status")).to_contain_text("expected words that are in the prompt, got")
    page.fill("#words-words textarea, #words-words input", "glasses, blond hair")
    page.check("#words-switch input")
    page.wait_for_selector("#words-other", state="visible")
    page.click("#words-run")
    expect(page.locator("#words-status")).to_contain_text("Done.")
    expect(page.locator("#words-shown")).to_contain_text("from step 10 on (“changed”) a man with black hair")
    page.wait_for_selector("#words-plot .main-svg")
    rows = page.locator("#words-plot .ytick text").all_text_contents()
    assert rows == ["glasses", "blond hair"]
    expect(page.locator("#words-images .ytick text")).to_have_text(["intact", "changed", "difference"])
    page.click("#words input")
    page.click("[role=option]:has-text('Which layer carries the prompt')")
    page.wait_for_selector("#words-seeds", state="visible")
    page.click("#words-run")
    page.wait_for_function("/about \\d+% done/.test(document.querySelector('#words-status').innerText)")
    page.click("#words-cancel")
    expect(page.locator("#words-status")).to_contain_text("Cancelled")
