"""The app on a port, with few steps, and tiny models beside the embedded one: `python serve.py PORT`."""

import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "spaces"), str(ROOT)]

import app  # noqa: E402
from diffusers import DDPMScheduler  # noqa: E402
from space_models import Model  # noqa: E402

from diffusers_xai import XAIPipeline  # noqa: E402
from tests.tiny import unet_2d  # noqa: E402


TINY = {"no labels": unet_2d(), "ten classes, no attention": unet_2d(attention=False, num_class_embeds=10)}


if __name__ == "__main__":
    # On a busy machine plans are long: none of them asks for a second press here.
    limits = app.Limits(max_mask_pixels=64, confirm_seconds=600, max_seconds=600)
    models = app.load_models()
    models |= {name: Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in TINY.items()}
    demo = app.build(models, limits, steps=25, every=5)
    demo.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), **app.launch_options(limits))
