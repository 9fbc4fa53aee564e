"""What an entry of the zoo is, and the arguments that many of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.zoo.parts import embeddings


@dataclass(frozen=True)
class Entry:
    """A pipeline of the zoo, and by hand, from its class's source, what the package must find out by itself.

    Attributes:
        make: Makes the pipeline.
        call: Arguments of its call, without steps, generator and output type.
        layer: A block or layer whose main output is compared.
        grid: Where that layer's image tokens lie, (height, width), (frame, height, width) or (frame,); `None` for
            convolutions.
        branches: The guidance branches, in the order in which they are computed.
        position: Which tensor of the layer's output is the image's.
        first: Index of the first image token in that tensor.
        attention: A layer of softmax attention; `None` if there is none.
        queries: Which of its queries are image.
        keys: Which of its keys are text; all of them in cross- and self-attention.
        differential: Whether attention is the difference of two.
        crosses: Ends of the paths of all layers in which the image looks at the text; those of U-Nets by default.
        words: Words of the prompt, and which tokens they are; of given embeddings, the strings of `tokens=[…]`.
        predicts: What the network predicts: `"epsilon"`, `"v"`, `"sample"`, `"flow"` or, with the other sign,
            `"-flow"`; `"inverted"` where the scheduler's sigmas are shares of the image; `None` where no noise level
            is told.
        noisy: Axis of the network's input along which other channels or tokens are, and where the state begins there.
        doubled: Whether the scheduler's state holds every image once per branch.
        frames_first: Whether the state is (row, frame, channel, …).
        channels_last: Whether the state is (row, frame, height, width, channel).
        frames_in_rows: Whether the scheduler gets the frames of a video as rows.
        text_only: Beginnings of the paths of layers that see the text alone.
        output: The output type in which the result is compared.
        steps: Number of steps.
    """

    make: Callable[[], Any]
    call: dict[str, Any]
    layer: str
    grid: tuple[int, ...] | None = None
    branches: tuple[str, ...] = ("uncond", "cond")
    position: int = 0
    first: int = 0
    attention: str | None = None
    queries: tuple[int, int | None] = (0, None)
    keys: tuple[int, int | None] = (0, None)
    differential: bool = False
    crosses: tuple[str, ...] = ("attn2",)
    words: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    predicts: str | None = "epsilon"
    noisy: tuple[int, int] = (1, 0)
    doubled: bool = False
    frames_first: bool = False
    channels_last: bool = False
    frames_in_rows: bool = False
    text_only: tuple[str, ...] = ()
    output: str = "latent"
    steps: int = 2

    @property
    def asked(self) -> dict[str, Any]:
        """Arguments of `WordMaps`: the words that are in every prompt, or in given tokens."""
        prompts = np.atleast_1d(self.call.get("prompt", "w1"))
        words = [word for word in self.words if all(word in prompt for prompt in prompts)]
        return {"words": words, "tokens": None if "prompt" in self.call else [f"w{i}" for i in range(4)]}


PROMPT = {"prompt": ["a red fox", "a cat"]}
ONE = {"prompt": "a red fox"}
# The tokens of "a red fox": the tokenizers of the zoo spell with letters.
CLIP_WORDS = {"a": (1, 2), "fox": (5, 8)}
T5_WORDS = {"a": (0, 1), "fox": (4, 7)}
GIVEN = {"w1": (1, 2)}
PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
HOLE = (PICTURE[:, :1] > 0.5).float()
T16 = {"max_sequence_length": 16}
MID = "mid_block.attentions.0"
EMBEDS = {"prompt_embeds": embeddings(1, 16, 32), "negative_prompt_embeds": embeddings(1, 16, 32, seed=2)}
EMBEDS16 = {"prompt_embeds": embeddings(1, 16, 16), "negative_prompt_embeds": embeddings(1, 16, 16, seed=2)}
ONES = torch.ones(1, 16, dtype=torch.long)
MASKS = {"prompt_attention_mask": ONES, "negative_prompt_attention_mask": ONES}
SIZE = {"height": 16, "width": 16}
COND = ("cond",)
CU = ("cond", "uncond")
