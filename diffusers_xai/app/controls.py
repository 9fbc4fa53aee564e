"""The settings' controls: their values as `Settings`, settings as their values, and what depends on the model."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from operator import sub
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np

from diffusers_xai.app import links, texts
from diffusers_xai.app.drawing import painted
from diffusers_xai.app.models import Model
from diffusers_xai.app.session import Session, enlarged, readable_errors
from diffusers_xai.app.settings import MAX_GUIDANCE, MAX_SEED, SCHEDULERS, Limits, Settings, SettingsError, shortened
from diffusers_xai.app.shown import chosen_layers, shown, shown_slots
from diffusers_xai.app.theme import WHOLE_LINK
from diffusers_xai.app.values import flag, number, some_of, whole
from diffusers_xai.measures import mask_from_drawing, mask_to_runs


# Of all events but runs: they wait for nobody, no program calls them, and values come as the browser sent them.
RAW: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "preprocess": False}


class Controls:
    """The settings of a visitor.

    Args:
        c (`SimpleNamespace`): The components.
        models (`Mapping[str, Model]`): What can be chosen.
        limits (`Limits`): What may be asked of the server.
        defaults: Fields of `Settings`.
    """

    def __init__(self, c: SimpleNamespace, models: Mapping[str, Model], limits: Limits, **defaults: Any):
        self.c, self.models, self.server_limits, self.defaults = c, models, limits, defaults
        self.names = [
            "model", "label_names", "label_class", "null_label", "seed", "steps", "every", "scheduler", "guidance",
            "blocks", "weights", "gradients", "editor", "ablations", "switch", "switch_at", "switch_names",
            "switch_class",
        ]  # fmt: skip
        self.slot_names = [f"slot_{i}" for i in range(limits.max_blocks)]
        self.inputs = [getattr(c, name) for name in (*self.names, *self.slot_names)]
        first = next(iter(models.values()))
        of_model = shown(first, first.default(limits), limits)
        self.outputs = [c.status, c.editor, *(getattr(c, name) for name in of_model)]

    def model(self, name: Any) -> Model:
        """The model of a name; only those that the server was started with can be chosen."""
        if not isinstance(name, str) or name not in self.models:
            raise SettingsError(
                f"Expected a model that is offered here, got {shortened(name)}; available: {', '.join(self.models)}."
            )
        return self.models[name]

    def limits(self, model: Model) -> Limits:
        """What may be asked of a model."""
        return model.limits(self.server_limits)

    def settings(self, session: Session, *values: Any) -> Settings:
        """The values of the inputs as they come from the browser, checked."""
        v = SimpleNamespace(**dict(zip(self.names, values, strict=False)))
        model = self.model(v.model)
        limits = self.limits(model)
        steps = whole(v.steps, "Steps", 1, limits.max_steps)
        switched = bool(model.classes) and flag(v.switch, "Switch the label")
        is_null = model.null_label is not None and flag(v.null_label, "No label")
        blocks = some_of(v.blocks, "Blocks", model.blocks, limits.max_blocks)
        return Settings(
            model=model.name,
            label=model.null_label if is_null else self.label(model, v.label_names, v.label_class),
            seed=whole(v.seed, "Noise seed", 0, MAX_SEED - 1),
            steps=steps,
            every=min(whole(v.every, "Record every … steps", 1, limits.max_steps), steps),
            scheduler=some_of([v.scheduler], "Scheduler", SCHEDULERS, 1)[0],
            guidance=number(v.guidance, "Guidance", 1, MAX_GUIDANCE) if model.null_label is not None else 1.0,
            layers=tuple(layer for _, layer in chosen_layers(model, blocks, values[len(self.names) :])),
            weights=flag(v.weights, "Softmax attention weights") and model.has_weights,
            gradients=flag(v.gradients, "Compute gradients"),
            mask=self._mask(session, model, v.editor),
            ablations=self._ablations(model, v.ablations),
            switch_at=whole(v.switch_at, "Switch at step", 0, steps) if switched else None,
            switch_to=self.label(model, v.switch_names, v.switch_class) or 0,
        ).check(limits)

    def label(self, model: Model, names: Any, number: Any) -> int | None:
        """The label of the boxes that are ticked, or of the number where labels have no names."""
        if not model.classes:
            return None
        if model.attributes:
            return model.label_of(some_of(names, "Label", model.attributes, len(model.attributes)), 0)
        return whole(number, "Label", 0, model.classes - 1)

    def _ablations(self, model: Model, written: Any) -> tuple[tuple[str, int], ...]:
        paths = {name: path for path, name in model.layers.items()}
        pairs = []
        if not isinstance(written or [], list):
            raise SettingsError(
                f"Masked channels: expected a list of texts such as layer:channel, got {shortened(written)}."
            )
        for text in written or []:
            name, _, channel = str(text)[:200].rpartition(":")
            if name not in paths or not (channel.isascii() and channel.isdecimal()):
                raise SettingsError(f"Masked channels: expected layer:channel, got {shortened(text)}.")
            pairs.append((paths[name], int(channel)))
        return model.check_channels(tuple(dict.fromkeys(pairs)))

    def _mask(self, session: Session, model: Model, editor: Any) -> str:
        drawn = painted(editor, self.server_limits)
        if drawn is not None:
            if min(map(sub, drawn.shape, model.size)) < 0:
                raise SettingsError(
                    "Expected a drawing that is as large as the image, got a smaller one: paint it again."
                )
            return json.dumps(mask_to_runs(mask_from_drawing(drawn, model.size)))
        return self.region(session, model)

    def region(self, session: Session, model: Model) -> str:
        """The region that is asked about where nothing new is painted, as in `Settings`."""
        name, mask = session.region or ("", "")
        if name == model.name:
            return mask
        return json.dumps(mask_to_runs(model.default_mask()))

    def load(self, session: Session, request: gr.Request) -> dict[Any, Any]:
        """The settings of the link that the page was opened by."""
        query = dict(request.query_params) if request is not None else {}
        if not links.NAMES & set(query):
            return {self.c.status: gr.skip()}  # what a visitor has set meanwhile stays
        try:
            settings = links.from_query(query, self.models, self.server_limits, **self.defaults)
        except SettingsError as error:
            return {self.c.status: str(error)}
        return self.take(session, settings, "Settings come from the link. Press **Sample**.")

    def take(self, session: Session, settings: Settings, told: str) -> dict[Any, Any]:
        """Sets all controls to settings from elsewhere, and draws their region."""
        session.ask_about(settings)
        return {**self.values(settings), self.c.editor: self.drawn(settings), self.c.status: told}

    def drawn(self, settings: Settings, image: np.ndarray | None = None) -> dict[str, Any]:
        """What the editor shows: an image, or grey, with the region tinted."""
        model = self.model(settings.model)
        mask = settings.mask_array()
        if mask is None:
            mask = model.default_mask()
        image = np.zeros((3, *model.size)) if image is None else image
        return {"background": enlarged(image, region=mask), "layers": [], "composite": None}

    def choose(self, session: Session, name: Any, seed: Any, steps: Any, every: Any) -> dict[Any, Any]:
        """What the controls show for another model; seed and steps stay where they can."""
        model = self.model(name)
        most = self.limits(model).max_steps
        kept = {
            "seed": whole(seed, "Noise seed", 0, MAX_SEED - 1),
            "steps": min(whole(steps, "Steps", 1, self.server_limits.max_steps), most),
            "every": min(whole(every, "Record every … steps", 1, self.server_limits.max_steps), most),
        }
        settings = model.default(self.server_limits, **{**self.defaults, **kept})
        return self.take(session, settings, texts.chosen(model.name))

    def values(self, settings: Settings) -> dict[Any, Any]:
        """Every control's value and choices."""
        return self._updates(shown(self.model(settings.model), settings, self.server_limits))

    def steps_changed(self, steps: Any, at: Any) -> Any:
        """The range of the switch's step for a number of steps; the share of the way stays."""
        steps = whole(steps, "Steps", 1, self.server_limits.max_steps)
        at = min(whole(at, "Switch at step", 0, self.server_limits.max_steps), steps)
        return gr.update(maximum=steps, value=at)

    def slots(self, name: Any, blocks: Any, *held: Any) -> dict[Any, Any]:
        """A layer's choice for each chosen block."""
        count, model = self.server_limits.max_blocks, self.model(name)
        blocks = some_of(blocks, "Blocks", model.blocks, len(model.blocks))
        if len(blocks) > count:
            gr.Warning(f"At most {count} blocks at a time: remove one.")
        return self._updates(shown_slots(model, blocks, held, self.server_limits))

    def _updates(self, values: dict[str, dict[str, Any]]) -> dict[Any, Any]:
        return {getattr(self.c, name): gr.update(**changes) for name, changes in values.items()}

    def mask_channel(self, name: Any, layer: Any, channel: Any, there: Any) -> Any:
        """Adds a channel to the list."""
        model = self.model(name)
        if layer not in model.layers:
            raise SettingsError(
                f"Expected a layer of this model, got {shortened(layer)}; available: {', '.join(model.layers)}."
            )
        channel = whole(channel, "Channel", 0, model.channels.get(layer, 1) - 1)
        added = (*self._ablations(model, there), (layer, channel))
        values = [f"{model.layers[path]}:{number}" for path, number in dict.fromkeys(added)]
        if len(values) > self.server_limits.max_ablations:
            raise SettingsError(
                f"Expected at most {self.server_limits.max_ablations} masked channels, got {len(values)}."
            )
        return gr.update(choices=values, value=values)

    def share(self, session: Session, *values: Any) -> str:
        """The query of the link; the browser puts the address before it."""
        return links.to_query(self.settings(session, *values))

    def sweep_settings(
        self, name: Any, label_names: Any, label_class: Any, seed: Any, to_names: Any, to_class: Any
    ) -> Settings:
        """The settings of a switch sweep: few steps, as it is eleven runs of three seeds."""
        model = self.model(name)
        if not model.classes:
            raise SettingsError(texts.NO_LABELS)
        label, to = self.label(model, label_names, label_class), self.label(model, to_names, to_class)
        if label == to:
            raise SettingsError(f"Expected another label to switch to than that of the image, got {to} for both.")
        default = model.default(self.server_limits, steps=50, every=10)
        seed = whole(seed, "Noise seed", 0, MAX_SEED - 4)
        settings = replace(default, label=label, switch_to=to or 0, seed=seed)
        return settings.check(self.limits(model))

    def connect(self) -> None:
        """Ties the handlers to the components."""
        c, safe = self.c, readable_errors
        c.model.input(safe(self.choose), [c.session, c.model, c.seed, c.steps, c.every], self.outputs, **RAW)
        c.random.click(safe(random_seed), None, c.seed, **RAW)
        c.steps.input(safe(self.steps_changed), [c.steps, c.switch_at], c.switch_at, **RAW)
        slots = [getattr(c, name) for name in self.slot_names]
        c.blocks.input(safe(self.slots), [c.model, c.blocks, *slots], slots, **RAW)
        channel = [c.model, c.ablate_layer, c.ablate_channel, c.ablations]
        c.ablate_add.click(safe(self.mask_channel), channel, c.ablations, **RAW)
        c.share.click(safe(self.share), [c.session, *self.inputs], c.link, **RAW).success(
            None, c.link, c.link, js=WHOLE_LINK
        )


def random_seed() -> int:
    """A noise seed that nobody has chosen."""
    return secrets.randbelow(10**6)
