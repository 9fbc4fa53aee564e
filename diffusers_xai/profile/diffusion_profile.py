"""The diffusion profile: what a run of a diffusion model left behind, as labelled arrays."""

import os
from pathlib import Path

from huggingface_hub import CommitInfo

from diffusers_xai.hub.transfer import is_hub_id
from diffusers_xai.profile.jsonable import to_json
from diffusers_xai.profile.measured import MeasuredProfile
from diffusers_xai.profile.publishing import hub_profile, push_profile
from diffusers_xai.profile.storage import read_profile, write_profile


class DiffusionProfile(MeasuredProfile):
    """Labelled arrays of one run of a diffusion model, and how the run was made.

    A read-only mapping from names to `xarray.DataArray`s:

    | name                  | what                                   | dims                                           |
    |-----------------------|----------------------------------------|------------------------------------------------|
    | `samples`             | x_t, the denoiser's input at the step  | step, sample, channel, height, width           |
    | `x0`                  | the clean sample predicted at the step | step, sample, channel, height, width           |
    | `final_sample`        | the scheduler's state after the run    | sample, channel, height, width                 |
    | `activations/<layer>` | the layer's output                     | step, sample, [branch,] channel, height, width |
    | `attention_outputs`   | A_t, all attention layers in one map   | step, sample, height, width                    |
    | `measures/<name>`     | the step's input against its result    | step, sample                                   |

    Every dim comes from one vocabulary, in this order: step, sample, branch, head, channel, height, width, token,
    pixel. `step` is the 0-based index of the denoiser call; `timestep` (the scheduler's t, which may repeat) and
    `sigma` are coordinates on it. `branch` ("uncond", "cond") exists where guidance ran. `<layer>` is the layer's
    module path; wherever a layer is named, its alias in `provenance["layer_aliases"]` is understood too.

    Arrays of a loaded profile are read when they are first asked for.

    Source: thesis section 4.1.

    Args:
        arrays (`Mapping[str, xarray.DataArray]`):
            The arrays by name. Dtypes: bool, integers, float16, float32, float64.
        provenance (`Mapping[str, Any]`, *optional*):
            How the run was made, as JSON values: versions, model, scheduler, seeds, labels, what was recorded ….

    Raises:
        TypeError: If an array is no `DataArray`, or the provenance has no JSON form.
        ValueError: If an array's name, dims, dtype or coordinates do not fit, or `layer_aliases` is no mapping.
    """

    def save_pretrained(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes the profile into a new folder: `profile.json` and one safetensors file per array.

        The folder appears when it is complete. If writing fails or is interrupted, nothing half-written stays, and a
        profile that was there before stays as it was.

        Args:
            path (`str` or `os.PathLike`): The folder; missing parents are made.
            overwrite (`bool`, defaults to `False`): Replaces a profile at `path`, with everything else in its folder.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false, or what is there is not a profile.
            OSError: If writing fails, for example on a full disk.
            TypeError: If the provenance has no JSON form.
        """
        write_profile(Path(path), self, to_json(self.provenance), overwrite)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> "DiffusionProfile":
        """Opens a profile from a folder or from the Hub; each array is read when it is first asked for.

        From the Hub, the index is downloaded at once, and an array's own file when the array is asked for.

        Args:
            path (`str` or `os.PathLike`): The profile's folder, or its data set repository's id, `user/name`.
            revision (`str`, *optional*): Branch, tag or commit on the Hub; `main` if `None`. All arrays are those of
                the commit that the profile was opened at.
            token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
            cache_dir (`str` or `os.PathLike`, *optional*): Cache of downloads; `HF_HUB_CACHE` if `None`.

        Raises:
            FileNotFoundError: If there is no profile; on access, if the array's file is missing.
            HubError: If the Hub has no such repository or revision, or there is no connection.
            ValueError: If the index, or on access the array's file, is damaged, or the format version is unknown.
        """
        if not Path(path).exists() and isinstance(path, str) and is_hub_id(path):
            folder, locate = hub_profile(path, revision=revision, token=token, cache_dir=cache_dir)
            provenance, arrays = read_profile(folder, locate)
        else:
            provenance, arrays = read_profile(Path(path))
        profile = cls({}, provenance)
        profile._arrays.update(arrays)
        return profile

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload the diffusion profile",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publishes the profile as a data set repository, in one commit.

        It holds what [`save_pretrained`] writes, a card, and a table of the samples and measures that the Hub shows.
        A profile that is there is replaced.

        Args:
            repo_id (`str`): `user/name`, or a name in the user's own namespace; made if need be.
            commit_message (`str`, *optional*): Of the commit.
            private (`bool`, *optional*): Whether a new repository is private.
            token (`str` or `bool`, *optional*): The token of `hf auth login`, or of `HF_TOKEN`, if `None`.
            revision (`str`, *optional*): Branch to commit to; made if need be.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request with the commit instead.

        Returns:
            `huggingface_hub.CommitInfo`: The commit.

        Raises:
            HubError: If the Hub refuses the token or the repository, or the connection stays lost; it is unchanged.
            ValueError: If `repo_id` is no id.
        """
        return push_profile(
            self,
            repo_id,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
