"""The app in a real headless Chromium, as a person would use it."""

import json
import re
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from diffusers_xai.app.theme import HEAD
from tests.app.browser import (
    Server,
    note_views,
    opened,
    pixels,
    press,
    sample,
    status,
    tab,
    volume_titles,
    wait_for_plots,
    wait_for_result,
    watch,
)


pytestmark = [pytest.mark.browser]


def test_a_fresh_page_shows_an_example_and_says_so(page):
    page.wait_for_function("document.querySelector('#shown').innerText.includes('An example: Smiling, seed 7')")
    page.wait_for_selector(".js-plotly-plot:visible")
    assert pixels(page)
    assert "c* = " in page.inner_text("#map-told")
    assert "region of 108 pixels" in page.inner_text("#map-told")
    page.click("#share-panel > button")
    expect(page.locator("#download")).to_be_disabled()
    explained = page.locator(".explained")
    expect(explained.filter(has_text="Activation map.")).to_be_visible()
    tab(page, "Compare")  # what explains a figure is seen with it only
    expect(page.get_by_text("No run is kept yet")).to_be_visible()
    assert explained.filter(visible=True).count() == 0


def test_choose_a_label_sample_ablate_switch_compare_and_download(page, tmp_path):
    sample(page)
    smiling = pixels(page)
    tab(page, "Layers")
    wait_for_plots(page, 6)
    expect(page).to_have_url(re.compile("seed=7"))
    bars = page.evaluate("[...document.querySelectorAll('.cbfill')].map(bar => bar.style.fill)")
    assert bars
    assert [bar for bar in bars if not bar.startswith('url("#')] == []  # seen whatever the address is by now
    page.click("#keep")
    page.click("#label label:has-text('Male')")
    page.wait_for_function("document.querySelector('#stale').innerText.includes('have changed since')")
    sample(page)
    assert pixels(page) != smiling
    expect(page.locator("#stale")).not_to_contain_text("have changed since")
    tab(page, "Compare")
    wait_for_plots(page, 5)
    names = page.inner_text("#pair-status")
    assert re.search(r"Kept run.*: Smiling, seed 7.*This run.*: Male and Smiling, seed 7", names, re.DOTALL)

    before = pixels(page)
    tab(page, "Layers")
    channel = re.search(r"c\* = (\d+)", page.inner_text("#map-told"))[1]
    page.click("#mask-max")
    page.click("#ablation-panel > button")
    page.wait_for_selector(f"#ablations >> text=/:{channel}$/")
    page.click("#switch-panel > button")
    page.check("#switch input")
    sample(page, "at step 12")
    assert pixels(page) != before
    assert re.search(rf"masked \S+:{channel}; label switched to Male and Smiling and .* at step 12", status(page))

    page.click("#share-panel > button")
    page.wait_for_function("document.querySelector('#link textarea, #link input')?.value.includes('switch=12')")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "edited.zip")
    archive = zipfile.ZipFile(tmp_path / "edited.zip")
    assert {Path(name).suffix for name in archive.namelist()} == {".json", ".safetensors"}
    assert str(Path(__file__).parents[2]) not in archive.read("profile.json").decode()
    address = page.url
    assert "switch=12" in address

    # A run of other settings, and the file again: it sets the controls, and what is shown is what is downloaded.
    page.uncheck("#switch input")
    page.fill("#seed input", "5")
    sample(page, "seed 5,")
    page.set_input_files("#upload input[type=file]", tmp_path / "edited.zip")
    page.wait_for_function("document.querySelector('#shown').innerText.includes('from your file')")
    assert page.input_value("#seed input") == "7"
    assert page.is_checked("#switch input")
    with page.expect_download() as download:  # the button waits for the file of what is shown
        page.click("#download")
    download.value.save_as(tmp_path / "again.zip")
    again = zipfile.ZipFile(tmp_path / "again.zip")
    assert json.loads(again.read("profile.json"))["provenance"]["seeds"] == [7]

    # The address keeps the settings: when the page is loaded again, and when one comes back to it.
    def leave_and_come_back():
        page.goto("about:blank")
        page.go_back()

    for load in (page.reload, leave_and_come_back):
        load()
        page.wait_for_function("document.querySelector('#status')?.innerText.includes('from the link')")
        page.click("#switch-panel > button")
        assert page.is_checked("#switch input")


