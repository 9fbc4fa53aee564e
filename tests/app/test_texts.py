"""Every panel is explained, and the explanation leads to a definition."""

import re

import gradio as gr
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import layout, models, settings, texts
from tests.tiny import convnext_unet


DEFINED = set(re.findall(r'id="def-(\w+)"', texts.DEFINITIONS_HTML))
PANELS = (gr.Plot, gr.Gallery, gr.Image, gr.ImageEditor)


def in_order(block):
    for child in block.children:
        yield child
        if hasattr(child, "children"):
            yield from in_order(child)


@pytest.fixture(scope="module")
def components():
    model = models.Model("tiny", XAIPipeline(convnext_unet(), DDPMScheduler()))
    with gr.Blocks() as demo:
        layout.build_layout({"tiny": model}, model.default(settings.Limits()), settings.Limits())
    return list(in_order(demo))


def test_every_panel_follows_its_explanation(components):
    explained, shared = {}, 0
    text = None
    for component in components:
        if isinstance(component, (gr.Tab, gr.Accordion)):
            text = None  # an explanation counts within its tab only
        elif isinstance(component, gr.Markdown) and "](#def-" in component.value:
            text = component.value
        elif isinstance(component, PANELS) and not str(component.elem_id).startswith("experiment-"):
            assert text is not None, component.label
            shared += text in explained
            explained.setdefault(text, []).append(component.label)
    # region, live; layers 7, attention 3, gradients 5, comparison 7, sweep 2
    assert len(explained) + shared == 26
    assert all(len(panels) <= 2 for panels in explained.values())
    assert [panels for panels in explained.values() if len(panels) == 2] == [
        ["The process", "The predicted images"],
        ["A_t of the kept run", "A_t of this run"],
        ["PGV of the kept run", "PGV of this run"],
    ]


def test_an_experiment_is_told_in_its_own_words_before_its_figures(components):
    order = [str(component.elem_id) for component in components if str(component.elem_id).startswith("experiment-")]
    assert order.index("experiment-words") < order.index("experiment-plot") < order.index("experiment-images")
    words = next(component for component in components if component.elem_id == "experiment-words")
    assert len(words.value) > 100


def test_every_link_leads_to_a_definition_and_every_definition_is_used(components):
    markdown = "\n".join(component.value for component in components if isinstance(component, gr.Markdown))
    linked = re.findall(r"\]\(#def-(\w+)\)", markdown)
    assert set(linked) == DEFINED


def test_an_explanation_is_a_sentence_or_three(components):
    for component in components:
        if isinstance(component, gr.Markdown) and "](#def-" in component.value:
            assert 20 < len(component.value) < 300
