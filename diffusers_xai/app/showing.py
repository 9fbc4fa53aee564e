"""What is seen of results: figures, their controls, comparisons, files."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from diffusers_xai.app import figures, links, texts
from diffusers_xai.app.captions import caption
from diffusers_xai.app.controls import RAW, Controls
from diffusers_xai.app.memory import give_back
from diffusers_xai.app.opened import open_profile
from diffusers_xai.app.reopened import settings_of
from diffusers_xai.app.session import Result, Session, enlarged, readable_errors
from diffusers_xai.app.settings import SettingsError
from diffusers_xai.app.theme import ADDRESS, IS_DARK
from diffusers_xai.app.values import flag, whole
from diffusers_xai.profile.archive import write_archive


DRAWN = ("plot", "told")
MAPS = (("map", "activations"), ("grad", "gradient_maps"))
PAIRS = ("pair", "pair_ssim", "pair_attention", "pair_map_a", "pair_map_b", "pair_volume_a", "pair_volume_b")


class Showing:
    """The handlers of what only shows.

    Args:
        controls (`Controls`): The settings.
        example (`Result`, *optional*): What a fresh page shows.
    """

    def __init__(self, controls: Controls, example: Result | None):
        self.c, self.controls, self.example = controls.c, controls, example
        self._drawn: dict[bool, dict[Any, Any]] = {}  # figures of the example by theme

    def begin(self, session: Session, dark: Any) -> dict[Any, Any]:
        """What a fresh page shows: the example."""
        session.dark = flag(dark, "dark")
        result = self.example
        if session.result is not None or result is None:
            return {self.c.pair_status: gr.skip()}
        session.result = result
        if session.dark not in self._drawn:
            self._drawn[session.dark] = self.show(session)
        # Gradio takes the values out of what it is given.
        drawn = {
            c: dict(update) if isinstance(update, dict) else update for c, update in self._drawn[session.dark].items()
        }
        return {**drawn, self.c.live: enlarged(figures.final_image(result.profile))}

    def show(self, session: Session) -> dict[Any, Any]:
        """All figures and the ranges of their controls."""
        c, result = self.c, session.result
        if result is None:
            return {c.pair_status: gr.skip()}
        shown = {getattr(c, name): plot for name, plot in figures.overview(result, session.dark).items()}
        for name, group in MAPS:
            shown |= self._map(result, session.dark, name, group)
        attention = figures.attention_choices(result.profile)
        layer = attention[0][1] if attention else None
        shown[c.attention_layer] = gr.update(choices=attention, value=layer, visible=bool(attention))
        shown[c.attention_maps] = figures.layer_attention(result, session.dark, layer)
        settings = result.settings
        model = None if settings is None else self.controls.model(settings.model)
        notes = figures.notes(result, model is None or model.has_attention, model is None or model.has_weights)
        shown |= {getattr(c, name): note for name, note in notes.items()}
        shown |= self.compare(session, None)
        if settings is not None:
            session.ask_about(settings)
            shown[c.editor] = self.controls.drawn(settings, figures.final_image(result.profile))
        # The file and the link of this run are made next: until then there is none of an earlier one to take.
        waiting = {c.download: gr.update(interactive=False), c.link: ""}
        return {**shown, **waiting, c.shown: result.words, c.run: result.id, c.stale: ""}

    def _map(self, result: Result, dark: bool, name: str, group: str) -> dict[Any, Any]:
        c, choices = self.c, figures.layer_choices(result.profile, group)
        layer = choices[0][1] if choices else None
        count, channels = figures.map_sizes(result.profile, group, layer)
        index, there = count // 2, bool(choices)
        plot, told = figures.channel_figure(result, dark, group, layer, index, 0)
        shown = {
            getattr(c, f"{name}_layer"): gr.update(choices=choices, value=layer, visible=there),
            getattr(c, f"{name}_step"): gr.update(maximum=max(count - 1, 1), value=index, visible=there),
            getattr(c, f"{name}_channel"): gr.update(maximum=max(channels - 1, 1), value=0, visible=there),
            getattr(c, f"{name}_plot"): plot,
            getattr(c, f"{name}_told"): told,
        }
        if name == "map":
            shown[c.mask_max] = gr.update(visible=there)
        return shown

    # What acts on a run is sent which one the page shows: between the end of a run and its figures on the page, a
    # click would be about the run before.

    def channel(self, group: str, session: Session, run: Any, layer: Any, index: Any, channel: Any) -> Any:
        """The map of the sliders, and what it is."""
        index = whole(index, "Time", 0, 10**4)
        return figures.channel_figure(session.seen(run), session.dark, group, layer, index, channel)

    def channels_of(self, group: str, session: Session, run: Any, layer: Any) -> Any:
        """The range of the channel slider for a layer."""
        profile = session.seen(run).profile
        if f"{group}/{layer}" not in profile:
            return gr.skip()
        return gr.update(maximum=max(figures.map_sizes(profile, group, layer)[1] - 1, 1), value=0)

    def mask_max(self, session: Session, run: Any, name: Any, layer: Any, index: Any, there: Any) -> Any:
        """Adds the channel c* of the map that is shown to the masked channels."""
        channel = figures.max_channel(session.seen(run), layer, whole(index, "Time", 0, 10**4))
        return self.controls.mask_channel(name, layer, channel, there)

    def layer_attention(self, session: Session, run: Any, layer: Any) -> Any:
        """The max channel of one attention layer over time."""
        return figures.layer_attention(session.seen(run), session.dark, layer)

    def keep(self, session: Session, run: Any) -> dict[Any, Any]:
        """Keeps the run for the comparison."""
        session.keep(session.seen(run))
        return self.compare(session, 0)

    def choose_kept(self, session: Session, run: Any, chosen: Any) -> dict[Any, Any]:
        """The comparison of the chosen one of the kept runs with what is shown."""
        session.seen(run)
        return self.compare(session, chosen)

    def compare(self, session: Session, chosen: Any) -> dict[Any, Any]:
        """The comparison of a kept run with the present one.

        Args:
            session (`Session`): The visitor.
            chosen (`int`, *optional*): Which of the kept runs; the newest other one by default.
        """
        others = [i for i, result in enumerate(session.kept) if result is not session.result]
        if chosen is None:
            chosen = others[0] if others else 0
        else:
            chosen = whole(chosen, "Kept run", 0, max(len(session.kept) - 1, 0))
        kept = session.kept[chosen] if session.kept else None
        choices = [(f"{i + 1}: {_plain(result.caption)}", i) for i, result in enumerate(session.kept)]
        plots: list[Any] = [gr.update(value=None, visible=False)] * len(PAIRS)
        if kept is None or session.result is None:
            status = texts.NOT_KEPT
        elif kept is session.result:
            status = texts.KEPT
        else:
            plots = figures.comparison(kept.profile, session.result.profile, session.dark)
            status = texts.compared(kept.caption, session.result.caption)
            if not plots[0]["visible"]:
                status += " " + texts.NOT_ALIKE
        shown = gr.update(choices=choices, value=chosen, visible=len(choices) > 1)
        pairs = dict(zip((getattr(self.c, name) for name in PAIRS), plots, strict=True))
        return {self.c.pair_status: status, self.c.kept: shown, **pairs}

    def download(self, session: Session) -> Any:
        """Writes the zip file of what is shown."""
        if session.result is None:
            raise SettingsError("Sample something first.")
        path = write_archive(session.result.profile, session.folder / "profile.zip")
        return gr.update(value=str(path), interactive=True)

    def link(self, session: Session) -> Any:
        """The query of the link to what is shown, if the controls can; the browser puts the address before it."""
        settings = None if session.result is None else session.result.settings
        return "" if settings is None else links.to_query(settings)

    def upload(self, session: Session, file: Any) -> dict[Any, Any]:
        """Opens the zip file of a profile, and sets the controls as it was made."""
        c, controls = self.c, self.controls
        path = file.get("path") if isinstance(file, Mapping) else None
        if path is None:
            return {c.status: gr.skip()}
        if not isinstance(path, str):
            raise SettingsError("Expected a file, got something else.")
        try:
            profile = open_profile(path, session.new_folder(), controls.server_limits)
        finally:
            give_back()
        settings = settings_of(profile, controls.models, controls.server_limits)
        model = None if settings is None else controls.model(settings.model)
        if settings is None or model is None:
            result = Result(profile, None, {}, "a profile from your file, whose settings cannot be set here")
        else:
            result = Result(profile, settings, model.blocks, f"from your file, {caption(settings, model)}")
        image = figures.final_image(profile)
        session.result = result
        told = f"Opened the profile: {result.caption}."
        taken = {c.status: told} if settings is None else controls.take(session, settings, told)
        return {**taken, c.live: enlarged(image)}

    def mark(self, session: Session, *values: Any) -> str:
        """Tells whether the controls are other than those of the run that is shown."""
        shown = None if session.result is None else session.result.settings
        if shown is None:
            return ""
        try:
            return "" if self.controls.settings(session, *values) == shown else texts.STALE
        except SettingsError:  # told when a run of them is asked for
            return texts.STALE

    def connect(self, demo: gr.Blocks) -> None:
        """Ties the handlers to the components."""
        c, controls, safe = self.c, self.controls, readable_errors
        demo.load(safe(self.begin), [c.session, c.dark], [*self._outputs(), c.live], js=IS_DARK, **RAW).then(
            safe(controls.load), c.session, controls.outputs, **RAW
        )
        for name, group in MAPS:
            inputs = [c.session, c.run, *(getattr(c, f"{name}_{part}") for part in ("layer", "step", "channel"))]
            draw, outputs = safe(partial(self.channel, group)), [getattr(c, f"{name}_{part}") for part in DRAWN]
            inputs[2].input(safe(partial(self.channels_of, group)), inputs[:3], inputs[4], **RAW).then(
                draw, inputs, outputs, **RAW
            )
            for slider in inputs[3:]:
                slider.input(draw, inputs, outputs, trigger_mode="always_last", **RAW)
        c.mask_max.click(
            safe(self.mask_max),
            [c.session, c.run, c.model, c.map_layer, c.map_step, c.ablations],
            c.ablations,
            **RAW,
        )
        c.attention_layer.input(
            safe(self.layer_attention), [c.session, c.run, c.attention_layer], c.attention_maps, **RAW
        )  # fmt: skip
        pairs = [c.pair_status, c.kept, *(getattr(c, name) for name in PAIRS)]
        c.keep.click(safe(self.keep), [c.session, c.run], pairs, **RAW)
        c.kept.input(safe(self.choose_kept), [c.session, c.run, c.kept], pairs, **RAW)
        outputs = list(dict.fromkeys([*controls.outputs, c.live]))
        self.after(c.upload.upload(safe(self.upload), [c.session, c.upload], outputs, **RAW))
        mark = {"fn": safe(self.mark), "inputs": [c.session, *controls.inputs], "outputs": c.stale}
        # Were it asked for its own events, the editor would send every stroke by a route that is closed here.
        changed = [component.input for component in controls.inputs if component is not c.editor]
        gr.on([*changed, c.painted.click], **mark, trigger_mode="always_last", **RAW)

    def after(self, event: Any) -> None:
        """Shows a new result: figures, file, link and address."""
        c = self.c
        shown = event.success(readable_errors(self.show), c.session, self._outputs(), **RAW)
        inputs = [c.session, *self.controls.inputs]  # which may have been changed while it was sampled
        shown.success(readable_errors(self.mark), inputs, c.stale, **RAW)
        shown.success(readable_errors(self.download), c.session, c.download, **RAW)
        shown.success(readable_errors(self.link), c.session, c.link, **RAW).success(None, c.link, c.link, js=ADDRESS)

    def _outputs(self) -> list[Any]:
        c = self.c
        maps = [getattr(c, f"{name}_{part}") for name, _ in MAPS for part in ("layer", "step", "channel", *DRAWN)]
        plots = [getattr(c, name) for name in (*figures.PLOTS, *PAIRS)]
        notes = [c.activations_note, c.attention_note, c.weights_note, c.gradients_note]
        others = [
            c.mask_max,
            c.attention_layer,
            c.attention_maps,
            c.editor,
            c.pair_status,
            c.kept,
            c.shown,
            c.run,
            c.stale,
        ]
        return [*plots, *maps, *notes, *others, c.download, c.link]


def _plain(text: str) -> str:
    return text.replace("**", "")
