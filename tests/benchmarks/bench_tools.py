"""What image→text attention of every layer, head, query and step costs, beside other tools, on tiny networks.

One loop of denoiser calls and scheduler steps serves all; every tool ends with the same arrays, which is checked.
Others are taken where they are installed: attention-map-diffusers 1.0, nnsight 0.8. Bare hooks are written by hand.
"""

import argparse
import copy
import ctypes
import gc
import importlib.util
import re
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import apply_rotary_emb

from diffusers_xai import AttentionWeights, record
from tests.benchmarks.harness import interleaved, print_table, ratios
from tests.zoo.pipelines import ZOO


PREFIX = "attention_weights_image_to_text/"


class Loop:
    """A network, a scheduler, and the least loop over them; to record, as good as a pipeline."""

    def __init__(self, component, network, scheduler, inputs, sample):
        setattr(self, component, network)
        self.network, self.component = network, component
        self.scheduler, self.inputs, self.sample = scheduler, inputs, sample
        self.layers = [path for path, _ in network.named_modules() if re.fullmatch(self.attentions, path)]

    @torch.no_grad()
    def __call__(self, steps, predict=None):
        predict = predict or (lambda **inputs: self.network(**inputs).sample)
        self.scheduler.set_timesteps(steps)
        x = self.sample
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(predict(**self.inputs_at(x, t)), t, x).prev_sample
        return x


class StableDiffusion(Loop):
    attentions = r".*\.attn2"

    def __init__(self, size, words):
        unet = ZOO["stable-diffusion"].make().unet
        inputs = {"encoder_hidden_states": torch.randn(1, words, 16)}
        super().__init__("unet", unet, DDIMScheduler(clip_sample=False), inputs, torch.randn(1, 4, size, size))
        self.tapped = [f"{path}.{name}" for path in self.layers for name in ("to_q", "to_k")]

    def inputs_at(self, x, t):
        return {"sample": x, "timestep": t, **self.inputs}

    def weights(self, outputs):
        """By layer, from the outputs of the tapped modules."""
        found = {}
        for path in self.layers:
            heads = self.network.get_submodule(path).heads
            q, k = (outputs[f"{path}.{name}"].unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("to_q", "to_k"))
            found[path] = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return found


class Flux(Loop):
    attentions = r"transformer_blocks\.\d+\.attn"  # attention-map-diffusers leaves out blocks of one stream

    def __init__(self, size, words):
        self.words = words
        transformer = ZOO["flux"].make().transformer
        ids = torch.zeros(size, size, 3)
        ids[..., 1], ids[..., 2] = torch.arange(size)[:, None], torch.arange(size)
        config = transformer.config
        inputs = {
            "encoder_hidden_states": torch.randn(1, words, config.joint_attention_dim),
            "pooled_projections": torch.randn(1, config.pooled_projection_dim),
            "img_ids": ids.reshape(-1, 3),
            "txt_ids": torch.zeros(words, 3),
            **({"guidance": torch.ones(1)} if config.guidance_embeds else {}),
        }
        sample = torch.randn(1, size * size, config.in_channels)
        super().__init__("transformer", transformer, FlowMatchEulerDiscreteScheduler(), inputs, sample)
        self.tapped = ["pos_embed"]
        for path in self.layers:
            self.tapped += [f"{path}.{name}" for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")]

    def inputs_at(self, x, t):
        return {"hidden_states": x, "timestep": t.expand(1) / 1000, **self.inputs}

    def weights(self, outputs):
        found = {}
        for path in self.layers:
            parts = []
            for name in ("q", "k"):
                joined = torch.cat([outputs[f"{path}.norm_added_{name}"], outputs[f"{path}.norm_{name}"]], dim=1)
                parts.append(apply_rotary_emb(joined, outputs["pos_embed"], sequence_dim=1).transpose(1, 2))
            q, k = parts[0][:, :, self.words :], parts[1]
            weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
            found[path] = weights[..., : self.words].contiguous()
        return found


def stacked(steps):
    return {path: torch.stack([step[path] for step in steps]) for path in steps[0]}


def with_ours(loop, steps):
    weights = AttentionWeights(layers=loop.layers, relation="image_to_text", queries="all")
    with record(loop, [weights]) as recording:
        loop(steps)
    return {name.removeprefix(PREFIX): array.values for name, array in recording.profile.items() if PREFIX in name}


def with_hooks(loop, steps):
    outputs, kept = {}, []
    handles = [
        loop.network.get_submodule(path).register_forward_hook(
            lambda m, a, out, path=path: outputs.update({path: out})
        )
        for path in loop.tapped
    ]

    def predict(**inputs):
        prediction = loop.network(**inputs).sample
        kept.append(loop.weights(outputs))
        return prediction

    loop(steps, predict)
    for handle in handles:
        handle.remove()
    return stacked(kept)


def with_nnsight(loop, steps):
    from nnsight import NNsight

    if not hasattr(loop, "traced"):
        loop.traced = NNsight(copy.deepcopy(loop.network))  # a network of its own: it stays instrumented
        loop.order = order_of(loop)
    model, order, kept = loop.traced, loop.order, []

    def predict(**inputs):
        with model.trace(**inputs):
            outputs = dict().save()
            for path in order:
                outputs[path] = model.get(path).output
            output = model.output.save()
        kept.append(loop.weights(outputs))
        return output.sample

    loop(steps, predict)
    return stacked(kept)


def order_of(loop):
    """The tapped modules in the order in which they run, as nnsight wants them."""
    order = []
    handles = [
        loop.network.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: order.append(path))
        for path in loop.tapped
    ]
    loop(1)
    for handle in handles:
        handle.remove()
    return order