def test_a_mask_drawn_by_mouse_changes_the_gradient_volume(page):
    sample(page)
    before = volume_titles(page)
    assert len(before) == 3
    page.click("#mask-panel > button")
    canvas = page.locator("#mask canvas").first
    canvas.hover()  # which waits until it no longer moves
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 15, y)
    page.mouse.down()
    page.mouse.move(x + 15, y, steps=6)
    page.mouse.up()
    expect(page.locator("#stale")).to_contain_text("have changed since")
    page.locator("#mask").get_by_role("button", name="Undo").click()
    expect(page.locator("#stale")).to_be_empty()
    page.locator("#mask").get_by_role("button", name="Redo").click()
    expect(page.locator("#stale")).to_contain_text("have changed since")
    sample(page)
    assert volume_titles(page) != before
    expect(page.locator("#stale")).to_be_empty()


def test_a_display_control_draws_anew_and_does_not_sample(page):
    sample(page)
    image, told = pixels(page), status(page)
    tab(page, "Layers")
    page.locator("#map-channel input[type=number]").fill("3")
    page.keyboard.press("Enter")
    page.wait_for_selector(".annotation-text:has-text('channel 3')")
    assert (pixels(page), status(page)) == (image, told)


def test_it_works_by_keyboard_alone(page):
    page.focus("#seed input")
    page.keyboard.press("Control+A")
    page.keyboard.type("7")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "sample":
            break
    watch(page, "#status")
    page.keyboard.press("Enter")
    wait_for_result(page)
    assert "seed 7," in status(page)


def test_a_link_restores_the_settings_and_a_bad_one_is_told(page, server):
    opened(page, server.url + "?seed=99&label=3&steps=25&every=5&layers=&gradients=0")
    page.wait_for_function("document.querySelector('#seed input').value == '99'")
    assert [box.is_checked() for box in page.locator("#label input").all()] == [False, False, True, True]
    page.click("#share-panel > button")
    page.click("#make-link")
    page.wait_for_function("(document.querySelector('#link textarea, #link input').value || '').startsWith('http')")
    link = page.input_value("#link textarea, #link input")
    assert re.search(r"\?seed=99&steps=25&every=5&label=3", link)
    opened(page, server.url + "?seed=x")
    page.wait_for_function("document.querySelector('#status').innerText.includes('damaged')")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(browser, server, theme):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = opened(context.new_page(), server.url + f"?__theme={theme}")
    for name in ("Layers", "Experiments", "Switch"):
        box = page.locator(f".tab-container button[role=tab]:has-text('{name}')").bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= 390, name
    # Sample stands at the lower edge of the window: what it tells is scrolled to.
    page.evaluate(
        "scrollTo({top: document.querySelector('#sample').getBoundingClientRect().bottom + scrollY - innerHeight})"
    )
    note_views(page)
    sample(page)
    seen = page.evaluate("seen")
    for words in ("Plan:", "step "):
        assert [is_in_view for text, is_in_view in seen if words in text and "Done" not in text].count(True), words
    assert [text for text, is_in_view in seen if not is_in_view and "Done" not in text] == []
    page.wait_for_function(
        """() => {
            const [box, told] = ['#live', '#shown'].map(name => document.querySelector(name).getBoundingClientRect())
            return box.top >= -5 && told.bottom <= window.innerHeight
        }"""
    )  # the picture and its caption, which are below the controls, have been scrolled to
    assert page.evaluate("window.scrollY") > 300
    page.fill("#seed input", "1.5")
    page.click("#sample")
    expect(page.locator("#status")).to_contain_text("expected a whole number")
    expect(page.locator("#status")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_double_click_is_one_press_unless_something_was_told_between(browser):
    page = browser.new_context().new_page()
    page.set_content(HEAD + "<button class=primary id=sample>Sample</button><p id=status>Ready</p>")
    page.evaluate("() => {window.presses = 0; document.querySelector('#sample').onclick = () => presses += 1}")
    page.dblclick("#sample")
    assert page.evaluate("presses") == 1
    page.mouse.down(click_count=2)  # which still counts as the second click of two, however late it lands
    page.mouse.up(click_count=2)
    assert page.evaluate("presses") == 1
    page.evaluate("document.querySelector('#status').innerText = 'That is long: press Sample again.'")
    page.mouse.down(click_count=2)
    page.mouse.up(click_count=2)
    assert page.evaluate("presses") == 2
    page.click("#sample")
    assert page.evaluate("presses") == 3
    page.context.close()


def test_the_page_has_a_title(page):
    assert page.title() == "How a diffusion model makes a face"


def test_every_control_has_a_label(page):
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent && !(
            e.innerText?.trim() || e.ariaLabel || e.title || e.labels?.length || e.closest('label')
            || e.getAttribute('aria-labelledby') || e.placeholder)).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []


