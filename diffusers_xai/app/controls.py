"""The settings' controls: their values as `Settings`, settings as their values, and what depends on the model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np

from diffusers_xai.app import links, texts
from diffusers_xai.app.models import Model
from diffusers_xai.app.session import Session
from diffusers_xai.app.settings import Limits, Settings, SettingsError
from diffusers_xai.app.shown import chosen_layers, shown, shown_slots
from diffusers_xai.measures import mask_from_drawing, mask_to_runs


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
            "model", "label_names", "label_class", "seed", "steps", "every", "blocks", "gradients", "editor",
            "ablations", "switch", "switch_at", "switch_names", "switch_class",
        ]  # fmt: skip
        self.slot_names = [f"slot_{i}" for i in range(limits.max_blocks)]
        self.inputs = [getattr(c, name) for name in (*self.names, *self.slot_names)]
        first = next(iter(models.values()))
        of_model = shown(first, first.default(limits), limits)
        self.outputs = [c.status, c.editor, *(getattr(c, name) for name in of_model)]

    def model(self, name: Any) -> Model:
        """The model of a name; only those that the server was started with can be chosen."""
        if name not in self.models:
            raise SettingsError(f"This model is not offered here. Offered: {', '.join(self.models)}.")
        return self.models[name]

    def limits(self, model: Model) -> Limits:
        """What may be asked of a model."""
        return model.limits(self.server_limits)

    def settings(self, session: Session, *values: Any) -> Settings:
        """The values of the inputs, checked."""
        v = SimpleNamespace(**dict(zip(self.names, values, strict=False)))
        model = self.model(v.model)
        if v.seed is None:
            raise SettingsError("Give a noise seed: a whole number from 0 on.")
        steps = int(v.steps)
        slots = values[len(self.names) :]
        return Settings(
            model=model.name,
            label=model.label_of(v.label_names, v.label_class),
            seed=int(v.seed),
            steps=steps,
            every=min(int(v.every), steps),
            layers=tuple(layer for _, layer in chosen_layers(model, v.blocks, slots)),
            gradients=bool(v.gradients),
            mask=self._mask(session, model, v.editor),
            ablations=self._ablations(model, v.ablations),
            switch_at=round(v.switch_at / 100 * steps) if v.switch and model.classes else None,
            switch_to=model.label_of(v.switch_names, v.switch_class) or 0,
        ).check(self.limits(model))

    def _ablations(self, model: Model, written: Any) -> tuple[tuple[str, int], ...]:
        paths = {name: path for path, name in model.layers.items()}
        pairs = []
        for text in written or []:
            name, _, channel = str(text).rpartition(":")
            if name not in paths or not channel.isdecimal():
                raise SettingsError(f"Masked channels are written layer:channel, not {str(text)[:60]!r}.")
            pairs.append((paths[name], int(channel)))
        return tuple(dict.fromkeys(pairs))

    def _mask(self, session: Session, model: Model, editor: Any) -> str:
        layers = (editor or {}).get("layers") or []
        drawn = [layer[..., 3] > 0 for layer in layers if layer is not None and (layer[..., 3] > 0).any()]
        if drawn:
            mask = mask_from_drawing(np.any(drawn, axis=0), model.size)
        elif session.settings is not None and session.settings.model == model.name and session.settings.mask:
            return session.settings.mask
        else:
            mask = model.default_mask(self.limits(model).max_mask_pixels)
        return json.dumps(mask_to_runs(mask))

    def load(self, session: Session, request: gr.Request) -> dict[Any, Any]:
        """The settings of the link that the page was opened by."""
        query = dict(request.query_params) if request is not None else {}
        if not links.NAMES & set(query):
            return {self.c.status: gr.skip()}  # what a visitor has set meanwhile stays
        try:
            settings = links.from_query(query, self.models, self.server_limits, **self.defaults)
        except SettingsError as error:
            return {self.c.status: str(error)}
        session.settings = settings
        return {**self.values(settings), self.c.status: "Settings come from the link. Press **Sample**."}

    def choose(self, session: Session, name: str, seed: Any, steps: Any, every: Any) -> dict[Any, Any]:
        """What the controls show for another model; seed and steps stay."""
        model = self.model(name)
        kept = {"seed": int(seed or 0), "steps": int(steps), "every": int(every)}
        settings = model.default(self.server_limits, **{**self.defaults, **kept})
        session.settings = None
        return {**self.values(settings), self.c.status: texts.chosen(model.name)}

    def values(self, settings: Settings) -> dict[Any, Any]:
        """Every control's value and choices, and an empty region."""
        values = shown(self.model(settings.model), settings, self.server_limits)
        return {**self._updates(values), self.c.editor: None}

    def slots(self, name: str, blocks: Any, *held: Any) -> dict[Any, Any]:
        """A layer's choice for each chosen block."""
        count = self.server_limits.max_blocks
        if len(blocks or []) > count:
            gr.Warning(f"At most {count} blocks at a time: remove one.")
        return self._updates(shown_slots(self.model(name), blocks, held, self.server_limits))

    def _updates(self, values: dict[str, dict[str, Any]]) -> dict[Any, Any]:
        return {getattr(self.c, name): gr.update(**changes) for name, changes in values.items()}

    def mask_channel(self, name: str, layer: Any, channel: Any, there: Any) -> Any:
        """Adds a channel to the list."""
        model = self.model(name)
        if layer not in model.layers or channel is None:
            raise SettingsError("Choose a layer and a channel.")
        values = list(dict.fromkeys([*(there or []), f"{model.layers[layer]}:{int(channel)}"]))
        return gr.update(choices=values, value=values)

    def share(self, session: Session, *values: Any) -> str:
        """The query of the link; the browser puts the address before it."""
        return links.to_query(self.settings(session, *values))

    def sweep_settings(
        self, name: str, label_names: Any, label_class: Any, seed: Any, to_names: Any, to_class: Any
    ) -> Settings:
        """The settings of a switch sweep: few steps, as it is eleven runs of three seeds."""
        model = self.model(name)
        if not model.classes:
            raise SettingsError(texts.NO_LABELS)
        label, to = model.label_of(label_names, label_class), model.label_of(to_names, to_class)
        if label == to:
            raise SettingsError("Choose another label to switch to than the one chosen at the left.")
        default = model.default(self.server_limits, steps=50, every=10)
        settings = replace(default, label=label, switch_to=to or 0, seed=int(seed or 0))
        return settings.check(self.limits(model))
