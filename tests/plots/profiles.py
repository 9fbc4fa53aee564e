"""A small profile of random numbers."""

import numpy as np
import xarray as xr

from diffusers_xai.profile import DiffusionProfile


STEPS = 24
RECORDED = list(range(0, STEPS, 2))
ATTENTION, CONV = "down_blocks.0.attentions.0.attn", "mid_block.resnets.1"
ALIASES = {"downs.0.2.fn.fn": ATTENTION, "downs.0.2.fn": ATTENTION, "mid_block2": CONV}


def make_profile(samples: int = 1, guided: bool = False, **provenance) -> DiffusionProfile:
    """`STEPS` steps at t = 1000 · (1 - step / STEPS), every second one recorded, images of 10 x 8 pixels."""
    rng = np.random.default_rng(0)

    def array(*shape: int, steps=RECORDED, dims=("channel", "height", "width"), branch=False) -> xr.DataArray:
        sizes = (len(steps), samples, *((2,) if branch else ()), *shape)
        values = rng.normal(0, 0.6, sizes).astype(np.float32)
        coords = {"step": steps, "timestep": ("step", [1000.0 * (1 - step / STEPS) for step in steps])}
        names = ("step", "sample", "branch", *dims) if branch else ("step", "sample", *dims)
        return xr.DataArray(values, dims=names, coords={**coords, "branch": ["uncond", "cond"]} if branch else coords)

    arrays = {
        "samples": array(3, 10, 8),
        "x0": array(3, 10, 8),
        "final_sample": array(3, 10, 8)[0].drop_vars(["step", "timestep"]),
        "measures/ssim": array(steps=list(range(STEPS)), dims=()),
        "attention_outputs": array(10, 8, dims=("height", "width"), branch=guided),
        f"activations/{ATTENTION}": array(6, 10, 8, branch=guided),
        f"activations/{CONV}": array(5, 5, 4, branch=guided),
    }
    made = {
        "layer_aliases": ALIASES,
        "class_labels": [3] * samples,
        "seeds": [321] * samples,
        "num_inference_steps": STEPS,
        "model": {"class": "ConvNextUNet2DModel", "config": {"class_attributes": ["Bangs", "Male", "Smiling", "Hat"]}},
    }
    return DiffusionProfile(arrays, {**made, **provenance})


def without(profile: DiffusionProfile, *names: str) -> DiffusionProfile:
    """The profile without some arrays."""
    return DiffusionProfile({name: profile[name] for name in profile if name not in names}, profile.provenance)


PIXELS = [(2, 1), (2, 2), (3, 1), (5, 6)]


def with_gradients(profile: DiffusionProfile, *, separate: bool = False) -> DiffusionProfile:
    """The profile with gradients of `PIXELS` at its recorded steps 2, 12 and 22."""
    rng = np.random.default_rng(1)
    samples, guided = profile["samples"].sizes["sample"], "branch" in profile["attention_outputs"].dims
    coords = {name: coord for name, coord in profile["samples"].sel(step=[2, 12, 22]).coords.items()}
    places = {"row": ("pixel", [row for row, _ in PIXELS]), "column": ("pixel", [column for _, column in PIXELS])}

    def array(**sizes: int) -> xr.DataArray:
        sizes = {"step": 3, "sample": samples, **({"branch": 2} if guided else {}), **sizes}
        values = rng.normal(0, 1, tuple(sizes.values())).astype(np.float32)
        branch = {"branch": ["uncond", "cond"]} if guided else {}
        return xr.DataArray(
            values, dims=tuple(sizes), coords={**coords, **branch, **(places if "pixel" in sizes else {})}
        )

    image = {"height": 10, "width": 8}
    colors = {"channel": 3} if separate else {}
    gradients = {
        "gradient_volume": array(pixel=len(PIXELS), **colors, **image),
        "gradient_energy": abs(array(**image)) + 0.01,
        "gradient_energy_error": abs(array(**image)),
        "label_sensitivity": array(pixel=len(PIXELS), channel=4, **image),
        f"gradient_maps/{ATTENTION}": array(channel=6, **image),
        f"gradient_maps/{CONV}": array(channel=5, height=5, width=4),
    }
    return DiffusionProfile({**dict(profile.items()), **gradients}, profile.provenance)
