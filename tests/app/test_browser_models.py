"""Choosing among models in the browser: the embedded one, one without labels, one with classes and no attention."""

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from playwright.sync_api import expect

from tests.app.browser import opened, pixels, sample, status, tab, tinted_part, wait_for_plots


pytestmark = [pytest.mark.browser]
EMBEDDED, NO_LABELS, CLASSES = "lfw-32 (in the package, fast)", "no labels", "ten classes, no attention"


def choose(page, name):
    page.click("#model input")
    page.click(f"[role=option]:has-text('{name}')")
    expect(page.locator("#status")).to_contain_text(name)
    expect(page.locator("#label-class" if name == CLASSES else "#label")).to_be_visible(visible=name != NO_LABELS)


def open_panel(page, name):
    page.click(f"#{name} > button")
    expect(page.locator(f"#{name} > button")).to_have_class(re.compile(r"\bopen\b"))


def expect_slots(page, *blocks):
    shown = page.locator("[id^=slot-] [data-testid=block-info]:visible")
    expect(shown).to_have_text([f"Layer of {block}" for block in blocks])


def test_a_model_without_labels_hides_what_needs_them_and_samples(page):
    assert page.is_visible("#label")
    choose(page, NO_LABELS)
    expect(page.locator("#model")).to_contain_text("16 × 16 pixels, no labels")
    for hidden in ("#label", "#label-class", "#switch-panel", "#sweep-to", "#sweep-to-class"):
        expect(page.locator(hidden)).to_be_hidden()
    open_panel(page, "blocks-panel")
    blocks = ["down_blocks.0", "down_blocks.1", "mid", "up_blocks.0", "up_blocks.1"]
    expect(page.locator("#blocks label")).to_have_text(blocks)
    sample(page)
    wait_for_plots(page, 6)
    tab(page, "Gradients")
    wait_for_plots(page, 4)
    expect(page.locator(".js-plotly-plot:visible")).to_have_count(4)  # no label sensitivity
    tab(page, "Switch")
    expect(page.locator("#sweep-status")).to_contain_text("no labels")
    expect(page.locator("#sweep")).to_be_disabled()


def test_a_model_without_attention_says_so_and_its_class_is_a_number(page):
    choose(page, CLASSES)
    expect(page.locator("#label-class")).to_be_visible()
    expect(page.locator("#label")).to_be_hidden()
    sample(page)
    first = pixels(page)
    tab(page, "Attention")
    expect(page.locator("#attention-note")).to_contain_text("has no attention layers")
    expect(page.locator(".js-plotly-plot:visible")).to_have_count(0)
    page.click("#label-class input")
    page.click("[role=option]:text-is('7')")
    sample(page)
    assert pixels(page) != first


def test_slots_follow_the_chosen_blocks_and_keep_their_layers(page):
    open_panel(page, "blocks-panel")
    expect_slots(page, "downs.0", "downs.2", "mid", "ups.2")
    page.click("#slot-1 input")
    page.click("[role=option]:text-is('downs.2.0')")
    page.click("#blocks label:has-text('downs.0')")
    expect_slots(page, "downs.2", "mid", "ups.2")
    expect(page.locator("#slot-0 input")).to_have_value("downs.2.0")
    page.click("#blocks label:has-text('downs.1')")
    expect_slots(page, "downs.1", "downs.2", "mid", "ups.2")
    expect(page.locator("#slot-1 input")).to_have_value("downs.2.0")
    sample(page)
    wait_for_plots(page, 6)
    labels = "\n".join(page.locator(".js-plotly-plot:visible text").all_text_contents())
    assert "downs.2.0" in labels
    assert "downs.0" not in re.findall(r"● (\S+)", labels)


def test_two_visitors_use_two_models(browser, server):
    pages = [opened(browser.new_context().new_page(), server.url) for _ in range(2)]
    choose(pages[1], NO_LABELS)
    for page in pages:
        page.click("#sample")
    for page in pages:
        page.wait_for_function("document.querySelector('#status').innerText.includes('Done:')")
    assert [page.input_value("#model input") for page in pages] == [EMBEDDED, NO_LABELS]
    assert [page.is_visible("#label") for page in pages] == [True, False]
    assert pixels(pages[0]) != pixels(pages[1])
    for page in pages:
        page.context.close()


def test_a_link_opens_its_model_and_a_wrong_name_is_told(page, server):
    choose(page, CLASSES)
    page.click("#label-class input")
    page.click("[role=option]:text-is('4')")
    open_panel(page, "share-panel")
    page.click("#make-link")
    page.wait_for_function("(document.querySelector('#link textarea, #link input').value || '').startsWith('http')")
    link = page.input_value("#link textarea, #link input")
    query = dict(parse_qsl(urlsplit(link).query, keep_blank_values=True))
    assert (query["model"], query["label"]) == (CLASSES, "4")
    opened(page, link)
    page.wait_for_function("document.querySelector('#status').innerText.includes('from the link')")
    assert page.input_value("#model input") == CLASSES
    assert page.input_value("#label-class input") == "4"
    opened(page, server.url + "?" + urlencode({"model": "google/ddpm-cat-256"}))
    page.wait_for_function("document.querySelector('#status').innerText.includes('that is offered here')")
    assert EMBEDDED in status(page)
    assert page.input_value("#model input") == EMBEDDED


def test_a_link_restores_every_setting(page, server):
    mask = '{"size": [32, 32], "runs": [330, 5, 27, 5, 657]}'
    settings = {
        "model": EMBEDDED, "seed": "5", "steps": "20", "every": "4", "label": "9",
        "layers": "down_blocks.1.attentions.0.attn,mid_block.resnets.0", "gradients": "1", "mask": mask,
        "ablate": "down_blocks.0.resnets.0:3,mid_block.resnets.1:7", "switch": "10:6",
    }  # fmt: skip
    opened(page, f"{server.url}?{urlencode(settings)}")
    page.wait_for_function("document.querySelector('#status').innerText.includes('from the link')")
    expect(page.locator("#seed input")).to_have_value("5")
    # The region is drawn where it lies: rows 10 and 11, columns 10 to 14 of 32.
    open_panel(page, "mask-panel")
    assert tinted_part(page) == pytest.approx((10 / 32, 10 / 32, 15 / 32, 12 / 32), abs=1 / 64)
    open_panel(page, "switch-panel")
    expect(page.locator("#switch input")).to_be_checked()
    open_panel(page, "share-panel")
    page.click("#make-link")
    page.wait_for_function("(document.querySelector('#link textarea, #link input').value || '').startsWith('http')")
    link = page.input_value("#link textarea, #link input")
    assert dict(parse_qsl(urlsplit(link).query, keep_blank_values=True)) == settings
