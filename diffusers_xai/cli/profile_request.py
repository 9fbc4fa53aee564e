"""What `diffusers-xai profile` is asked for."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusers_xai.checkpoints import demo_checkpoint, name_of_embedded, part_of_face
from diffusers_xai.cli.base import PROGRAM, CommandError
from diffusers_xai.cli.options import spoken


@dataclass(frozen=True)
class ProfileRequest:
    """One image to sample, what to record of it, and where to write that.

    Args:
        out (`Path`): The folder to write.
        overwrite (`bool`): Replace the profile that is there, once the new one is complete.
        checkpoint (`str`): Folder or Hub id of the pipeline.
        revision (`str`, *optional*): Branch, tag or commit of a checkpoint on the Hub.
        scheduler (`str`, *optional*): A key of `SCHEDULERS`; the checkpoint's own if `None`.
        device (`str`): Where to compute.
        threads (`int`, *optional*): CPU threads; one for a model inside the package, else all, if `None`.
        prompt (`str`, *optional*): For a pipeline that takes prompts, which needs one.
        negative_prompt (`str`, *optional*): What its guidance leads away from.
        height, width (`int`, *optional*): Of its image in pixels; the pipeline's own if `None`.
        words (`tuple[str]`): Words of the prompt to make maps of; those that may stand for something if empty.
        dtype (`str`, *optional*): Of a pipeline of prompts: `"float16"` or another; `"float32"` if `None`.
        label (`str`, *optional*): Bits, attributes or an integer; a default of the checkpoint if `None`.
        seed (`int`): Of the noise, in `0 .. 2**63 - 1`.
        steps (`int`, *optional*): Denoising steps; if `None`, as many as DDPM was trained with, else 50, or what a
            pipeline of prompts takes itself.
        guidance_scale (`float`, *optional*): Classifier-free guidance; 1, none, for labels, and what a pipeline of
            prompts takes itself if `None`.
        layers (`tuple[str]`): Globs of layers to record; attention layers and blocks if empty.
        every (`int`, *optional*): Record every n-th step; so that the profile stays near 60 MB if `None`.
        mask (`Path`, *optional*): Image of the region of interest, or else
        box (`tuple[int]`, *optional*): its left, top, right and bottom in pixels. Without both, the eyes for a model
            of photographed faces inside the package, else the whole image.
        gradients (`bool`): Whether gradients are recorded.
        ablate (`tuple`): `(layer, channels)` to set to zero in a second run.
        switch (`tuple`): `(step, label or prompt)` to switch to in a second run.
    """

    out: Path = Path("profile")
    overwrite: bool = False
    checkpoint: str = demo_checkpoint()
    revision: str | None = None
    scheduler: str | None = None
    device: str = "cpu"
    threads: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    words: tuple[str, ...] = ()
    dtype: str | None = None
    label: str | None = None
    seed: int = 7
    steps: int | None = None
    guidance_scale: float | None = None
    layers: tuple[str, ...] = ()
    every: int | None = None
    mask: Path | None = None
    box: tuple[int, int, int, int] | None = None
    gradients: bool = True
    ablate: tuple[tuple[str, tuple[int | str, ...]], ...] = ()
    switch: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        """Checks what is known without the checkpoint.

        Raises:
            CommandError: for values that contradict each other.
        """
        check_revision(self.checkpoint, self.revision)
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= left < right and 0 <= top < bottom):
                text = " ".join(map(str, self.box))
                raise CommandError(f"--box {text}: expected 0 <= left < right and 0 <= top < bottom")
        steps = [step for step, _ in self.switch]
        if len(set(steps)) < len(steps):
            raise CommandError(f"--switch: expected each step once, got {', '.join(map(str, steps))}")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "ProfileRequest":
        """The request of parsed arguments."""
        given = ((field.name, getattr(args, field.name)) for field in fields(cls))
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given}
        return cls(**values)

    def region_box(self, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """The box in images of this height and width, or the eyes where nothing was asked for and gradients are."""
        if self.box is None and self.mask is None and self.gradients:
            return part_of_face("eyes", self.checkpoint, size)
        return self.box

    def command(
        self, label: str | None, steps: int, every: int, guidance: float | None, box: tuple[int, int, int, int] | None
    ) -> list[str]:
        """The command line with every default written out, so that it means the same in later versions."""
        values = {
            "prompt": self.prompt, "negative-prompt": self.negative_prompt, "height": self.height, "width": self.width,
            "label": label, "seed": self.seed, "steps": steps, "guidance-scale": guidance, "every": every,
            "scheduler": self.scheduler, "checkpoint": spoken(self.checkpoint), "revision": self.revision,
            "mask": self.mask, "dtype": self.dtype,
        }  # fmt: skip
        command = [PROGRAM, "profile"]
        for name, value in values.items():
            text = str(value)  # a prompt may begin like an option
            command += [] if value is None else [f"--{name}={text}"] if text[:1] == "-" else [f"--{name}", text]
        if box is not None:
            command += ["--box", *map(str, box)]
        if not self.gradients:
            command.append("--no-gradients")
        for layer, channels in self.ablate:
            command += ["--ablate", f"{layer}:{','.join(map(str, channels))}"]
        for step, switched in self.switch:
            command += ["--switch", f"{step}:{switched}"]
        if self.layers:
            command += ["--layers", *self.layers]
        if self.words:
            command += ["--words", *self.words]
        return [*command, "--out", self.out.name]


def check_revision(checkpoint: str, revision: str | None) -> None:
    """Raises if `revision` belongs to nothing."""
    if revision is not None and Path(checkpoint).is_dir():
        name = name_of_embedded(checkpoint)
        got = f"the folder {checkpoint}" if name is None else f"{name} inside the package"
        raise CommandError(f"--revision {revision}: expected a --checkpoint on the Hub beside it, got {got}")
