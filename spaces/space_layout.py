"""What stands where on the page: settings at the left, results at the right."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import gradio as gr
import space_texts as texts
from space_session import Session
from space_settings import Limits, Settings

from diffusers_xai import XAIPipeline
from diffusers_xai.backbones.blocks import layers_by_block, short_name
from diffusers_xai.measures import mask_from_box


CSS = """
.gradio-container {max-width: 1400px !important}
.figure {background: white; border-radius: 8px; overflow-x: auto; padding: 4px}
.figure .js-plotly-plot {min-width: 760px}
.gradio-container a {color: var(--link-text-color); text-decoration: underline}
#status {min-height: 2.2em}
#definitions dt {margin-top: .8em} #definitions dd {margin-left: 1em}
@media (max-width: 700px) { #sample, #cancel {min-height: 48px} }
"""
EXAMPLES = [(["Smiling"], 321), (["Smiling", "Wearing_Lipstick"], 7), (["Male", "Bangs"], 12)]
STEPS = [25, 50, 100, 250, 1000]


@dataclass
class Model:
    """A pipeline and what of it can be chosen."""

    name: str
    pipe: XAIPipeline
    blocks: dict[str, list[str]] = field(init=False)
    layers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        aliases = dict(getattr(self.pipe.unet, "layer_aliases", {}))
        aliases = {alias: path for alias, path in aliases.items() if not alias.endswith((".fn.fn", ".mlp"))}
        aliases["mid"] = "mid_block"
        blocks = layers_by_block(self.pipe.unet)
        self.layers = {path: short_name(path, aliases) for paths in blocks.values() for path in paths}
        self.blocks = {short_name(block, aliases): paths for block, paths in blocks.items()}

    @property
    def attributes(self) -> list[str]:
        """The names of the label's bits; a number is chosen instead where there are none."""
        return list(self.pipe.unet.config.get("class_attributes") or ())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the samples."""
        return self.pipe._sample_shape[1], self.pipe._sample_shape[2]

    def default_layer(self, block: str) -> str:
        """The attention layer of a block, or its first layer."""
        return next((path for path in self.blocks[block] if path.endswith(".attn")), self.blocks[block][0])

    def default_blocks(self) -> list[str]:
        """A few, spread over the network."""
        names = list(self.blocks)
        return [names[i] for i in sorted({0, len(names) // 3, len(names) // 2, len(names) - 1})]

    def default_mask(self) -> Any:
        """The eyes of an aligned face."""
        height, width = self.size
        box = (width * 10 // 32, height * 12 // 32, max(width * 22 // 32, 1), max(height * 16 // 32, 1))
        return mask_from_box(box, self.size)

    def label_of(self, names: list[str]) -> int | None:
        """The label with these attributes set."""
        if self.pipe.unet.config.get("num_class_embeds") is None:
            return None
        from diffusers_xai.backbones.labels import encode_label

        config = self.pipe.unet.config
        if not self.attributes:
            return int(names[0]) if names else 0
        chosen = {name: name in names for name in self.attributes}
        return int(encode_label(chosen, config["num_class_embeds"], config.get("null_class_label"), self.attributes))

    def names_of(self, label: int | None) -> list[str]:
        """What `label_of` undoes."""
        if label is None:
            return []
        if not self.attributes:
            return [str(label)]
        return [name for name in self.attributes if (label & self.label_of([name])) != 0]  # type: ignore[operator]


def build_layout(model: Model, default: Settings, limits: Limits) -> SimpleNamespace:
    """All components, within `gr.Blocks`."""
    c = SimpleNamespace()
    c.session = gr.State(Session(), time_to_live=3600, delete_callback=lambda session: session.close())
    gr.Markdown(texts.INTRO)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            _settings(c, model, default, limits)
        with gr.Column(scale=5, min_width=320):
            _results(c, model, default)
    gr.HTML(texts.DEFINITIONS_HTML, elem_id="definitions")
    return c


def label_box(model: Model, label: int | None, title: str, elem_id: str) -> gr.components.Component:
    """Check boxes of the attributes, or of the classes where the model has no attributes."""
    count = model.pipe.unet.config.get("num_class_embeds") or 0
    choices = model.attributes or [str(i) for i in range(count)]
    return gr.CheckboxGroup(choices, value=model.names_of(label), label=title, elem_id=elem_id, visible=bool(choices))


def _settings(c: SimpleNamespace, model: Model, default: Settings, limits: Limits) -> None:
    c.model = gr.Dropdown([model.name], value=model.name, label="Model", interactive=False)
    c.label = label_box(model, default.label, "The face has", "label")
    with gr.Row():
        c.seed = gr.Number(default.seed, label="Noise seed", precision=0, minimum=0, elem_id="seed", min_width=110)
        steps = [step for step in STEPS if step <= limits.max_steps]
        c.steps = gr.Dropdown(
            sorted({*steps, default.steps}), value=default.steps, label="Steps", elem_id="steps", min_width=110
        )
    c.every = gr.Slider(1, 100, value=default.every, step=1, label="Record every … steps", elem_id="every")
    with gr.Row():
        c.sample = gr.Button("Sample", variant="primary", elem_id="sample", min_width=120)
        c.cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
    if {name for names, _ in EXAMPLES for name in names} <= set(model.attributes):
        gr.Examples(
            [[names, seed] for names, seed in EXAMPLES], [c.label, c.seed], label="Examples: click, then Sample"
        )
    c.plan = gr.Button("What would it cost?", size="sm", elem_id="plan")
    c.status = gr.Markdown(texts.EMPTY, elem_id="status")
    with gr.Accordion("Blocks and layers to record", open=False, elem_id="blocks-panel"):
        chosen = [block for block, paths in model.blocks.items() if set(paths) & set(default.layers)]
        c.blocks = gr.CheckboxGroup(
            list(model.blocks), value=chosen, label=f"Blocks (at most {limits.max_blocks} at a time)", elem_id="blocks"
        )
        c.layer_of = [
            gr.Dropdown(
                [(model.layers[path], path) for path in paths],
                value=model.default_layer(block),
                label=f"Layer of {block}",
                visible=block in chosen,
            )
            for block, paths in model.blocks.items()
        ]
    with gr.Accordion("Region for the gradients", open=False, elem_id="mask-panel"):
        c.gradients = gr.Checkbox(default.gradients, label="Compute gradients of a region (takes longest)")
        gr.Markdown(
            f"Paint on the last sample what you ask about, at most {limits.max_mask_pixels} pixels of it."
            " Without paint: the eyes."
        )
        with gr.Column():
            c.editor = gr.ImageEditor(
                type="numpy", image_mode="RGBA", label="Region", elem_id="mask", height=420, sources=(),
                brush=gr.Brush(default_size=24, colors=["#d55e00"], color_mode="fixed"), transforms=(), layers=False,
            )  # fmt: skip
    with gr.Accordion("Mask channels", open=False, elem_id="ablation-panel"):
        c.ablate_layer = gr.Dropdown(
            [(name, path) for path, name in model.layers.items()],
            value=model.default_layer(model.default_blocks()[-1]),
            label="Layer",
        )  # fmt: skip
        c.ablate_channel = gr.Number(0, label="Channel", precision=0, minimum=0, elem_id="ablate-channel")
        c.ablate_add = gr.Button("Mask this channel", size="sm", elem_id="ablate-add")
        c.ablations = gr.Dropdown(
            [], value=[], multiselect=True, allow_custom_value=True, label="Masked channels (× removes one)",
            elem_id="ablations",
        )  # fmt: skip
    with gr.Accordion("Switch the label on the way", open=False, elem_id="switch-panel"):
        c.switch = gr.Checkbox(False, label="Switch the label", elem_id="switch")
        c.switch_at = gr.Slider(0, 100, value=50, step=1, label="After … % of the steps", elem_id="switch-at")
        c.switch_to = label_box(model, default.switch_to, "From then on the face has", "switch-to")
    with gr.Accordion("Save, open, share", open=False, elem_id="share-panel"):
        c.link = gr.Textbox(label="Link to these settings", buttons=["copy"], interactive=False, elem_id="link")
        c.share = gr.Button("Make a link", size="sm", elem_id="make-link")
        c.download = gr.DownloadButton("Download the profile (zip)", size="sm", elem_id="download")
        c.upload = gr.File(label="Open a profile (zip)", file_types=[".zip"], elem_id="upload", height=110)


def _plot(label: str) -> gr.Plot:
    return gr.Plot(label=label, elem_classes="figure", show_label=False)


def _results(c: SimpleNamespace, model: Model, default: Settings) -> None:
    c.live = gr.Image(label="x_t while it forms", height=220, interactive=False, elem_id="live", buttons=[])
    with gr.Row():
        c.keep = gr.Button("Keep this run to compare", size="sm", elem_id="keep")
    with gr.Tabs():
        with gr.Tab("Activations"):
            gr.Markdown(texts.SAMPLES)
            c.process = _plot("The process")
            c.predicted = _plot("The predicted images")
            gr.Markdown(texts.SCHEMATIC)
            c.schematic = _plot("The U-Net")
            gr.Markdown(texts.MAP)
            with gr.Row():
                c.map_layer = gr.Dropdown([], label="Layer", elem_id="map-layer", min_width=150)
                c.map_step = gr.Slider(0, 1, value=0, step=1, label="Recorded step", elem_id="map-step", min_width=150)
                c.map_channel = gr.Slider(0, 1, value=0, step=1, label="Channel", elem_id="map-channel", min_width=150)
            c.map = _plot("Activation map")
            gr.Markdown(texts.MAX)
            c.max = _plot("Max channels")
            gr.Markdown(texts.SSIM)
            c.ssim = _plot("SSIM trajectory")
            gr.Markdown(texts.DISTANCES)
            c.distances = _plot("Layer distances")
        with gr.Tab("Attention"):
            gr.Markdown(texts.ATTENTION)
            c.attention = _plot("A_t")
            gr.Markdown(texts.ATTENTION_LAYER)
            c.attention_layer = gr.Dropdown([], label="Layer", elem_id="attention-layer")
            c.attention_maps = _plot("Attention by layer")
        with gr.Tab("Gradients"):
            gr.Markdown(texts.VOLUME)
            c.volume = _plot("Gradient volume")
            gr.Markdown(texts.ENERGY)
            c.energy = _plot("Gradient energy")
            gr.Markdown(texts.SENSITIVITY)
            c.sensitivity = _plot("Label sensitivity")
            gr.Markdown(texts.GRADIENT_MAP)
            with gr.Row():
                c.grad_layer = gr.Dropdown([], label="Layer", min_width=150)
                c.grad_step = gr.Slider(0, 2, value=0, step=1, label="Which of the recorded times", min_width=150)
                c.grad_channel = gr.Slider(0, 1, value=0, step=1, label="Channel", min_width=150)
            c.grad_map = _plot("Gradient map")
        with gr.Tab("Comparison"):
            gr.Markdown(texts.COMPARE)
            c.pair_status = gr.Markdown(
                "No run is kept yet: press **Keep this run to compare**, then sample another one."
            )
            c.pair = _plot("The two runs")
            gr.Markdown(texts.COMPARE_SSIM)
            c.pair_ssim = _plot("SSIM between the runs")
            gr.Markdown(texts.COMPARE_ATTENTION)
            c.pair_attention = _plot("Distance of A_t")
            gr.Markdown(texts.COMPARE_MAPS)
            c.pair_map_a = _plot("A_t of the kept run")
            c.pair_map_b = _plot("A_t of this run")
            gr.Markdown(texts.COMPARE_VOLUMES)
            c.pair_volume_a = _plot("PGV of the kept run")
            c.pair_volume_b = _plot("PGV of this run")
        with gr.Tab("Predetermination"):
            gr.Markdown(texts.PREDETERMINATION)
            c.sweep_to = label_box(model, (1 << max(len(model.attributes) - 1, 0)) - 1 & 15, "Switch to", "sweep-to")
            c.sweep = gr.Button("Run the switch sweep (50 steps, 3 seeds)", elem_id="sweep")
            c.sweep_status = gr.Markdown("")
            c.sweep_plot = _plot("Predetermination")
            c.sweep_images = gr.Gallery(label="Switched at …", columns=6, height=330, elem_id="sweep-images")
