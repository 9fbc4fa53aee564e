"""How a pipeline goes to the Hub and comes back, with this package and without it."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import CommitInfo
from PIL import Image
from safetensors.torch import load_file

from diffusers_xai.hub import plain_pipeline
from diffusers_xai.hub.cards import (
    CARD_FACTS,
    EVAL_RESULTS,
    SAMPLE_GRID,
    check_facts,
    eval_results,
    model_card,
    read_facts,
)
from diffusers_xai.hub.sample_grid import sample_grid as draw_samples
from diffusers_xai.hub.standalone import one_file
from diffusers_xai.hub.transfer import check_push, push_folder


_PIPELINE_FILE, _NETWORK_FILE = "pipeline.py", "unet/diffusers_xai.py"
_OWN_NETWORK = "ConvNextUNet2DModel"
_logger = logging.getLogger(__name__)

_README = """# A pipeline of `diffusers_xai`

`pip install diffusers-xai`, and then:

```python
from diffusers_xai import XAIPipeline

pipe = XAIPipeline.from_pretrained("{folder}")
```

## With plain diffusers

{plain}
"""
_WITH_CODE = """This folder holds no code. One that `DiffusionPipeline` opens is written by
`pipe.save_pretrained(folder, with_code=True)`:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
```
"""
_OF_DIFFUSERS = """`DDPMPipeline.from_pretrained("{folder}")` opens it, for samples without a label.

"""
_HERE_ONLY = "The network's class, `{name}`, is known to `diffusers_xai` alone."


def can_carry_code(network: ModelMixin) -> bool:
    """Whether plain diffusers opens a folder with this network, once the code of `add_code` lies in it."""
    return type(network).__name__ == _OWN_NETWORK or type(network).__module__.startswith("diffusers.")


def add_code(folder: Path, network: ModelMixin) -> None:
    """Adds the Python files with which plain diffusers opens a saved pipeline."""
    shutil.copyfile(plain_pipeline.__file__, folder / _PIPELINE_FILE)
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = [Path(_PIPELINE_FILE).stem, "XAIPipeline"]
    if type(network).__name__ == _OWN_NETWORK:
        # Of a method, because the class itself says that it is of the package's top level.
        code = one_file(type(network).forward.__module__)
        (folder / _NETWORK_FILE).write_text(code, encoding="utf-8")
        index["unet"] = [Path(_NETWORK_FILE).stem, _OWN_NETWORK]
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_readme(folder: Path, network: ModelMixin) -> None:
    """Says in a folder without code how it is opened, unless it has a README."""
    if (folder / "README.md").exists():
        return
    plain = _WITH_CODE if can_carry_code(network) else _HERE_ONLY.format(name=type(network).__name__)
    if type(network).__name__ == "UNet2DModel":
        plain = _OF_DIFFUSERS.format(folder=folder.name) + plain
    (folder / "README.md").write_text(_README.format(folder=folder.name, plain=plain.strip()), encoding="utf-8")


def push_pipeline(
    pipe: DiffusionPipeline,
    repo_id: str,
    *,
    card: Mapping[str, Any] | None,
    sample_grid: Any,
    message: str,
    token: str | bool | None,
    **options: Any,
) -> CommitInfo:
    """Publishes a pipeline in one commit, see `XAIPipeline.push_to_hub`; `options` are those of [`push_folder`]."""
    facts = check_facts(dict(card)) if card is not None else facts_of_source(pipe)
    picture: Image.Image | None = None if isinstance(sample_grid, bool) else Image.open(sample_grid)
    check_push(repo_id, token)
    carries_code = can_carry_code(pipe.unet)
    with tempfile.TemporaryDirectory(prefix="diffusers-xai-push-") as temporary:
        folder = Path(temporary)
        pipe.save_pretrained(folder, with_code=carries_code)
        if sample_grid is True:
            picture = draw_samples(pipe)
        if picture is not None:
            picture.save(folder / SAMPLE_GRID)
        if facts:
            (folder / CARD_FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if results := eval_results(facts):
            (folder / EVAL_RESULTS).parent.mkdir()
            (folder / EVAL_RESULTS).write_text(results, encoding="utf-8")
        text = card_of(pipe, facts, repo_id, carries_code=carries_code, sample_grid=picture is not None)
        (folder / "README.md").write_text(text, encoding="utf-8")
        return push_folder(
            folder,
            repo_id,
            message=message,
            token=token,
            replaced=("*.safetensors", "*.bin", "*.py", SAMPLE_GRID, CARD_FACTS, EVAL_RESULTS),
            **options,
        )


def card_of(
    pipe: DiffusionPipeline,
    facts: Mapping[str, Any],
    repo_id: str | None,
    *,
    carries_code: bool = False,
    sample_grid: bool = False,
) -> str:
    """The README of a repository with this pipeline, see [`model_card`]."""
    unet = pipe.unet
    return model_card(
        facts,
        {"_class_name": type(unet).__name__, **unet.config},
        repo_id=repo_id,
        parameters=sum(parameter.numel() for parameter in unet.parameters()),
        prediction_type=pipe.scheduler.config.get("prediction_type", "epsilon"),
        carries_code=carries_code,
        sample_grid=sample_grid,
    )


def facts_of_source(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What the folder that the pipeline was loaded from says for the card, if it is still about these weights."""
    folder = Path(str(pipe.config.get("_name_or_path")))
    facts = read_facts(folder)
    if not facts:
        return {}
    stored: dict[str, torch.Tensor] = {}
    for file in (folder / "unet").glob("*.safetensors"):
        stored |= load_file(file)
    weights = pipe.unet.state_dict()
    if stored.keys() == weights.keys() and all(
        torch.equal(weight.cpu(), stored[name].to(weight.dtype)) for name, weight in weights.items()
    ):
        return facts
    _logger.warning("The weights are not those of %s: its card.json is left out; pass card=", folder)
    return {}
