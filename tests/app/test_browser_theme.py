"""Both themes: every text can be read, and figures are no white cards on a dark page."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.app.browser import opened, sample, tab, watch


pytestmark = [pytest.mark.browser]
CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
# Until what moves has come to rest, but for what always turns.
FADED = """() => Promise.all(document.getAnimations()
    .filter(animation => animation.effect.getComputedTiming().endTime < Infinity)
    .map(animation => animation.finished.catch(() => null))).then(() => null)"""
PANELS = ("process-panel", "blocks-panel", "mask-panel", "ablation-panel", "switch-panel", "share-panel")


def unreadable(page):
    """Texts that are hard to read, also once what fades in has done so."""
    found = []
    for _ in range(2):
        result = page.evaluate(CONTRAST)
        assert result["checked"] > 30
        found.append(result["failures"])
        if not result["failures"]:
            return []
        page.evaluate(FADED)
    lasting = {tuple(colors) for _, _, *colors in found[0]}
    return [failure for failure in found[1] if tuple(failure[2:]) in lasting]


@pytest.fixture(params=["light", "dark"])
def themed_page(request, browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = opened(context.new_page(), f"{server.url}?__theme={request.param}")
    assert page.evaluate("document.body.classList.contains('dark')") == (request.param == "dark")
    yield page
    context.close()


def test_the_measure_finds_what_is_hard_to_read(browser):
    page = browser.new_context().new_page()
    page.set_content(
        """<body style="background: #ffffff; color: #000000"><p style="color: #777777">4.48</p>
        <p style="color: #767676">4.54</p><div style="background: #000000"><p>1.00</p></div>
        <p style="opacity: 0.5">3.98</p><p hidden style="color: white">unseen</p>
        <div class="js-plotly-plot"><svg><g class="shapelayer"><path d="M0 0H90V40H0Z" fill="#0072b2"/></g>
        <text x="9" y="20" fill="#0072b2">box</text></svg></div></body>"""
    )
    failures = {text: float(ratio) for ratio, text, *_ in page.evaluate(CONTRAST)["failures"]}
    assert failures == {"4.48": 4.48, "1.00": 1.0, "3.98": pytest.approx(3.95, abs=0.05), "box": 1.0}
    page.context.close()


def test_every_text_has_contrast(themed_page):
    page = themed_page
    assert unreadable(page) == []
    for panel in PANELS:
        page.click(f"#{panel} > button")
    sample(page)
    page.click("#keep")
    page.click("#label label:has-text('Male')")
    sample(page)
    for name in ("Layers", "Attention", "Gradients", "Compare"):
        tab(page, name)
        page.wait_for_selector(".js-plotly-plot:visible")
        assert unreadable(page) == [], name
    tab(page, "Switch")
    watch(page, "#sweep-status")
    page.click("#sweep")
    page.wait_for_function("told.some(text => /step \\d+ of 50/.test(text))")
    assert unreadable(page) == []
    expect(page.locator("#sweep-images .thumbnail-item")).to_have_count(11)
    assert unreadable(page) == []


def test_figures_have_the_page_s_background(themed_page):
    page = themed_page
    sample(page)
    page.wait_for_selector(".js-plotly-plot:visible")
    fills = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot:not([hidden]) .main-svg')].map(e => e.style.background)"
    )
    assert fills
    assert all("rgba(0, 0, 0, 0)" in fill for fill in fills if fill)
    titles = page.evaluate("[...document.querySelectorAll('.xtitle')].map(e => getComputedStyle(e).fill)")
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert set(titles) == {"rgb(244, 244, 245)" if dark else "rgb(31, 41, 51)"}
