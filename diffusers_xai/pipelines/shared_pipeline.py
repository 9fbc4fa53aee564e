"""How a pipeline is saved and published: for this package, and for plain diffusers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo

from diffusers_xai.hub.pipelines import add_code, add_readme, can_carry_code, push_pipeline
from diffusers_xai.hub.registry import installed_classes


class SharedPipeline(DiffusionPipeline):
    """A pipeline of a `unet` and a `scheduler` that goes to folders and to the Hub; see [`XAIPipeline`]."""

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
                the folder, by `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`. Without them its
                README.md says how it is opened.

        Raises:
            ValueError: if code is asked for that would not help: the network's class is of another package.
        """
        if with_code and not can_carry_code(self.unet):
            raise ValueError(
                f"Expected a network of diffusers or a ConvNextUNet2DModel for `with_code`, got"
                f" {type(self.unet).__name__}: plain diffusers could not open the folder."
            )
        super().save_pretrained(str(save_directory), *args, **kwargs)
        (add_code if with_code else add_readme)(Path(save_directory), self.unet)

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
        return push_pipeline(
            self,
            repo_id,
            card=card,
            sample_grid=sample_grid,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
