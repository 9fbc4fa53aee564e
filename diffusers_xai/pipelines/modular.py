"""`RecordProfile`: recording as a block of Modular Diffusers."""

import torch
from diffusers import ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, PipelineState

from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.record import record


_INPUTS = {
    "record": (list, "What to record, a sequence of `RecordSpec`; nothing if None."),
    "edits": (list, "What to change while sampling, a sequence of `EditSpec`, or one sequence of them per image."),
    "profile_dir": (str, "A new folder that the profile is written to while sampling."),
    "max_bytes": (int, "Refuses a profile that would be larger, before the first step."),
}


class RecordProfile(SequentialPipelineBlocks):
    """Puts a recording around the blocks that denoise; the pipeline gets `record=` and `edits=`, and a `profile`.

    ```py
    blocks = ModularPipelineBlocks.from_pretrained(repo_id)
    blocks.sub_blocks["denoise"] = RecordProfile(blocks.sub_blocks["denoise"])
    pipe = blocks.init_pipeline(repo_id)
    pipe.load_components()
    state = pipe(prompt="a red fox", record=[Samples(every=10)])
    state.get("profile")
    ```

    Args:
        block ([`~diffusers.ModularPipelineBlocks`]): The block with the loop over the steps, or one that contains it.
            Its inputs and outputs stay as they are.
    """

    def __init__(self, block: ModularPipelineBlocks):
        self.block_names, self.block_classes = ["recorded"], [block]
        super().__init__()

    @property
    def description(self) -> str:
        """What the block does, for the pipeline's documentation."""
        (block,) = self.sub_blocks.values()
        return f"Records how the image forms while {type(block).__name__} runs, as a `DiffusionProfile`."

    @property
    def inputs(self) -> list[InputParam]:
        """Those of the block, and what to record and to change."""
        own = [InputParam(name, type_hint=kind, description=text) for name, (kind, text) in _INPUTS.items()]
        return [*super().inputs, *own]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Those of the block, and the profile."""
        profile = OutputParam("profile", type_hint=DiffusionProfile, description="What was recorded; None without.")
        return [*super().intermediate_outputs, profile]

    @torch.no_grad()
    def __call__(self, pipeline: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        """Runs the block, recorded.

        Raises:
            TypeError, KeyError, ValueError, RuntimeError, OSError: see [`record`].
        """
        specs, edits = state.get("record"), state.get("edits") or ()
        options = {name: state.get(name) for name in ("profile_dir", "max_bytes")}
        if specs is None and any(value is not None for value in options.values()):
            raise ValueError("Expected `record` beside `profile_dir` and `max_bytes`, got None.")
        state.set("profile", None)
        if specs is None and not edits:
            return super().__call__(pipeline, state)
        with record(pipeline, specs or (), edits, **options) as recording:
            pipeline, state = super().__call__(pipeline, state)
        if specs is not None:
            state.set("profile", recording.profile)
        return pipeline, state
