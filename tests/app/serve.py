"""The app on a port, with few steps, the fast model first and tiny ones last: `python -m tests.app.serve PORT`."""

import sys

from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app.example import fresh, run, shared
from diffusers_xai.app.log import bounded_log
from diffusers_xai.app.models import FAST, Model, load_models
from diffusers_xai.app.prompts import load_prompt_model
from diffusers_xai.app.server import build
from diffusers_xai.app.settings import Limits
from diffusers_xai.app.workspace import workspace
from tests.tiny import unet_2d


TINY = {"no labels": unet_2d(), "ten classes, no attention": unet_2d(attention=False, num_class_embeds=10)}


if __name__ == "__main__":
    # Each pixel takes a backward pass, so few are explained. No plan, long on a busy machine, asks for a second press.
    limits = Limits(max_mask_pixels=32, confirm_seconds=600, max_seconds=600)
    models = load_models()
    fast, defaults = models.pop(FAST), {"steps": 25, "every": 5}
    models = {FAST: fast, **models}
    models |= {name: Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in TINY.items()}
    with bounded_log(), workspace() as folder:
        settings = fresh(fast, limits, **defaults)
        example = shared(run(fast, settings, limits), fast, settings)
        app = build(models, limits, folder, example, load_prompt_model(), **defaults)
        app.start(server_name="127.0.0.1", server_port=int(sys.argv[1]))
        app.demo.block_thread()
