"""The interface: `python spaces/app.py`, `diffusers-xai app`, or a Space that holds this folder and the package."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
import torch  # noqa: E402
from space_events import Events  # noqa: E402
from space_layout import CSS, Model, build_layout  # noqa: E402
from space_session import sample_stream  # noqa: E402
from space_settings import Limits, Settings  # noqa: E402

from diffusers_xai import XAIPipeline, demo_checkpoint  # noqa: E402


def gpu(function: Any) -> Any:
    """`@spaces.GPU` on a ZeroGPU Space, nothing elsewhere."""
    if "SPACE_ID" not in os.environ:
        return function
    import spaces

    return spaces.GPU(function)


def build(model: Model, limits: Limits, **defaults: Any) -> gr.Blocks:
    """The app of one model.

    Args:
        model (`Model`): The model.
        limits (`Limits`): What a visitor may ask for.
        defaults: Fields of `Settings`.
    """
    blocks = model.default_blocks()
    label = model.label_of(["Smiling"] if "Smiling" in model.attributes else [])
    default = Settings(
        **{"label": label, "layers": tuple(map(model.default_layer, blocks)), "switch_to": label or 0, **defaults}
    )
    zero_gpu = "SPACES_ZERO_GPU" in os.environ

    @gpu
    def in_worker(settings: Settings) -> Iterator[Any]:
        yield from sample_stream(model.pipe, settings, limits, None)

    def stream(settings: Settings, stop: Any) -> Iterator[Any]:
        # On ZeroGPU the run is in a process of its own, which the cancel button does not reach.
        return in_worker(settings) if zero_gpu else sample_stream(model.pipe, settings, limits, stop)

    with gr.Blocks(title="How a diffusion model makes a face", delete_cache=(600, 3600)) as demo:
        c = build_layout(model, default, limits)
        Events(c, model, default, limits, stream).connect(demo)
    return demo.queue(max_size=limits.queue, default_concurrency_limit=4)


def load_model(checkpoint: str | Path | None = None) -> Model:
    """The embedded model, or that of a folder."""
    pipe = XAIPipeline.from_pretrained(str(checkpoint or demo_checkpoint()))
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    return Model(Path(checkpoint).name if checkpoint else "lfw-32 (in the package)", pipe)


def launch_options(limits: Limits) -> dict[str, Any]:
    """How the app is served: errors without details, no file outside its own."""
    return {
        "css": CSS,
        "theme": gr.themes.Soft(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
            block_label_text_color="*neutral_800",
            block_title_text_color="*neutral_800",
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            button_primary_text_color="white",
            link_text_color="*primary_700",
            link_text_color_dark="*primary_300",
        ),
        "show_error": False,
        "max_file_size": limits.upload,
        "state_session_capacity": limits.sessions,
        "footer_links": [],
        "blocked_paths": [str(Path(__file__).parent), str(Path.home())],
    }


def main(argv: list[str] | None = None, checkpoint: str | None = None) -> None:
    """Starts the server and stays until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="port of 127.0.0.1. Default: a free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="a public link for three days")
    parser.add_argument("--checkpoint", help="folder of a pipeline. Default: the embedded model")
    args = parser.parse_args(argv)
    limits = Limits()
    demo = build(load_model(args.checkpoint), limits)
    demo.launch(server_port=args.port, share=args.share, **launch_options(limits))


if __name__ == "__main__":
    main()
