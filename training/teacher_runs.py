"""A teacher's own runs: all that a student is taught with, no photographs."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments.few_steps import few_step_scheduler
from diffusers_xai.hub.cards import read_facts
from diffusers_xai.labels import label_from_bits
from diffusers_xai.profile.atomic import replacing
from training.batches import step_generator


RUNS_AT_ONCE = 64


def label_shares(teacher: XAIPipeline, folder: Path) -> torch.Tensor | None:
    """How often each label is drawn, float64: as in the teacher's training where its card tells, else alike.

    `None` of a teacher without labels.
    """
    count = teacher.unet.config.num_class_embeds
    if count is None:
        return None
    shares = torch.ones(count, dtype=torch.float64)
    counts = read_facts(folder).get("label_counts") if folder.is_dir() else None
    if counts:
        shares.zero_()
        for bits, _, images in counts:
            shares[label_from_bits(bits)] = images
    return shares / shares.sum()


@torch.no_grad()
def teacher_states(
    teacher: XAIPipeline, labels: list[int] | None, noise: torch.Tensor, steps: int, every: int
) -> torch.Tensor:
    """States of DDIM runs, every so many steps: `(run, 1 + steps / every, channel, height, width)`, noise to image.

    Args:
        teacher ([`XAIPipeline`]): The teacher.
        labels (`list[int]`, *optional*): Of each run; the null label is allowed.
        noise (`torch.Tensor` of shape `(run, channel, height, width)`): What they begin with.
        steps (`int`): Steps of a run.
        every (`int`): A divisor of it.
    """
    pipe = XAIPipeline(teacher.unet, few_step_scheduler(teacher.scheduler))
    pipe.set_progress_bar_config(disable=True)
    kept = [noise]

    def keep(pipe: XAIPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if (step + 1) % every == 0:
            kept.append(tensors["sample"].clone())
        return {}

    pipe(
        class_labels=labels, batch_size=len(noise), num_inference_steps=steps, sample=noise, callback_on_step_end=keep,
        output_type="pt",
    )  # fmt: skip
    return torch.stack(kept, dim=1)


class TeacherRuns:
    """Runs on disk, made part by part, so that a killed run of the program loses one part at most.

    Args:
        folder (`Path`): Where the parts lie.
        teacher ([`XAIPipeline`]): Makes what is missing.
        shares (`torch.Tensor`, *optional*): How often each label is drawn.
        steps (`int`): The teacher's steps, and
        every (`int`): how many of them are one of the student's.
        seed (`int`): Of labels and noise.
        label_dropout (`float`): Share of runs without a label, where labels are drawn.
    """

    def __init__(
        self,
        folder: Path,
        teacher: XAIPipeline,
        shares: torch.Tensor | None,
        steps: int,
        every: int,
        seed: int,
        label_dropout: float = 0.1,
    ):
        self.folder, self.teacher, self.shares = folder, teacher, shares
        self.steps, self.every, self.seed, self.label_dropout = steps, every, seed, label_dropout

    def draw(self, part: int, count: int) -> tuple[list[int] | None, torch.Tensor]:
        """Labels and noise of the runs of a part."""
        generator = step_generator(self.seed, 0, part)
        noise = torch.randn(count, *self.teacher.sample_shape, generator=generator)
        if self.shares is None:
            return None, noise
        labels = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        dropped = torch.rand(count, generator=generator) < self.label_dropout
        return labels.masked_fill(dropped, self.teacher.unet.config.null_class_label).tolist(), noise

    def part(self, number: int, count: int = RUNS_AT_ONCE) -> dict[str, torch.Tensor]:
        """`states` and `labels` of a part, read where it is there, else made and written."""
        path = self.folder / f"runs-{number:05d}.safetensors"
        if not path.is_file():
            labels, noise = self.draw(number, count)
            states = teacher_states(self.teacher, labels, noise.to(self.teacher.device), self.steps, self.every)
            tensors = {"states": states.cpu().contiguous()}
            if labels is not None:
                tensors["labels"] = torch.tensor(labels)
            with replacing(path) as new:
                save_file(tensors, new)
        return load_file(path)
