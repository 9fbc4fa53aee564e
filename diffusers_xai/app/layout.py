"""What stands where on the page: settings at the left, results at the right."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from diffusers_xai.app import texts
from diffusers_xai.app.experiments import add_tab
from diffusers_xai.app.models import Model
from diffusers_xai.app.session import Session
from diffusers_xai.app.settings import MAX_GUIDANCE, SCHEDULERS, Limits, Settings
from diffusers_xai.app.shown import EXAMPLES, shown
from diffusers_xai.app.words import add_words_tab
from diffusers_xai.labels import attribute_words


def build_layout(
    models: Mapping[str, Model],
    settings: Settings,
    limits: Limits,
    folder: Path | None = None,
    prompts: bool = False,
) -> SimpleNamespace:
    """All components, within `gr.Blocks`, as they are for the `settings` of one of the models.

    Args:
        models (`Mapping[str, Model]`): What can be chosen.
        settings (`Settings`): What is chosen at first.
        limits (`Limits`): What a visitor may ask for.
        folder (`Path`, *optional*): Where visitors' files lie; the system's place for them by default.
        prompts (`bool`, defaults to `False`): Whether there is a model with a prompt.
    """
    c = SimpleNamespace()
    c.session = gr.State(Session(folder))
    c.dark = gr.Checkbox(visible=False)
    c.asked = gr.Number(0, visible="hidden", elem_id="asked", show_label=False)  # the number of the latest run
    model = models[settings.model]
    values = shown(model, settings, limits)
    gr.Markdown(texts.INTRO)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            _settings(c, values, list(models), limits)
        with gr.Column(scale=5, min_width=320):
            _results(c, values, models, prompts)
    gr.HTML(texts.DEFINITIONS_HTML, elem_id="definitions")
    return c


def _label(c: SimpleNamespace, values: dict[str, Any], name: str, title: str, elem_id: str) -> None:
    names = gr.CheckboxGroup(label=title, elem_id=elem_id, **values[f"{name}_names"])
    number = gr.Dropdown(label=f"{title} the label", elem_id=f"{elem_id}-class", **values[f"{name}_class"])
    setattr(c, f"{name}_names", names)
    setattr(c, f"{name}_class", number)


def _settings(c: SimpleNamespace, values: dict[str, Any], models: list[str], limits: Limits) -> None:
    c.model = gr.Dropdown(models, label="Model", interactive=len(models) > 1, elem_id="model", **values["model"])
    _label(c, values, "label", "The image has", "label")
    c.null_label = gr.Checkbox(label="No label (the null label)", elem_id="null-label", **values["null_label"])
    with gr.Row():
        c.seed = gr.Number(label="Noise seed", precision=0, minimum=0, elem_id="seed", min_width=90, **values["seed"])
        c.steps = gr.Dropdown(label="Steps", elem_id="steps", min_width=90, **values["steps"])
    c.random = gr.Button("Random seed", elem_id="random", size="sm")
    with gr.Row():
        c.sample = gr.Button("Sample", variant="primary", elem_id="sample", min_width=120)
        c.cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
    c.status = gr.Markdown(texts.EMPTY, elem_id="status", elem_classes="status")
    c.stale = gr.Markdown("", elem_id="stale")
    examples = gr.Examples(
        [list(example) for example in EXAMPLES], [c.label_names, c.seed], label="Examples: click, then Sample",
        example_labels=[f"{' and '.join(map(attribute_words, names))}, seed {seed}" for names, seed in EXAMPLES],
        **values["examples"],
    )  # fmt: skip
    c.examples = examples.dataset
    c.plan = gr.Button("What would it cost?", size="sm", elem_id="plan")
    panel = partial(gr.Accordion, open=False)
    with panel("Steps, scheduler and guidance", elem_id="process-panel"):
        c.every = gr.Slider(1, 100, step=1, label="Record every … steps", elem_id="every", **values["every"])
        c.scheduler = gr.Dropdown(list(SCHEDULERS), label="Scheduler", elem_id="scheduler", **values["scheduler"])
        c.guidance = gr.Slider(
            1, MAX_GUIDANCE, step=0.1, label="Guidance (1 is none)", elem_id="guidance", **values["guidance"]
        )  # fmt: skip
    with panel("Blocks and layers to record", elem_id="blocks-panel", **values["blocks_panel"]) as c.blocks_panel:
        c.blocks = gr.CheckboxGroup(
            label=f"Blocks (at most {limits.max_blocks} at a time)", elem_id="blocks", **values["blocks"]
        )
        for i in range(limits.max_blocks):
            name = f"slot_{i}"
            setattr(c, name, gr.Dropdown(**{"label": "Layer", "elem_id": f"slot-{i}", **values[name]}))
        c.weights = gr.Checkbox(
            label="Record softmax attention weights", elem_id="weights", **values["weights"]
        )  # fmt: skip
    with panel("Region, and its gradients", elem_id="mask-panel"):
        c.gradients = gr.Checkbox(
            label="Compute gradients of a region (takes longest)", elem_id="gradients", **values["gradients"]
        )  # fmt: skip
        gr.Markdown(texts.REGION.format(pixels=limits.max_mask_pixels))
        with gr.Column():
            c.painted = gr.Button(visible="hidden", elem_id="painted")  # which the page itself clicks, see `HEAD`
            c.editor = gr.ImageEditor(
                type="numpy", image_mode="RGBA", label="Region", elem_id="mask", height=420, sources=(),
                brush=gr.Brush(default_size=24, colors=["#d55e00"], color_mode="fixed"), transforms=(), layers=False,
            )  # fmt: skip
    with panel("Mask channels", elem_id="ablation-panel", **values["ablation_panel"]) as c.ablation_panel:
        gr.Markdown(texts.ABLATION)
        c.ablate_layer = gr.Dropdown(label="Layer", elem_id="ablate-layer", **values["ablate_layer"])
        c.ablate_channel = gr.Number(0, label="Channel", precision=0, minimum=0, elem_id="ablate-channel")
        c.ablate_add = gr.Button("Mask this channel", size="sm", elem_id="ablate-add")
        c.ablations = gr.Dropdown(
            multiselect=True, allow_custom_value=True, label="Masked channels (× removes one)", elem_id="ablations",
            **values["ablations"],
        )  # fmt: skip
    with panel("Switch the label during the run", elem_id="switch-panel", **values["switch_panel"]) as c.switch_panel:
        gr.Markdown(texts.SWITCH)
        c.switch = gr.Checkbox(label="Switch the label", elem_id="switch", **values["switch"])
        c.switch_at = gr.Slider(0, step=1, label="At step", elem_id="switch-at", **values["switch_at"])
        _label(c, values, "switch", "From then on it has", "switch-to")
    with panel("Save, open, share", elem_id="share-panel"):
        c.link = gr.Textbox(label="Link to these settings", buttons=["copy"], interactive=False, elem_id="link")
        c.share = gr.Button("Make a link", size="sm", elem_id="make-link")
        c.download = gr.DownloadButton("Download the profile (zip)", size="sm", interactive=False, elem_id="download")
        c.upload = gr.File(label="Open a profile (zip)", file_types=[".zip"], elem_id="upload", height=110)


def _plot(label: str) -> gr.Plot:
    return gr.Plot(label=label, elem_classes="figure", show_label=False, visible=False)


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """A panel: the text, and below it what is made within; not seen while there is no figure, see the CSS."""
    with gr.Column(elem_classes="explained"):
        gr.Markdown(text)
        yield


def _explained_plot(text: str, label: str) -> gr.Plot:
    with _explained(text):
        return _plot(label)


def _results(c: SimpleNamespace, values: dict[str, Any], models: Mapping[str, Model], prompts: bool) -> None:
    gr.Markdown(texts.LIVE)
    c.live = gr.Image(label="x_t while it forms", height=220, interactive=False, elem_id="live", buttons=[])
    c.shown = gr.Markdown("", elem_id="shown")
    c.run = gr.Textbox(visible="hidden", elem_id="run", show_label=False)  # the id of what is shown
    with gr.Row():
        c.keep = gr.Button("Keep this run to compare", size="sm", elem_id="keep")
    with gr.Tabs():
        with gr.Tab("Layers"):
            c.activations_note = gr.Markdown(texts.EMPTY, elem_classes="note")
            with _explained(texts.SAMPLES):
                c.process = _plot("The process")
                c.predicted = _plot("The predicted images")
            c.schematic = _explained_plot(texts.SCHEMATIC, "The U-Net")
            with _explained(texts.MAP):
                _map_controls(c, "map")
                c.map_plot = _plot("Activation map")
                c.mask_max = gr.Button("Mask c*, then sample again", size="sm", elem_id="mask-max", visible=False)
            c.max = _explained_plot(texts.MAX, "Max channels")
            c.ssim = _explained_plot(texts.SSIM, "SSIM trajectory")
            c.distances = _explained_plot(texts.DISTANCES, "Layer distances")
        with gr.Tab("Attention"):
            c.attention_note = gr.Markdown(texts.EMPTY, elem_classes="note", elem_id="attention-note")
            c.attention = _explained_plot(texts.ATTENTION, "A_t")
            gr.Markdown(texts.WEIGHTS)
            c.weights_note = gr.Markdown(texts.EMPTY, elem_classes="note", elem_id="weights-note")
            c.weights_plot = _plot("Softmax attention weights")
            with _explained(texts.ATTENTION_LAYER):
                c.attention_layer = gr.Dropdown([], label="Layer", elem_id="attention-layer", visible=False)
                c.attention_maps = _plot("Attention by layer")
        with gr.Tab("Gradients"):
            c.gradients_note = gr.Markdown(texts.EMPTY, elem_classes="note")
            c.volume = _explained_plot(texts.VOLUME, "Gradient volume")
            c.energy = _explained_plot(texts.ENERGY, "Gradient energy")
            c.sensitivity = _explained_plot(texts.SENSITIVITY, "Label sensitivity")
            with _explained(texts.GRADIENT_MAP):
                _map_controls(c, "grad")
                c.grad_plot = _plot("Gradient map")
            c.gradient_attention = _explained_plot(texts.GRADIENT_ATTENTION, "Gradient attention")
        if prompts:
            with gr.Tab("Words"):
                add_words_tab(c)
        with gr.Tab("Compare"):
            c.pair_status = gr.Markdown(texts.NOT_KEPT, elem_classes="note", elem_id="pair-status")
            c.kept = gr.Dropdown([], label="Kept run", elem_id="kept", visible=False)
            c.pair = _explained_plot(texts.COMPARE, "The two runs")
            c.pair_ssim = _explained_plot(texts.COMPARE_SSIM, "SSIM between the runs")
            c.pair_attention = _explained_plot(texts.COMPARE_ATTENTION, "Distance of A_t")
            with _explained(texts.COMPARE_MAPS):
                c.pair_map_a = _plot("A_t of the kept run")
                c.pair_map_b = _plot("A_t of this run")
            with _explained(texts.COMPARE_VOLUMES):
                c.pair_volume_a = _plot("PGV of the kept run")
                c.pair_volume_b = _plot("PGV of this run")
        with gr.Tab("Experiments"):
            add_tab(c, models, partial(_label, c, values, "experiment"))
        with gr.Tab("Switch"):
            gr.Markdown(texts.PREDETERMINATION)
            _label(c, values, "sweep", "Switch to", "sweep-to")
            with gr.Row():
                c.sweep = gr.Button(
                    "Run the switch sweep (50 steps, 3 seeds)",
                    variant="primary",
                    elem_id="sweep",
                    min_width=280,
                    **values["sweep"],
                )
                c.sweep_cancel = gr.Button("Cancel", elem_id="sweep-cancel", min_width=120)
            c.sweep_status = gr.Markdown(elem_id="sweep-status", elem_classes="note status", **values["sweep_status"])
            c.sweep_shown = gr.Markdown("", elem_id="sweep-shown")
            c.sweep_plot = _plot("Predetermination")
            gr.Markdown(texts.SWEEP_IMAGES)
            c.sweep_images = gr.Gallery(
                label="Switched at …", show_label=False, columns=6, height="auto", elem_id="sweep-images",
                visible=False,
            )  # fmt: skip


def _map_controls(c: SimpleNamespace, name: str) -> None:
    """Which map is shown: hidden until there is one."""
    with gr.Row():
        layer = gr.Dropdown([], label="Layer", elem_id=f"{name}-layer", min_width=150, visible=False)
        step = partial(gr.Slider, 0, 1, value=0, step=1, min_width=150, visible=False)
        index = step(label="Time (0 is noisiest)", elem_id=f"{name}-step")
        channel = step(label="Channel", elem_id=f"{name}-channel")
    setattr(c, f"{name}_told", gr.Markdown("", elem_id=f"{name}-told"))
    setattr(c, f"{name}_layer", layer)
    setattr(c, f"{name}_step", index)
    setattr(c, f"{name}_channel", channel)
