import ast
import errno
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from diffusers_xai.report import write_report
from diffusers_xai.report.origin import python_code
from diffusers_xai.report.words import label_words
from tests.plots.profiles import ATTENTION, CONV, make_profile, with_gradients, without


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page without scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.texts.append(data)

    def headings(self):
        return re.findall(r"<h2>(.*?)</h2>", self.source)


@pytest.fixture
def report(tmp_path):
    def write(profile, **options) -> Page:
        write_report(profile, tmp_path / "report.html", **options)
        return Page(tmp_path / "report.html")

    return write


def test_page_loads_nothing(report):
    page = report(make_profile())
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
        assert "url(" not in attributes.get("style", "").replace("url(data:", "")
    for style in re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL):
        assert "url(" not in style
        assert "@import" not in style
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_there_once_and_draws_six_figures(report):
    page = report(make_profile())
    assert page.source.count("plotly.js v") == 1
    assert page.source.count("Plotly.newPlot(") == 6


def test_page_says_what_was_generated(report):
    page = report(make_profile())
    assert "How the model formed this face" in page.text
    assert "0011 = Smiling, Hat, not Bangs, not Male" in page.text
    assert "321" in page.text
    two = report(make_profile(samples=2))
    assert "these 2 faces" in two.text
    assert sum(tag == "img" for tag, _ in two.elements) == 2


def test_every_picture_has_a_text_and_every_section_a_heading(report):
    page = report(make_profile())
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    assert all(attributes.get("aria-label") for _, attributes in page.elements if attributes.get("role") == "img")
    assert sum(tag == "section" for tag, _ in page.elements) == len(page.headings())
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert dict(page.elements)["html"]["lang"] == "en"


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        (["x0"], "What the network predicts along the way"),
        (["attention_outputs"], "Where attention works"),
        (["measures/ssim", "samples"], "How much the image changes"),
        ([f"activations/{ATTENTION}", f"activations/{CONV}"], "What single channels see"),
    ],
)
def test_what_is_not_recorded_is_left_out(report, missing, heading):
    assert heading in report(make_profile()).headings()
    assert heading not in report(without(make_profile(), *missing)).headings()


@pytest.mark.parametrize("missing", ["gradient_volume", "label_sensitivity"])
def test_gradients_have_their_sections(report, missing):
    headings = {
        "gradient_volume": "The same, pixel by pixel",
        "label_sensitivity": "Which attribute would change these pixels",
    }
    profile = with_gradients(make_profile())
    assert {*headings.values(), "Through which places the layers act on it"} <= set(report(profile).headings())
    assert headings[missing] not in report(without(profile, missing)).headings()


def test_another_run_is_compared(report):
    ablation = {"type": "ChannelAblation", "layers": [CONV], "channels": [3], "replace": "zero", "amount": 1.0}
    edited = make_profile(edits=[ablation, {"type": "LabelSwitch", "to": 12, "from_step": 5, "from_timestep": None}])
    page = report(make_profile(), edited=edited)
    assert {"What the change does", "When the two runs part"} <= set(page.headings())
    assert "channel 3 of mid_block2 set to zero; the label switched to Bangs, Male, not Smiling" in page.text
    assert "What the change does" not in report(make_profile()).headings()


def test_an_interrupted_run_is_called_that(report):
    assert "interrupted" not in report(make_profile()).text
    assert "interrupted" in report(without(make_profile(complete=False), "final_sample")).text


def test_what_comes_from_the_profile_is_escaped(report):
    attack = "</script><script>alert(1)</script><img src=http://x onerror=alert(1)>"
    profile = make_profile(
        layer_aliases={attack: ATTENTION},
        pipeline={"class": "XAIPipeline", "name_or_path": attack},
        model={"class": attack, "config": {"class_attributes": [attack, "B", "C", "D"]}},
        scheduler={"class": attack, "config": {"prediction_type": attack}},
        versions={attack: attack},
        created=attack,
        record=[{"type": attack, "layers": attack}],
        edits=[{"type": attack, "layers": attack}],
    )
    page = report(profile, command=["diffusers-xai", attack])
    assert "<script>alert" not in page.source
    assert "<img src=http" not in page.source
    assert "alert(1)" in page.text


def test_made_with_code_that_python_can_read():
    provenance = {
        "pipeline": {"class": "XAIPipeline", "name_or_path": "user/model"},
        "scheduler": {"class": "DDIMScheduler", "config": {}},
        "class_labels": [3],
        "seeds": [321],
        "num_inference_steps": 50,
        "guidance_scale": 2.0,
        "record": [{"type": "Samples", "every": 5, "steps": None}, {"type": "Activations", "layers": ["a", "b"]}],
    }
    code = python_code(provenance)
    calls = {ast.unparse(n.func): n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)}
    assert ast.literal_eval(calls["XAIPipeline.from_pretrained"].args[0]) == "user/model"
    arguments = {k.arg: ast.unparse(k.value) for k in calls["pipe"].keywords}
    assert arguments == {
        "class_labels": "[3]",
        "num_inference_steps": "50",
        "generator": "[torch.Generator().manual_seed(321)]",
        "guidance_scale": "2.0",
        "record": "[Samples(every=5), Activations(layers=['a', 'b'])]",
    }
    assert "from diffusers_xai import Activations, Samples, XAIPipeline\n" in code
    assert python_code({"pipeline": {"class": "DDPMPipeline"}}) is None


def test_an_unconditional_run_names_no_label(report):
    page = report(make_profile(samples=2, class_labels=[None, None], model={"class": "UNet2DModel", "config": {}}))
    assert "Label" not in page.text
    assert "these 2 images" in page.text
    code = python_code({"pipeline": {"class": "XAIPipeline", "name_or_path": "a/b"}, "class_labels": [None, None]})
    assert "class_labels" not in code
    assert "batch_size=2" in code


def test_the_command_is_printed_as_a_shell_reads_it(report):
    page = report(make_profile(), command=["diffusers-xai", "profile", "--layers", "downs.*"])
    assert "diffusers-xai profile --layers 'downs.*'" in page.text


def test_a_mask_is_shown(report):
    mask = np.zeros((10, 8), dtype=bool)
    mask[:5] = True
    page = report(make_profile(), mask=mask)
    assert any("region" in attributes.get("alt", "") for tag, attributes in page.elements if tag == "img")
    assert "chosen within the region" in page.text


def test_a_bare_profile_has_a_page(report):
    profile = make_profile()
    page = report(type(profile)({"final_sample": profile["final_sample"]}, {}))
    assert page.headings() == ["How it was made"]


def test_too_little_to_compare_is_left_out(report):
    profile = without(make_profile(), "measures/ssim", "final_sample", f"activations/{CONV}")
    first = {name: profile[name].isel(step=[0]) for name in profile}
    headings = report(type(profile)(first, profile.provenance)).headings()
    assert "From noise to image" in headings
    assert "What single channels see" in headings
    assert "How much the image changes" not in headings
    assert "When the layers change" not in headings


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(make_profile(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_label_words():
    attributes = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
    assert label_words(0b0011, attributes) == "Smiling, Wearing_Lipstick, not Bangs, not Male"
    assert label_words(0b1000, attributes) == "Bangs, not Male, not Smiling, not Wearing_Lipstick"
    assert label_words(-1, attributes) == "no label"
    assert label_words(7, ()) == "class 7"
