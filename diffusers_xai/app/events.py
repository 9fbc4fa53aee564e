"""What happens when: settings in, profile into the session, figures out."""

import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from diffusers_xai.app import figures, runs, texts
from diffusers_xai.app.controls import Controls
from diffusers_xai.app.session import Session, enlarged, readable_errors
from diffusers_xai.app.settings import Settings, SettingsError
from diffusers_xai.app.theme import IS_DARK, themed
from diffusers_xai.profile.archive import read_archive, write_archive


MAPS = (("map", "activations"), ("grad", "gradient_maps"))
PAIRS = ("pair", "pair_ssim", "pair_attention", "pair_map_a", "pair_map_b", "pair_volume_a", "pair_volume_b")


class Events:
    """The handlers.

    Args:
        controls (`Controls`): The settings.
        stream (`Callable`): `stream(task, model, settings, stop)` yields what `run_stream` does.
        parallel (`int`): How many runs there may be at a time; those of one model wait for each other.
    """

    def __init__(self, controls: Controls, stream: Any, parallel: int = 1):
        self.c, self.controls, self.stream, self.parallel = controls.c, controls, stream, parallel

    def cost(self, session: Session, *values: Any) -> str:
        """The plan of a run, in words."""
        return self._plan(session, self.controls.settings(session, *values))[0]

    def _plan(self, session: Session, settings: Settings) -> tuple[str, float]:
        model, limits = self.controls.model(settings.model), self.controls.server_limits
        *_, plan = self.stream(runs.plan, model, settings, session.stop)
        if plan.nbytes > limits.max_bytes:
            raise SettingsError(
                f"This profile would take {plan.nbytes / 2**20:.0f} MB; here at most"
                f" {limits.max_bytes / 2**20:.0f} MB are allowed. Record less often, or fewer blocks."
            )
        if plan.seconds > limits.max_seconds:
            raise SettingsError(
                f"This would take about {plan.seconds:.0f} s; here at most"
                f" {limits.max_seconds:.0f} s are allowed. Take fewer steps or a smaller region."
            )
        size = f"{plan.nbytes / 2**20:.1f} MB"
        passes = f", {plan.backward_passes} backward passes" if plan.backward_passes else ""
        return f"**Plan:** about {max(1, plan.seconds):.0f} s, {size}{passes}.", plan.seconds

    def sample(self, session: Session, *values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[tuple]:  # noqa: B008
        """Samples; streams x_t and ends with the profile in the session."""
        settings = self.controls.settings(session, *values)
        model = self.controls.model(settings.model)
        progress(0, desc="Planning")
        try:
            text, seconds = self._plan(session, settings)
            if self._asks_again(session, settings, seconds):
                yield gr.skip(), f"{text} That is long: press **Sample** again to start it."
                return
            progress(0, desc="Waiting for the model")
            for item in self.stream(runs.sample, model, settings, session.stop):
                if isinstance(item, runs.State):
                    what = "Sampling and recording" if item.done < item.total else "Finishing"
                    progress((item.done, item.total), desc=what, unit="steps")
                    yield enlarged(item.sample), f"{text} {what}: step {item.done} of {item.total}."
                else:
                    session.profile, session.settings, session.blocks = item, settings, model.blocks
                    yield (
                        enlarged(figures.final_image(item)),
                        f"Done: {settings.steps} steps, seed {settings.seed}{self._words(settings)}.",
                    )
        except runs.Stopped as stopped:
            yield gr.skip(), str(stopped)

    def _asks_again(self, session: Session, settings: Settings, seconds: float) -> bool:
        """Whether a long run waits for a second press, which starts it."""
        if seconds <= self.controls.server_limits.confirm_seconds or session.confirmed == settings:
            return False
        session.confirmed = settings
        return True

    def _words(self, settings: Settings) -> str:
        words = ""
        if settings.ablations:
            words += f", {len(settings.ablations)} masked channels"
        if settings.switch_at is not None:
            words += f", label switched at step {settings.switch_at}"
        return words

    def sweep(self, session: Session, *values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[tuple]:  # noqa: B008
        """The switch sweep of three seeds."""
        settings = self.controls.sweep_settings(*values)
        model = self.controls.model(settings.model)
        progress(0, desc="Planning")
        try:
            *_, plan = self.stream(runs.plan, model, settings, session.stop)
            seconds = runs.sweep_seconds(plan)
            text = f"**Plan:** about {max(1, seconds):.0f} s at most."
            if self._asks_again(session, settings, seconds):
                yield f"{text} That is long: press the button again to start it.", gr.skip(), gr.skip()
                return
            progress(0, desc="Waiting for the model")
            for item in self.stream(runs.sweep, model, settings, session.stop):
                if isinstance(item, runs.State):
                    what = "Switching the label at ten times"
                    progress((item.done, item.total), desc=what, unit="steps")
                    yield f"{text} {what}: step {item.done} of {item.total}.", gr.skip(), gr.skip()
                else:
                    yield self._shown_sweep(session, settings, item)
        except runs.Stopped as stopped:
            yield str(stopped), gr.skip(), gr.skip()

    def _shown_sweep(self, session: Session, settings: Settings, result: Any) -> tuple:
        names = ["never", *(f"step {step}" for step in result.data["step"].values)]
        images = [
            (enlarged(image, 160), name) for image, name in zip(result.data["images"].values, names, strict=True)
        ]
        return (
            f"Done: seeds {settings.seed} to {settings.seed + 2}; the images are those of seed {settings.seed}.",
            gr.update(value=themed(result.plot(), session.dark), visible=True),
            gr.update(value=images, visible=True),
        )

    def begin(self, session: Session) -> None:
        """Forgets an earlier cancellation. Not done by the run itself: it may be cancelled while it waits its turn."""
        session.stop.clear()

    def cancel(self, session: Session) -> str:
        """Asks the run to end at its next step."""
        session.stop.set()
        return texts.CANCELLED

    def show(self, session: Session) -> dict[Any, Any]:
        """All figures and the ranges of their controls."""
        c, profile = self.c, session.profile
        if profile is None:
            return {c.pair_status: gr.skip()}
        shown = {getattr(c, name): plot for name, plot in figures.overview(profile, session).items()}
        for name, group in MAPS:
            shown |= self._map(session, name, group)
        attention = figures.attention_choices(profile)
        layer = attention[0][1] if attention else None
        shown[c.attention_layer] = gr.update(choices=attention, value=layer, visible=bool(attention))
        shown[c.attention_maps] = figures.layer_attention(session, layer)
        has_attention = session.settings is None or self._has_attention(session.settings)
        shown |= {getattr(c, name): note for name, note in figures.notes(profile, has_attention).items()}
        shown |= self.compare(session)
        mask = session.settings.mask_array() if session.settings is not None else None
        background = enlarged(figures.final_image(profile), region=mask)
        return {**shown, c.editor: {"background": background, "layers": [], "composite": None}}

    def _has_attention(self, settings: Settings) -> bool:
        return self.controls.model(settings.model).has_attention

    def _map(self, session: Session, name: str, group: str) -> dict[Any, Any]:
        c, profile = self.c, session.profile
        choices = figures.layer_choices(profile, group)  # type: ignore[arg-type]
        layer = choices[0][1] if choices else None
        count, channels = figures.map_sizes(profile, group, layer)  # type: ignore[arg-type]
        index, there = count // 2, bool(choices)
        return {
            getattr(c, f"{name}_layer"): gr.update(choices=choices, value=layer, visible=there),
            getattr(c, f"{name}_step"): gr.update(maximum=max(count - 1, 1), value=index, visible=there),
            getattr(c, f"{name}_channel"): gr.update(maximum=max(channels - 1, 1), value=0, visible=there),
            getattr(c, f"{name}_plot"): figures.channel_figure(session, group, layer, index, 0),
        }

    def channel(self, group: str, session: Session, layer: str, index: float, channel: float) -> Any:
        """The map of the sliders."""
        return figures.channel_figure(session, group, layer, index, channel)

    def channels_of(self, group: str, session: Session, layer: str) -> Any:
        """The range of the channel slider for a layer."""
        if session.profile is None or not layer:
            return gr.skip()
        return gr.update(maximum=max(figures.map_sizes(session.profile, group, layer)[1] - 1, 1), value=0)

    def keep(self, session: Session) -> dict[Any, Any]:
        """Keeps the run for the comparison."""
        if session.profile is None:
            raise SettingsError("Sample something first.")
        session.kept = session.profile
        return self.compare(session)

    def compare(self, session: Session) -> dict[Any, Any]:
        """The comparison of the kept run with the present one."""
        if session.kept is None:
            status = texts.NOT_KEPT
        else:
            status = texts.KEPT if session.kept is session.profile else texts.COMPARED
        plots = dict(zip((getattr(self.c, name) for name in PAIRS), figures.comparison(session), strict=True))
        return {self.c.pair_status: status, **plots}

    def download(self, session: Session) -> Any:
        """Writes the profile's zip file."""
        if session.profile is None:
            raise SettingsError("Sample something first.")
        return str(write_archive(session.profile, session.folder / "profile.zip"))

    def upload(self, session: Session, file: str | None, name: str) -> tuple:
        """Opens the zip file of a profile."""
        if file is None:
            return gr.skip(), gr.skip()
        limits = self.controls.server_limits
        profile = read_archive(file, session.folder / f"upload-{uuid.uuid4().hex[:8]}", limits.max_bytes)
        session.profile, session.settings, session.blocks = profile, None, self.controls.model(name).blocks
        return enlarged(figures.final_image(profile)), "Opened the profile from your file."

    def theme(self, session: Session, dark: bool) -> None:
        """Remembers the page's theme, for the figures."""
        session.dark = bool(dark)

    def connect(self, demo: gr.Blocks) -> None:
        """Ties the handlers to the components."""
        c, controls, safe = self.c, self.controls, readable_errors
        model = {"concurrency_id": "model", "concurrency_limit": self.parallel}
        plots = [getattr(c, name) for name in figures.PLOTS]
        maps = [getattr(c, f"{name}_{part}") for name, _ in MAPS for part in ("layer", "step", "channel", "plot")]
        pairs = [c.pair_status, *(getattr(c, name) for name in PAIRS)]
        shown = [*plots, *maps, c.attention_layer, c.attention_maps, c.editor, *pairs]
        shown += [c.activations_note, c.attention_note, c.gradients_note]
        show = {"fn": safe(self.show), "inputs": c.session, "outputs": shown, "show_progress": "hidden"}

        demo.load(safe(self.theme), [c.session, c.dark], None, js=IS_DARK)
        demo.load(safe(controls.load), c.session, controls.outputs)
        c.model.input(
            safe(controls.choose), [c.session, c.model, c.seed, c.steps, c.every], controls.outputs,
            show_progress="hidden",
        )  # fmt: skip
        begin = {"fn": safe(self.begin), "inputs": c.session, "queue": False, "show_progress": "hidden"}
        run = c.sample.click(**begin).success(
            safe(self.sample), [c.session, *controls.inputs], [c.live, c.status], show_progress_on=[c.status], **model
        )
        run.success(**show).success(safe(self.download), c.session, c.download, show_progress="hidden")
        c.cancel.click(safe(self.cancel), c.session, c.status, queue=False)
        c.plan.click(**begin).success(safe(self.cost), [c.session, *controls.inputs], c.status, **model)
        c.sweep.click(**begin).success(
            safe(self.sweep),
            [c.session, c.model, c.label_names, c.label_class, c.seed, c.sweep_names, c.sweep_class],
            [c.sweep_status, c.sweep_plot, c.sweep_images],
            show_progress_on=[c.sweep_status],
            **model,
        )
        c.sweep_cancel.click(safe(self.cancel), c.session, c.sweep_status, queue=False)
        for name, group in MAPS:
            inputs = [c.session, *(getattr(c, f"{name}_{part}") for part in ("layer", "step", "channel"))]
            draw, output = safe(partial(self.channel, group)), getattr(c, f"{name}_plot")
            inputs[1].input(
                safe(partial(self.channels_of, group)), inputs[:2], inputs[3], show_progress="hidden"
            ).then(draw, inputs, output, show_progress="hidden")
            for slider in inputs[2:]:
                slider.input(draw, inputs, output, show_progress="hidden", trigger_mode="always_last")
        c.attention_layer.input(safe(figures.layer_attention), [c.session, c.attention_layer], c.attention_maps)
        c.keep.click(safe(self.keep), c.session, pairs, show_progress="hidden")
        c.ablate_add.click(
            safe(controls.mask_channel), [c.model, c.ablate_layer, c.ablate_channel, c.ablations], c.ablations
        )
        slots = [getattr(c, name) for name in controls.slot_names]
        c.blocks.input(safe(controls.slots), [c.model, c.blocks, *slots], slots, show_progress="hidden")
        c.share.click(safe(controls.share), [c.session, *controls.inputs], c.link).success(
            None, c.link, c.link, js="(query) => window.location.origin + window.location.pathname + query"
        )
        c.upload.upload(safe(self.upload), [c.session, c.upload, c.model], [c.live, c.status]).success(**show)
