"""The switch sweep in the browser: its steps are told, and it can be cancelled."""

import re

import pytest

from tests.app.browser import opened, sample, tab, watch


pytestmark = [pytest.mark.browser]


def sweep_status(page):
    return page.inner_text("#sweep-status")


def start(page):
    tab(page, "Switch")
    watch(page, "#sweep-status")
    page.click("#sweep")
    page.wait_for_function("told.some(text => /step \\d+ of 50/.test(text))")


def test_the_sweep_tells_its_steps_and_shows_curve_and_images(page):
    start(page)
    page.wait_for_function("document.querySelector('#sweep-status').innerText.includes('Done:')")
    assert len(set(re.findall(r"step (\d+) of 50", " ".join(page.evaluate("told"))))) >= 3
    assert "seeds 321 to 323" in sweep_status(page)
    page.wait_for_selector("#sweep-images img")
    assert page.locator("#sweep-images .thumbnail-item").count() == 11
    page.wait_for_selector("text=index >> visible=true")


@pytest.mark.parametrize("button", ["#cancel", "#sweep-cancel"])
def test_a_cancelled_sweep_ends_and_the_model_is_free(page, button):
    start(page)
    page.click(button)
    page.wait_for_function("document.querySelector('#sweep-status').innerText.includes('Cancelled')")
    assert not page.is_visible("#sweep-images")
    sample(page)


def test_a_switch_to_the_same_label_is_refused(page):
    tab(page, "Switch")
    for name in ("Male", "Wearing_Lipstick"):
        page.click(f"#sweep-to label:has-text('{name}')")
    page.click("#sweep")
    page.wait_for_selector("text=Choose another label to switch to")


def test_a_phone_shows_all_images_of_the_sweep(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = opened(context.new_page(), server.url)
    tab(page, "Switch")  # all tabs are seen on a phone, none in a menu
    page.click("#sweep")
    page.wait_for_selector("#sweep-images img")
    page.wait_for_timeout(1000)
    boxes = [image.bounding_box() for image in page.locator("#sweep-images .thumbnail-item").all()]
    frame = page.locator("#sweep-images").bounding_box()
    assert len(boxes) == 11
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    assert all(box["y"] + box["height"] <= frame["y"] + frame["height"] for box in boxes)
    context.close()