def with_attention_map_diffusers(loop, steps):
    from attention_map_diffusers import AttentionCapture

    with AttentionCapture(loop, relations="image->text", timesteps="all", heads="all") as capture:
        loop(steps)
    kept = {}
    for found in capture.compute():
        kept.setdefault(found.layer_id.partition(".")[2], []).append(found.data)
    return {path: torch.stack(parts) for path, parts in kept.items()}


def check_same(name, expected, got):
    assert set(expected) == set(got), (name, sorted(expected), sorted(got))
    for path, values in expected.items():
        ours = torch.as_tensor(got[path]).reshape(values.shape)
        torch.testing.assert_close(
            ours, values, rtol=0, atol=1e-6, msg=lambda text, path=path: f"{name}, {path}: {text}"
        )


def peak_growth(function):
    """Bytes by which resident memory grows at most while `function` runs; Linux only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def kilobytes(name):
        return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

    before = kilobytes("VmRSS")
    kept = function()
    growth = kilobytes("VmHWM") - before
    del kept
    return growth * 1024


def compare(title, loop, steps, rounds, clock):
    variants = {
        "plain": lambda: loop(steps),
        "diffusers_xai": lambda: with_ours(loop, steps),
        "bare forward hooks": lambda: with_hooks(loop, steps),
    }
    rows = []
    others = {"attention-map-diffusers": with_attention_map_diffusers, "nnsight": with_nnsight}
    for name, run in others.items():
        if importlib.util.find_spec(name.replace("-", "_")):
            variants[name] = lambda run=run: run(loop, steps)
        else:
            rows.append([name, "not installed", "", "", ""])
    expected = with_hooks(loop, steps)
    for name, run in variants.items():
        if name != "plain":
            check_same(name, expected, run())
    times = interleaved(variants, rounds, clock)
    by_name = ratios(times, "plain")
    peaks = {name: statistics.median(peak_growth(run) for _ in range(3)) for name, run in variants.items()}
    rows = [
        [
            name,
            f"{1000 * statistics.median(times[name]) / steps:.1f}",
            f"{by_name[name][1]:.2f}",
            "{:.2f} – {:.2f}".format(*by_name[name][::2]),
            f"{peaks[name] / 1e6:.1f}",
        ]
        for name in variants
    ] + rows
    kept = sum(values.numel() * 4 for values in expected.values())
    header = ["", "ms per step (median)", "times plain (median)", "lowest – highest", "peak growth (MB)"]
    print_table(f"{title}: {steps} steps, {rounds} rounds, {clock.__name__}, arrays {kept / 1e6:.1f} MB", header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--words", type=int, default=16, help="tokens of the text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="for a busy machine, with --threads 1: CPU seconds")
    parser.add_argument("--only", choices=["sd", "flux"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = time.process_time if args.cpu_time else time.perf_counter
    for name, title, kind in (("sd", "Stable Diffusion, tiny", StableDiffusion), ("flux", "Flux, tiny", Flux)):
        if args.only in (None, name):
            title = f"{title}, {args.size} × {args.size} latents, {args.words} words"
            compare(title, kind(args.size, args.words), args.steps, args.rounds, clock)


if __name__ == "__main__":
    main()
