"""How a pipeline goes to the Hub and comes back, with this package and without it."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from huggingface_hub import CommitInfo
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from diffusers_xai import hub, models
from diffusers_xai.hub.cards import SAMPLE_GRID, check_facts, model_card, read_facts
from diffusers_xai.hub.registry import installed_classes
from diffusers_xai.hub.transfer import check_push, push_folder
from diffusers_xai.models import ClosedFormDenoiser, ConvNextUNet2DModel
from diffusers_xai.taps.probe import shortest_time


_GRID_LABELS, _GRID_NOISES, _GRID_STEPS, _GRID_SECONDS = 16, 4, 50, 90.0
_CELL, _CAPTION = 64, 18  # pixels
_PIPELINE_FILE, _NETWORK_FILE = "pipeline.py", "unet/diffusers_xai.py"
_logger = logging.getLogger(__name__)


class PublishedPipeline(DiffusionPipeline):
    """What [`XAIPipeline`] does about the Hub."""

    unet: Any
    scheduler: Any

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Where diffusers reads `model_index.json`: our repositories also name classes in files of their own there."""
        return installed_classes(super()._dict_from_json_file(*args, **kwargs))

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, with_code: bool = False, **kwargs: Any
    ) -> None:
        """Saves the pipeline, see [`~diffusers.DiffusionPipeline.save_pretrained`].

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            *args: Passed on.
            **kwargs: Passed on.
            with_code (`bool`, *optional*, defaults to `False`): Add the Python files with which plain diffusers opens
                the folder, by `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.
        """
        super().save_pretrained(str(save_directory), *args, **kwargs)
        if with_code:
            self._add_code(Path(save_directory))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Mapping[str, Any] | None = None,
        sample_grid: bool | str | os.PathLike = True,
        commit_message: str = "Upload the pipeline",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publishes weights, configurations, scheduler, code for plain diffusers and a model card, in one commit.

        The repository serves `XAIPipeline.from_pretrained(repo_id)`, which runs none of its code, and
        `DiffusionPipeline.from_pretrained(repo_id, trust_remote_code=True)` where this package is not installed.

        Args:
            repo_id (`str`): `user/name`, or a name in the user's own namespace; made if need be.
            card (`Mapping`, *optional*): Facts for the model card, such as `{"data": "…"}`; `model_card.md` lists
                them. Those of the folder that the pipeline was loaded from are taken if `None`, unless the
                weights are no longer the folder's.
            sample_grid (`bool` or path, *optional*, defaults to `True`): A picture for the card; `True` samples one.
            commit_message (`str`, *optional*): Of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
            revision (`str`, *optional*): Branch to commit to; made if need be.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request with the commit instead.

        Returns:
            `huggingface_hub.CommitInfo`: The commit.

        Raises:
            HubError: If the Hub refuses the token or the repository, or the connection stays lost; it is unchanged.
            ValueError: If `repo_id` is no id, or a fact of the card is unknown.
            OSError: If the picture cannot be read.
        """
        facts = check_facts(dict(card)) if card is not None else self._facts_of_source()
        picture: Image.Image | None = None if isinstance(sample_grid, bool) else Image.open(sample_grid)
        check_push(repo_id, token)
        carries_code = not isinstance(self.unet, ClosedFormDenoiser)  # which are nothing without this package
        with tempfile.TemporaryDirectory(prefix="diffusers-xai-push-") as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, with_code=carries_code)
            if sample_grid is True:
                picture = self.sample_grid()
            if picture is not None:
                picture.save(folder / SAMPLE_GRID)
            if facts:
                (folder / hub.cards.CARD_FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            text = self.model_card(facts, repo_id, carries_code=carries_code, sample_grid=picture is not None)
            (folder / "README.md").write_text(text, encoding="utf-8")
            return push_folder(
                folder,
                repo_id,
                message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                replaced=("*.safetensors", "*.bin", "*.py", SAMPLE_GRID, hub.cards.CARD_FACTS),
            )

    def model_card(
        self, facts: Mapping[str, Any], repo_id: str | None, *, carries_code: bool = False, sample_grid: bool = False
    ) -> str:
        """The README of a repository with this pipeline, see [`push_to_hub`]; `facts` as its `card`.

        `repo_id` is `None` for the checkpoint inside the package.
        """
        unet = self.unet
        return model_card(
            facts,
            {"_class_name": type(unet).__name__, **unet.config},
            repo_id=repo_id,
            parameters=sum(parameter.numel() for parameter in unet.parameters()),
            prediction_type=self.scheduler.config.get("prediction_type", "epsilon"),
            carries_code=carries_code,
            sample_grid=sample_grid,
        )

    @torch.no_grad()
    def sample_grid(self, seed: int = 0) -> Image.Image:
        """A picture of samples (DDIM, 50 steps): a column for each of 16 labels, a row for each of four noises.

        Fewer where that would take more than about a minute and a half: then rows are left out, and at last labels.
        """
        config = self.unet.config
        count, attributes = config.get("num_class_embeds"), config.get("class_attributes")
        labels = [*range(min(count, _GRID_LABELS))] if count is not None else [None] * 4
        # All of a row's images are drawn in one batch, and at least one row is.
        most = max(1, int(_GRID_SECONDS / (_GRID_STEPS * self._seconds_per_forward())))
        columns = min(len(labels), most)
        labels = [labels[i * len(labels) // columns] for i in range(columns)]
        rows: list[list[Image.Image]] = []
        scheduler, start = self.scheduler, time.perf_counter()
        self.scheduler = DDIMScheduler.from_config(scheduler.config)
        try:
            while len(rows) < _GRID_NOISES:
                # The same noise under every label, and other noise in every column where there are no labels.
                first = seed + len(rows) * (1 if count is not None else columns)
                seeds = [first + (0 if count is not None else column) for column in range(columns)]
                images = self(
                    class_labels=labels if count is not None else None,
                    batch_size=columns,
                    num_inference_steps=min(_GRID_STEPS, self.scheduler.config.num_train_timesteps),
                    generator=[torch.Generator().manual_seed(s) for s in seeds],
                ).images
                rows.append(images)
                if (time.perf_counter() - start) * (len(rows) + 1) / len(rows) > _GRID_SECONDS:
                    break
        finally:
            self.scheduler = scheduler
        digits = len(attributes) if attributes else 0
        return _captioned(
            rows, ["" if label is None else format(label, f"0{digits}b" if digits else "d") for label in labels]
        )

    def _seconds_per_forward(self) -> float:
        config, device = self.unet.config, self._execution_device
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        sample = torch.zeros(1, config.in_channels, height, width, device=device, dtype=self.unet.dtype)
        label = None if config.get("num_class_embeds") is None else torch.zeros(1, dtype=torch.long, device=device)
        return shortest_time(lambda: self.unet(sample, 1, class_labels=label), device)

    def _facts_of_source(self) -> dict[str, Any]:
        """What the folder that the pipeline was loaded from says for the card, if it is still about these weights."""
        folder = Path(str(self.config.get("_name_or_path")))
        facts = read_facts(folder)
        if not facts:
            return {}
        stored: dict[str, torch.Tensor] = {}
        for file in (folder / "unet").glob("*.safetensors"):
            stored |= load_file(file)
        weights = self.unet.state_dict()
        if stored.keys() == weights.keys() and all(
            torch.equal(weight.cpu(), stored[name].to(weight.dtype)) for name, weight in weights.items()
        ):
            return facts
        _logger.warning("The weights are not those of %s: its card.json is left out; pass card=", folder)
        return {}

    def _add_code(self, folder: Path) -> None:
        own = isinstance(self.unet, ConvNextUNet2DModel)
        shutil.copyfile(Path(hub.__file__).with_name("plain_pipeline.py"), folder / _PIPELINE_FILE)
        if own:
            shutil.copyfile(Path(models.__file__).with_name("unet_convnext_2d.py"), folder / _NETWORK_FILE)
        index_file = folder / "model_index.json"
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index["_class_name"] = [Path(_PIPELINE_FILE).stem, "XAIPipeline"]
        if own:
            index["unet"] = [Path(_NETWORK_FILE).stem, type(self.unet).__name__]
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _captioned(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """The rows under captions of their columns; small images enlarged by a whole factor, pixel by pixel."""
    width, height = rows[0][0].size
    factor = max(1, _CELL // min(width, height))
    width, height = width * factor, height * factor
    grid = Image.new("RGB", (width * len(captions), _CAPTION + height * len(rows)), "white")
    draw = ImageDraw.Draw(grid)
    for i, caption in enumerate(captions):
        centre = ((i + 0.5) * width, _CAPTION / 2)
        draw.text(centre, caption, fill="black", anchor="mm", font=ImageFont.load_default(12))
        for j, row in enumerate(rows):
            grid.paste(row[i].resize((width, height), Image.Resampling.NEAREST), (i * width, _CAPTION + j * height))
    return grid
