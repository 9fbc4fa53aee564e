"""What recording the thesis profile costs beside plain sampling, bare forward hooks and nnsight.

    python -m tests.benchmarks.bench_overhead [--device cuda]

The profile: SSIM at every step; every 50 steps x_t, the predicted x0, A_t and six layers. All variants sample the same
images from the same seed, and the three recordings hold the same tensors. On a GPU also the same arrays at every step,
in memory and streamed to disk.
"""

import argparse
import copy
import functools
import importlib.util
import tempfile
import time
from pathlib import Path

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
AT_EVERY_STEP = [Samples(), AttentionOutputs(), Activations(layers=LAYERS)]


def sample_plainly(pipe, steps):
    return pipe(
        class_labels=3, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt"
    )


def sample_recorded(pipe, steps, specs=SPECS, **arguments):
    return pipe(
        class_labels=3,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        record=specs,
        **arguments,
    )


def sample_streamed(pipe, steps):
    with tempfile.TemporaryDirectory() as folder:
        sample_recorded(pipe, steps, AT_EVERY_STEP, profile_dir=Path(folder) / "profile")


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
        unet(torch.zeros(1, 3, size, size).to(unet.device), 0, class_labels=torch.tensor([0]).to(unet.device))
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
    scheduler.set_timesteps(steps, device=pipe.device)
    x, label = torch.randn(1, 3, size, size, generator=generator).to(pipe.device), torch.tensor([3]).to(pipe.device)
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
        expected, got, tolerance = torch.as_tensor(expected).cpu(), got.cpu(), {}
        if pipe.device.type == "cuda":  # less exact, and x̂_0 of the first steps multiplies what it lacks by a hundred
            tolerance = {"rtol": 1e-2, "atol": 1e-2 * max(1.0, float(expected.abs().max()))}
        torch.testing.assert_close(expected, got, msg=lambda text: f"{name} differs: {text}", **tolerance)


def compare(title, pipe, steps, rounds, clock, targets):
    variants = {
        "plain sampling": lambda: sample_plainly(pipe, steps),
        "diffusers_xai": lambda: sample_recorded(pipe, steps),
        "bare forward hooks": lambda: sample_with_hooks(pipe, steps),
    }
    extra = {}
    if pipe.device.type == "cuda":
        extra = {
            "the same arrays at every step": lambda: sample_recorded(pipe, steps, AT_EVERY_STEP),
            "at every step, streamed to disk": lambda: sample_streamed(pipe, steps),
        }
    rows = []
    if importlib.util.find_spec("nnsight"):
        variants["nnsight"] = lambda: sample_with_nnsight(pipe, steps)
    else:
        rows.append(["nnsight", "not installed", "", "", ""])
    with torch.backends.cudnn.flags(allow_tf32=False):
        recorded = variants["diffusers_xai"]()
        for name in list(variants)[2:]:
            check_same(name, pipe, recorded, *variants[name]())
    variants |= extra
    for run in variants.values():
        run()  # warm-up
    times = interleaved(variants, rounds, clock)
    by_name = ratios(times, "plain sampling")
    rows = [
        [
            name,
            f"{1000 * min(times[name]) / steps:.1f}",
            f"{by_name[name][1]:.3f}",
            "{:.3f} – {:.3f}".format(*by_name[name][::2]),
            targets.get(name, ""),
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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", choices=["thesis", "embedded"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    def synchronised():
        torch.cuda.synchronize()
        return time.perf_counter()

    on_gpu = args.device == "cuda"
    clock = synchronised if on_gpu else time.process_time if args.cpu_time else time.perf_counter
    where = torch.cuda.get_device_name() if on_gpu else "CPU"
    more = {"the same arrays at every step": "≤ 1.2", "at every step, streamed to disk": "≤ 1.3"}
    if args.only != "embedded":
        torch.manual_seed(0)
        thesis = XAIPipeline(ConvNextUNet2DModel(sample_size=64).eval(), DDPMScheduler()).to(args.device)
        thesis.set_progress_bar_config(disable=True)
        targets = {"diffusers_xai": "≤ 1.03" if on_gpu else "≤ 1.05"} | more
        compare(f"Overhead, thesis network at 64 px, {where}", thesis, args.steps, args.rounds, clock, targets)
    if args.only != "thesis":
        embedded = XAIPipeline.from_pretrained(demo_checkpoint("lfw-32")).to(args.device)
        embedded.scheduler = DDPMScheduler.from_config(embedded.scheduler.config)
        embedded.set_progress_bar_config(disable=True)
        targets = {"diffusers_xai": "≤ 1.10"} | more
        compare(f"Overhead, embedded checkpoint at 32 px, {where}", embedded, args.steps, args.rounds, clock, targets)


if __name__ == "__main__":
    main()
