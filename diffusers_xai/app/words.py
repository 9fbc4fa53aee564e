"""The tab of words: where each word of a prompt looks, what it changes, and which layer carries a prompt."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr

from diffusers_xai import plots
from diffusers_xai.analysis import interval_worth
from diffusers_xai.app import questions, texts
from diffusers_xai.app.asking import AskingTab, add_answer
from diffusers_xai.app.controls import RAW
from diffusers_xai.app.events import NO_PROGRESS, Events
from diffusers_xai.app.prompts import (
    MAPS,
    MAX_PROMPT,
    PATCHING,
    WORDS_GRADED,
    PromptModel,
    PromptQuestion,
    PromptSettings,
    WordRun,
    checked_prompt,
    checked_words,
)
from diffusers_xai.app.questions import MAX_SEEDS
from diffusers_xai.app.session import Session, readable_errors
from diffusers_xai.app.settings import MAX_GUIDANCE, MAX_SEED
from diffusers_xai.app.values import flag, number, some_of, whole
from diffusers_xai.experiments import EXPERIMENTS
from diffusers_xai.experiments.nulls import NULLS
from diffusers_xai.profile.archive import write_archive


STEPS = (10, 20, 50, 100)
QUESTIONS = {
    MAPS: "Where each word looks, step by step",
    WORDS_GRADED: EXPERIMENTS[WORDS_GRADED].title,
    PATCHING: "Which layer carries the prompt, and when",
}
COLUMNS = 9


def add_words_tab(c: SimpleNamespace) -> None:
    """The components, within a tab.

    Args:
        c (`SimpleNamespace`): Takes them.
    """
    gr.Markdown(texts.WORDS)
    c.words = gr.Dropdown(
        [(title, name) for name, title in QUESTIONS.items()], value=MAPS, label="Question", elem_id="words"
    )  # fmt: skip
    c.words_text = gr.Markdown(texts.WORD_MAPS, elem_id="words-text")
    c.words_prompt = gr.Textbox(
        texts.PROMPT, label="Prompt", info=texts.VOCABULARY, max_length=MAX_PROMPT, lines=2, elem_id="words-prompt"
    )  # fmt: skip
    c.words_words = gr.Textbox(
        label="Words or phrases, separated by commas", placeholder="each word of the prompt", max_length=MAX_PROMPT,
        elem_id="words-words",
    )  # fmt: skip
    c.words_switch = gr.Checkbox(label="Switch to another prompt during the run", elem_id="words-switch")
    c.words_other = gr.Textbox(
        texts.OTHER_PROMPT, label="The other prompt", max_length=MAX_PROMPT, lines=2, elem_id="words-other",
        visible=False,
    )  # fmt: skip
    c.words_switch_at = gr.Slider(
        0, STEPS[1] - 1, value=STEPS[1] // 2, step=1, label="Switch at step", elem_id="words-switch-at", visible=False
    )  # fmt: skip
    with gr.Row():
        c.words_steps = gr.Dropdown(list(STEPS), value=STEPS[1], label="Steps", elem_id="words-steps", min_width=90)
        c.words_guidance = gr.Slider(
            1, MAX_GUIDANCE, value=2, step=0.1, label="Guidance (1 is none)", elem_id="words-guidance", min_width=150
        )  # fmt: skip
        c.words_seeds = gr.Slider(
            2, MAX_SEEDS, value=2, step=1, label="Seeds, from the noise seed on", elem_id="words-seeds",
            min_width=150, visible=False,
        )  # fmt: skip
    add_answer(c, "words", "Run", texts.EMPTY_WORDS)


class WordsTab(AskingTab):
    """The handlers of the tab.

    Args:
        events (`Events`): How runs are made.
        model (`PromptModel`): Whose words are asked about.
    """

    def __init__(self, events: Events, model: PromptModel):
        super().__init__(events, "words")
        self.model = model

    def describe(self, name: Any, switch: Any, shown: Any) -> tuple[Any, ...]:
        """What a question says, which controls it has, and what is said of the answer below."""
        (name,) = some_of([name], "Question", QUESTIONS, 1)
        is_maps = name == MAPS
        switches = is_maps and flag(switch, "Switch")
        return (
            texts.WORD_MAPS if is_maps else questions.words(EXPERIMENTS[name], of_drawings=True),
            gr.update(visible=name != PATCHING),
            gr.update(visible=is_maps),
            gr.update(visible=switches or name == PATCHING),
            gr.update(visible=switches),
            gr.update(visible=not is_maps),
            self.standing(shown, QUESTIONS[name], texts.EMPTY_WORDS),
        )

    def steps_changed(self, steps: Any, at: Any) -> Any:
        """The range of the switch's step; it stays within."""
        steps = whole(steps, "Steps", 1, STEPS[-1])
        return gr.update(maximum=steps - 1, value=min(whole(at, "Switch at step", 0, STEPS[-1]), steps - 1))

    def asked(self, session: Session, *values: Any) -> tuple[PromptQuestion, PromptModel, PromptSettings]:
        """What is asked: the question, of the model, with which settings."""
        name, prompt, words, switch, other, at, steps, guidance, seeds, seed = values
        (name,) = some_of([name], "Question", QUESTIONS, 1)
        prompt = self.model.check(checked_prompt(prompt, "Prompt"), "Prompt")
        steps = whole(steps, "Steps", 1, STEPS[-1])
        switches = name == MAPS and flag(switch, "Switch")
        settings = PromptSettings(
            prompt=prompt,
            words=() if name == PATCHING else checked_words(words, prompt),
            seed=whole(seed, "Noise seed", 0, MAX_SEED - MAX_SEEDS - 1),
            steps=steps,
            guidance=number(guidance, "Guidance", 1, MAX_GUIDANCE),
            other=self._other(other) if switches or name == PATCHING else None,
            switch_at=whole(at, "Switch at step", 0, steps - 1) if switches else None,
        )
        return PromptQuestion(name, 1 if name == MAPS else whole(seeds, "Seeds", 2, MAX_SEEDS)), self.model, settings

    def _other(self, prompt: Any) -> str:
        return self.model.check(checked_prompt(prompt, "The other prompt"), "The other prompt")

    def word_maps(
        self, request: gr.Request, session: Session, run: Any, progress: gr.Progress = NO_PROGRESS, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Runs it; streams how far it is, and ends with figures, table and file."""
        yield from self.run(request, session, run, progress, *values)

    def shown(self, session: Session, task: Any, model: Any, settings: Any, result: Any) -> dict[Any, Any]:
        """The result's figures, and what it is of."""
        made = f"{settings.steps} steps; guidance {settings.guidance:g}; model {model.name}"
        title, prompt = QUESTIONS[task.name], f"**{settings.prompt}**"
        if isinstance(result, WordRun):
            profile, switched = result.profile, result.switched
            if switched is None:
                images = plots.process_strip(profile, "images", COLUMNS)
            else:
                images = plots.run_pair(profile, switched, COLUMNS, name="images")
                prompt += f", from step {settings.switch_at} on (“changed”) **{settings.other}**"
            return self.answer(
                session,
                f"{title}; {prompt}; seed {settings.seed}; {made}.",
                plots.word_maps(profile, count=COLUMNS),
                images,
                write_archive(profile, session.folder / "words.zip"),
            )
        if settings.other is not None:
            prompt += f", patched from **{settings.other}**"
        seeds = f"seeds {settings.seed} to {settings.seed + task.seeds - 1}"
        control = NULLS[questions.control_of(EXPERIMENTS[task.name])]
        text = f"{title}; {prompt}; {seeds}; {made}; control: {control}. {interval_worth(task.seeds)}".rstrip()
        return self.answer_of(session, result, text)

    def connect(self) -> None:
        """Ties the handlers to the components."""
        c, safe = self.c, readable_errors
        described = [
            c.words_text, c.words_words, c.words_switch, c.words_other, c.words_switch_at, c.words_seeds,
            c.words_status,
        ]  # fmt: skip
        for control in (c.words, c.words_switch):
            control.input(safe(self.describe), [c.words, c.words_switch, c.words_shown], described, **RAW)
        c.words_steps.input(
            safe(self.steps_changed), [c.words_steps, c.words_switch_at], c.words_switch_at, **RAW
        )  # fmt: skip
        self.connect_buttons(
            self.word_maps,
            [
                c.words, c.words_prompt, c.words_words, c.words_switch, c.words_other, c.words_switch_at,
                c.words_steps, c.words_guidance, c.words_seeds, c.seed,
            ],
        )  # fmt: skip
