"""What happens when: settings in, profile into the session, figures out."""

import json
import uuid
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import space_figures as figures
from space_layout import Model
from space_session import Session, Stopped, enlarged, readable_errors, run_alone
from space_settings import Limits, Settings, SettingsError, from_query

from diffusers_xai import DiffusionProfile
from diffusers_xai.experiments import predetermination
from diffusers_xai.measures import mask_from_drawing, mask_to_runs
from diffusers_xai.profile.archive import read_archive, write_archive


class Events:
    """The handlers, for one model and its limits."""

    def __init__(self, c: SimpleNamespace, model: Model, default: Settings, limits: Limits, stream: Any):
        self.c, self.model, self.default, self.limits, self.stream = c, model, default, limits, stream
        self.inputs = [
            c.label, c.seed, c.steps, c.every, c.blocks, c.gradients, c.editor, c.ablations,
            c.switch, c.switch_at, c.switch_to, *c.layer_of,
        ]  # fmt: skip
        self.controls = [
            c.map_layer, c.map_step, c.map_channel, c.attention_layer, c.grad_layer, c.grad_step, c.grad_channel,
        ]  # fmt: skip
        self.plots = [
            c.process, c.predicted, c.schematic, c.max, c.ssim, c.distances, c.attention, c.volume, c.energy,
            c.sensitivity,
        ]  # fmt: skip
        self.pairs = [
            c.pair_status, c.pair, c.pair_ssim, c.pair_attention, c.pair_map_a, c.pair_map_b, c.pair_volume_a,
            c.pair_volume_b,
        ]  # fmt: skip
        self.shown = [*self.controls, *self.plots, c.map, c.attention_maps, c.grad_map, *self.pairs, c.editor]

    def settings(
        self, session: Session, label: Any, seed: Any, steps: Any, every: Any, blocks: Any, gradients: bool,
        editor: Any, ablations: Any, switch: bool, switch_at: float, switch_to: Any, *layer_of: str,
    ) -> Settings:  # fmt: skip
        """The values of the controls, checked."""
        if seed is None:
            raise SettingsError("Give a noise seed: a whole number from 0 on.")
        steps = int(steps)
        pairs = []
        for text in ablations or []:
            name, _, channel = str(text).rpartition(":")
            paths = {name: path for path, name in self.model.layers.items()}
            if name not in paths or not channel.isdecimal():
                raise SettingsError(f"Masked channels are written layer:channel, not {str(text)[:60]!r}.")
            pairs.append((paths[name], int(channel)))
        chosen = [layer for block, layer in zip(self.model.blocks, layer_of, strict=True) if block in (blocks or [])]
        return Settings(
            label=self.model.label_of(label), seed=int(seed), steps=steps, every=min(int(every), steps),
            layers=tuple(chosen), gradients=bool(gradients), mask=self._mask(session, editor),
            ablations=tuple(dict.fromkeys(pairs)),
            switch_at=round(switch_at / 100 * steps) if switch else None,
            switch_to=self.model.label_of(switch_to) or 0,
        ).check(self.limits)  # fmt: skip

    def _mask(self, session: Session, editor: Any) -> str:
        layers = (editor or {}).get("layers") or []
        drawn = [layer[..., 3] > 0 for layer in layers if layer is not None and (layer[..., 3] > 0).any()]
        mask = self.model.default_mask()
        if drawn:
            mask = mask_from_drawing(np.any(drawn, axis=0), self.model.size)
        elif session.settings is not None and session.settings.mask is not None:
            return session.settings.mask
        return json.dumps(mask_to_runs(mask))

    def cost(self, session: Session, *values: Any) -> str:
        """The plan of a run, in words."""
        return self._plan(self.settings(session, *values))[0]

    def _plan(self, settings: Settings) -> tuple[str, float]:
        plan = run_alone(self.model.pipe.plan, settings.specs(), settings.edits(), num_inference_steps=settings.steps)
        if plan.nbytes > self.limits.max_bytes:
            raise SettingsError(
                f"This profile would take {plan.nbytes / 2**20:.0f} MB; here at most"
                f" {self.limits.max_bytes / 2**20:.0f} MB are allowed. Record less often, or fewer blocks."
            )
        if plan.seconds > self.limits.max_seconds:
            raise SettingsError(
                f"This would take about {plan.seconds:.0f} s; here at most"
                f" {self.limits.max_seconds:.0f} s are allowed. Take fewer steps or a smaller region."
            )
        size = f"{plan.nbytes / 2**20:.1f} MB"
        passes = f", {plan.backward_passes} backward passes" if plan.backward_passes else ""
        return f"**Plan:** about {max(1, plan.seconds):.0f} s, {size}{passes}.", plan.seconds

    def sample(self, session: Session, *values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[tuple]:  # noqa: B008
        """Samples; streams x_t and ends with the profile in the session."""
        settings = self.settings(session, *values)
        progress(0, desc="Planning")
        text, seconds = self._plan(settings)
        if seconds > self.limits.confirm_seconds and session.confirmed != settings:
            session.confirmed = settings
            yield gr.skip(), f"{text} That is long: press **Sample** again to start it."
            return
        session.stop.clear()
        progress(0, desc="Waiting for the model")
        try:
            for item in self.stream(settings, session.stop):
                if isinstance(item, tuple):
                    done, state = item
                    what = "Sampling and recording" if done < settings.steps else "Finishing"
                    progress((done, settings.steps), desc=what, unit="steps")
                    yield enlarged(state), f"{text} {what}: step {done} of {settings.steps}."
                else:
                    session.profile, session.settings = item, settings
                    yield (
                        enlarged(figures.final_image(item)),
                        f"Done: {settings.steps} steps, seed {settings.seed}{self._words(settings)}.",
                    )
        except Stopped as stopped:
            yield gr.skip(), str(stopped)

    def _words(self, settings: Settings) -> str:
        words = ""
        if settings.ablations:
            words += f", {len(settings.ablations)} masked channels"
        if settings.switch_at is not None:
            words += f", label switched at step {settings.switch_at}"
        return words

    def cancel(self, session: Session) -> str:
        """Asks the run to end at its next step."""
        session.stop.set()
        return "Cancelling at the next step…"

    def show(self, session: Session) -> list[Any]:
        """All figures and the ranges of their controls."""
        profile = session.profile
        if profile is None:
            return [gr.skip()] * len(self.shown)
        maps, gradients = figures.layer_choices(profile), figures.layer_choices(profile, "gradient_maps")
        attention = [choice for choice in maps if "attn" in choice[1] or "attention" in choice[1]]
        map_layer, grad_layer = (choices[0][1] if choices else None for choices in (maps, gradients))
        map_count, map_channels = self._sizes(profile, "activations", map_layer)
        grad_count, grad_channels = self._sizes(profile, "gradient_maps", grad_layer)
        middle = map_count // 2
        controls = [
            gr.update(choices=maps, value=map_layer),
            gr.update(maximum=max(map_count - 1, 1), value=middle),
            gr.update(maximum=max(map_channels - 1, 1), value=0),
            gr.update(choices=attention, value=attention[0][1] if attention else None),
            gr.update(choices=gradients, value=grad_layer),
            gr.update(maximum=max(grad_count - 1, 1), value=0),
            gr.update(maximum=max(grad_channels - 1, 1), value=0),
        ]
        return [
            *controls,
            *figures.overview(profile, self.model.blocks),
            figures.channel_figure(profile, map_layer, middle, 0, "activations"),
            self.attention_of(session, attention[0][1] if attention else None),
            figures.channel_figure(profile, grad_layer, 0, 0, "gradient_maps"),
            *self.compare(session),
            {"background": enlarged(figures.final_image(profile)), "layers": [], "composite": None},
        ]

    def _sizes(self, profile: DiffusionProfile, group: str, layer: str | None) -> tuple[int, int]:
        if layer is None:
            return 2, 2
        sizes = profile[f"{group}/{layer}"].sizes
        return sizes["step"], sizes["channel"]

    def channel(self, group: str, session: Session, layer: str, index: float, channel: float) -> Any:
        """The map of the sliders."""
        return figures.channel_figure(session.profile, layer, index, channel, group)

    def channels_of(self, group: str, session: Session, layer: str) -> Any:
        """The range of the channel slider for a layer."""
        if session.profile is None or not layer:
            return gr.skip()
        return gr.update(maximum=max(self._sizes(session.profile, group, layer)[1] - 1, 1), value=0)

    def attention_of(self, session: Session, layer: str | None) -> Any:
        """The max channel of one attention layer over time."""
        if session.profile is None or not layer:
            return None
        return figures.drawn(figures.plots.max_channel_maps, session.profile, [layer])

    def keep(self, session: Session) -> list[Any]:
        """Keeps the run for the comparison."""
        if session.profile is None:
            raise SettingsError("Sample something first.")
        session.kept = session.profile
        return self.compare(session)

    def compare(self, session: Session) -> list[Any]:
        """The comparison of the kept run with the present one."""
        if session.kept is None:
            return [gr.skip()] * 8
        same = session.kept is session.profile
        status = (
            "This run is kept. Change a setting and sample again to compare." if same else "Kept run and this run:"
        )
        return [status, *([None] * 7 if same else figures.comparison(session.kept, session.profile))]

    def sweep(self, session: Session, label: Any, seed: Any, to: Any, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        """The switch sweep of three seeds."""
        labels = [self.model.label_of(label), self.model.label_of(to)]
        if labels[0] == labels[1] or None in labels:
            raise SettingsError("Choose another label to switch to than the face has.")
        progress(0.1, desc="Switching the label at ten times")
        seed = int(seed or 0)
        result = run_alone(
            predetermination.run, self.model.pipe, labels=labels, seeds=[seed, seed + 1, seed + 2],
            num_inference_steps=min(50, self.limits.max_steps), switches=min(10, self.limits.max_steps),
        )  # fmt: skip
        steps = result.data["step"].values
        names = ["never", *(f"at step {step}" for step in steps)]
        images = [
            (enlarged(image, 160), name) for image, name in zip(result.data["images"].values, names, strict=True)
        ]
        return (
            f"Seeds {seed} to {seed + 2}; the images are those of seed {seed}.",
            predetermination.plot(result),
            images,
        )

    def mask_channel(self, layer: str, channel: Any, there: list[str]) -> Any:
        """Adds a channel to the list."""
        if layer not in self.model.layers or channel is None:
            raise SettingsError("Choose a layer and a channel.")
        values = list(dict.fromkeys([*(there or []), f"{self.model.layers[layer]}:{int(channel)}"]))
        return gr.update(choices=values, value=values)

    def blocks(self, chosen: list[str]) -> list[Any]:
        """A layer's choice for each chosen block."""
        if len(chosen) > self.limits.max_blocks:
            gr.Warning(f"At most {self.limits.max_blocks} blocks at a time: remove one.")
        return [gr.update(visible=block in chosen) for block in self.model.blocks]

    def share(self, session: Session, *values: Any) -> str:
        """The query of the link; the browser puts the address before it."""
        return self.settings(session, *values).to_query()

    def download(self, session: Session) -> Any:
        """Writes the profile's zip file."""
        if session.profile is None:
            raise SettingsError("Sample something first.")
        return str(write_archive(session.profile, session.folder / "profile.zip"))

    def upload(self, session: Session, file: str | None) -> tuple:
        """Opens the zip file of a profile."""
        if file is None:
            return gr.skip(), gr.skip()
        profile = read_archive(file, session.folder / f"upload-{uuid.uuid4().hex[:8]}", self.limits.max_bytes)
        session.profile = profile
        return enlarged(figures.final_image(profile)), "Opened the profile from your file."

    def load(self, session: Session, request: gr.Request) -> list[Any]:
        """The settings of the link that the page was opened by."""
        query = dict(request.query_params) if request is not None else {}
        if not {"seed", "label", "layers", "ablate", "switch", "mask"} & set(query):
            return [gr.skip()] * (1 + len(self.inputs))  # what a visitor has set meanwhile stays
        try:
            settings = from_query(query, self.model.pipe, self.default, self.limits)
        except SettingsError as error:
            return [str(error), *[gr.skip()] * len(self.inputs)]
        session.settings = settings
        return ["Settings come from the link. Press **Sample**.", *self._values(settings)]

    def _values(self, settings: Settings) -> list[Any]:
        names = [f"{self.model.layers.get(layer, layer)}:{channel}" for layer, channel in settings.ablations]
        blocks = {
            block: [path for path in settings.layers if path in paths] for block, paths in self.model.blocks.items()
        }
        chosen = [block for block, paths in blocks.items() if paths]
        switched = settings.switch_at is not None
        return [
            self.model.names_of(settings.label), settings.seed, settings.steps, settings.every, chosen,
            settings.gradients, gr.skip(), gr.update(choices=names, value=names), switched,
            round(100 * settings.switch_at / settings.steps) if switched else 50,
            self.model.names_of(settings.switch_to),
            *(
                gr.update(value=paths[0] if paths else self.model.default_layer(block), visible=bool(paths))
                for block, paths in blocks.items()
            ),
        ]  # fmt: skip

    def connect(self, demo: gr.Blocks) -> None:
        """Ties the handlers to the components."""
        c, safe = self.c, readable_errors
        model = {"concurrency_id": "model", "concurrency_limit": 1}
        demo.load(safe(self.load), c.session, [c.status, *self.inputs])
        run = c.sample.click(
            safe(self.sample), [c.session, *self.inputs], [c.live, c.status], show_progress_on=[c.status], **model
        )
        run.success(safe(self.show), c.session, self.shown, show_progress="hidden")
        c.cancel.click(safe(self.cancel), c.session, c.status, queue=False)
        c.plan.click(safe(self.cost), [c.session, *self.inputs], c.status, **model)
        maps = [c.session, c.map_layer, c.map_step, c.map_channel]
        grads = [c.session, c.grad_layer, c.grad_step, c.grad_channel]
        for group, inputs, output in (("activations", maps, c.map), ("gradient_maps", grads, c.grad_map)):
            draw = safe(partial(self.channel, group))
            inputs[1].input(
                safe(partial(self.channels_of, group)), inputs[:2], inputs[3], show_progress="hidden"
            ).then(draw, inputs, output, show_progress="hidden")
            for slider in inputs[2:]:
                slider.input(draw, inputs, output, show_progress="hidden", trigger_mode="always_last")
        c.attention_layer.input(safe(self.attention_of), [c.session, c.attention_layer], c.attention_maps)
        c.keep.click(safe(self.keep), c.session, self.pairs, show_progress="hidden")
        c.sweep.click(
            safe(self.sweep), [c.session, c.label, c.seed, c.sweep_to], [c.sweep_status, c.sweep_plot, c.sweep_images],
            **model,
        )  # fmt: skip
        c.ablate_add.click(safe(self.mask_channel), [c.ablate_layer, c.ablate_channel, c.ablations], c.ablations)
        c.blocks.change(safe(self.blocks), c.blocks, c.layer_of, show_progress="hidden")
        c.share.click(safe(self.share), [c.session, *self.inputs], c.link).success(
            None, c.link, c.link, js="(query) => window.location.origin + window.location.pathname + query"
        )
        run.success(safe(self.download), c.session, c.download, show_progress="hidden")
        c.upload.upload(safe(self.upload), [c.session, c.upload], [c.live, c.status]).success(
            safe(self.show), c.session, self.shown, show_progress="hidden"
        )
