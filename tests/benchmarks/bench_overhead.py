"""What recording the thesis profile costs beside plain sampling, bare forward hooks and nnsight.

The profile: SSIM at every step; every 50 steps x_t, the predicted x0, A_t and six layers. All variants sample the same
images from the same seed, and the three recordings hold the same tensors.
"""

import argparse
import copy
import functools
import importlib.util
import time

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.utils import logging

from diffusers_xai import Activations, AttentionOutputs, ConvNextUNet2DModel, Samples, XAIPipeline, demo_checkpoint
from diffusers_xai.measures import structural_similarity
from tests.benchmarks.harness import interleaved, print_table, ratios


EVERY = 50
LAYERS = ["downs.0.2.fn", "downs.1.2.fn", "downs.2.2.fn", "downs.3.2.fn", "mid_attn.fn", "ups.0.2.fn"]
SPECS = [Samples(every=EVERY), AttentionOutputs(every=EVERY), Activations(layers=LAYERS, every=EVERY)]


def sample_plainly(pipe, steps):
    return pipe(
        class_labels=3, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt"
    )


def sample_recorded(pipe, steps):
    return pipe(
        class_labels=3,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        record=SPECS,
    )


@functools.cache
def tapped_paths(unet):
    """The six layers, and the attention layers that A_t is made of, and all of them in the order in which they run."""
    layers = [unet.layer_aliases[alias] for alias in LAYERS]
    attentions = [path for path, _ in unet.named_modules() if path.endswith(".attn")]
    in_order = []
    handles = [
        unet.get_submodule(path).register_forward_hook(lambda m, args, out, path=path: in_order.append(path))
        for path in {*layers, *attentions}
    ]
    size = unet.config.sample_size
    with torch.no_grad():
        unet(torch.zeros(1, 3, size, size), 0, class_labels=torch.tensor([0]))
    for handle in handles:
        handle.remove()
    return layers, attentions, in_order


@functools.cache
def nnsight_model(unet):
    from nnsight import NNsight

    return NNsight(copy.deepcopy(unet))  # a copy: it stays instrumented


def attention_output_map(outputs, size):
    maps = [F.interpolate(out.sum(1, keepdim=True), (size, size), mode="bilinear") for out in outputs]
    return torch.stack(maps).sum(0)[:, 0]


@torch.no_grad()
def sample_by_hand(pipe, steps, capture):
    """The pipeline's loop with the least that yields the same tensors; `capture(x, t, label)` runs the network."""
    generator = torch.Generator().manual_seed(0)
    scheduler, size = pipe.scheduler, pipe.unet.config.sample_size
    scheduler.set_timesteps(steps)
    x, label = torch.randn(1, 3, size, size, generator=generator), torch.tensor([3])
    kept = {"samples": [], "x0": [], "ssim": [], "attention_outputs": [], "layers": []}
    for i, t in enumerate(scheduler.timesteps):
        if i % EVERY:
            output = pipe.unet(x, t, class_labels=label).sample
        else:
            output, layers, attentions = capture(x, t, label)
            kept["layers"].append([layer.clone() for layer in layers])
            kept["attention_outputs"].append(attention_output_map(attentions, size))
            kept["samples"].append(x.clone())
        step = scheduler.step(output, t, x, generator=generator)
        if i % EVERY == 0:
            kept["x0"].append(step.pred_original_sample.clone())
        kept["ssim"].append(structural_similarity(x, step.prev_sample))
        x = step.prev_sample
    return (x / 2 + 0.5).clamp(0, 1), kept


def sample_with_hooks(pipe, steps):
    layers, attentions, in_order = tapped_paths(pipe.unet)

    def capture(x, t, label):
        outputs = {}
        handles = [
            pipe.unet.get_submodule(path).register_forward_hook(
                lambda module, args, out, path=path: outputs.update({path: out})
            )
            for path in in_order
        ]
        output = pipe.unet(x, t, class_labels=label).sample
        for handle in handles:
            handle.remove()
        return output, [outputs[path] for path in layers], [outputs[path] for path in attentions]

    return sample_by_hand(pipe, steps, capture)


def sample_with_nnsight(pipe, steps):
    layers, attentions, in_order = tapped_paths(pipe.unet)
    model = nnsight_model(pipe.unet)

    def capture(x, t, label):
        with model.trace(x, t, class_labels=label):
            outputs = dict().save()
            for path in in_order:
                outputs[path] = model.get(path).output
            output = model.output.save()
        return output.sample, [outputs[path] for path in layers], [outputs[path] for path in attentions]

    return sample_by_hand(pipe, steps, capture)


def check_same(name, pipe, recorded, images, kept):
    """All variants must do the same work."""
    profile = recorded.profile
    names = [f"activations/{pipe.unet.layer_aliases[alias]}" for alias in LAYERS]
    pairs = [
        (recorded.images, images),
        (profile["measures/ssim"].values, torch.stack(kept["ssim"])),
        (profile["samples"].values, torch.stack(kept["samples"])),
        (profile["x0"].values, torch.stack(kept["x0"])),
        (profile["attention_outputs"].values, torch.stack(kept["attention_outputs"])),
        *(
            (profile[layer].values, torch.stack([outputs[i] for outputs in kept["layers"]]))
            for i, layer in enumerate(names)
        ),
    ]
    for expected, got in pairs:
        torch.testing.assert_close(torch.as_tensor(expected), got, msg=lambda text: f"{name} differs: {text}")


def compare(title, pipe, steps, rounds, clock, target):
    variants = {
        "plain sampling": lambda: sample_plainly(pipe, steps),
        "diffusers_xai": lambda: sample_recorded(pipe, steps),
        "bare forward hooks": lambda: sample_with_hooks(pipe, steps),
    }
    rows = []
    if importlib.util.find_spec("nnsight"):
        variants["nnsight"] = lambda: sample_with_nnsight(pipe, steps)
    else:
        rows.append(["nnsight", "not installed", "", "", ""])
    variants["plain sampling"]()
    recorded = variants["diffusers_xai"]()
    for name in list(variants)[2:]:
        check_same(name, pipe, recorded, *variants[name]())
    times = interleaved(variants, rounds, clock)
    by_name = ratios(times, "plain sampling")
    rows = [
        [
            name,
            f"{1000 * min(times[name]) / steps:.1f}",
            f"{by_name[name][1]:.3f}",
            "{:.3f} – {:.3f}".format(*by_name[name][::2]),
            target if name == "diffusers_xai" else "",
        ]
        for name in variants
    ] + rows
    header = ["", "ms per step (best)", "times plain (median)", "lowest – highest", "target"]
    print_table(f"{title}: {steps} steps, {rounds} rounds, {clock.__name__}", header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="a multiple of 50 has the thesis's share of records")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine, with --threads 1: CPU seconds")
    parser.add_argument("--only", choices=["thesis", "embedded"])
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    if args.only != "embedded":
        torch.manual_seed(0)
        thesis = XAIPipeline(ConvNextUNet2DModel(sample_size=64).eval(), DDPMScheduler())
        thesis.set_progress_bar_config(disable=True)
        compare("Overhead, thesis network at 64 px", thesis, args.steps, args.rounds, clock, "≤ 1.05")
    if args.only != "thesis":
        embedded = XAIPipeline.from_pretrained(demo_checkpoint())
        embedded.scheduler = DDPMScheduler.from_config(embedded.scheduler.config)
        embedded.set_progress_bar_config(disable=True)
        compare("Overhead, embedded checkpoint at 32 px", embedded, args.steps, args.rounds, clock, "≤ 1.10")


if __name__ == "__main__":
    main()