def test_two_sessions_do_not_see_each_other(browser, server):
    pages = [opened(browser.new_context().new_page(), server.url) for _ in range(2)]
    pages[0].fill("#seed input", "1")
    pages[1].fill("#seed input", "2")
    for page in pages:
        watch(page, "#status")
        page.click("#sample")
    for seed, page in enumerate(pages, start=1):
        wait_for_result(page)
        assert f"seed {seed}," in status(page)
    assert pixels(pages[0]) != pixels(pages[1])
    tab(pages[1], "Compare")
    pages[0].click("#keep")
    tab(pages[0], "Compare")
    expect(pages[0].locator("#pair-status")).to_contain_text("This run is kept")
    assert "No run is kept yet" in pages[1].inner_text("body")


def test_cancel_ends_a_run_and_leaves_the_run_before(page):
    sample(page)
    before = pixels(page)
    page.click("#steps input")
    page.click("[role=option]:has-text('250')")
    page.click("#sample")
    page.wait_for_function("document.querySelector('#status').innerText.includes('step ')")
    page.click("#cancel")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Shown is the run before')")
    assert pixels(page) == before
    assert "25 steps" in page.inner_text("#shown")


def test_a_laptop_shows_plan_progress_result_and_errors_under_the_button(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = opened(context.new_page(), server.url)
    # Every text that the status shows, and where it stood at that time.
    page.evaluate(
        """() => {
            const status = document.querySelector('#status')
            window.seen = []
            const note = () => {
                const {top, bottom} = status.getBoundingClientRect()
                const button = document.querySelector('#sample').getBoundingClientRect()
                const where = {top, bottom, button: button.bottom, scrolled: window.scrollY}
                if (status.innerText.trim()) seen.push([status.innerText, where])
            }
            new MutationObserver(note).observe(status, {childList: true, subtree: true, characterData: true})
        }"""
    )
    watch(page, "#status")
    press(page, "#sample")
    wait_for_result(page)
    page.fill("#seed input", "1.5")
    press(page, "#sample")
    expect(page.locator("#status")).to_contain_text("expected a whole number")
    seen = page.evaluate("seen")
    for words in ("Plan:", "step ", "Done:", "expected a whole number"):
        assert [text for text, _ in seen if words in text], words
    assert [
        [text, where]
        for text, where in seen
        if where["scrolled"] or where["top"] < where["button"] or where["bottom"] > 900
    ] == []
    context.close()


def test_files_outside_are_refused(server):
    for path in ("/etc/passwd", str(Path(__file__).parents[2] / "diffusers_xai" / "app" / "server.py")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}gradio_api/file={path}", timeout=30)
        assert refused.value.code in (403, 404)


def test_a_server_that_dies_in_mid_run_is_told(browser):
    server = Server()
    try:
        page = opened(browser.new_context().new_page(), server.url)
        page.click("#steps input")
        page.click("[role=option]:has-text('250')")
        page.click("#sample")
        page.wait_for_function("document.querySelector('#status').innerText.includes('step ')")
    finally:
        server.stop()
    expect(page.locator("body")).to_contain_text(re.compile("connection.*(lost|error)|lost", re.IGNORECASE))
