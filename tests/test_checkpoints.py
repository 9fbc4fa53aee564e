"""The trained models inside the package."""

from pathlib import Path

import pytest

from diffusers_xai import demo_checkpoint


def test_a_checkpoint_is_found_by_its_name_and_another_name_is_answered_with_those_there_are():
    assert Path(demo_checkpoint()) == Path(demo_checkpoint("lfw-32"))
    assert (Path(demo_checkpoint()) / "model_index.json").is_file()
    for name in ("lfw-33", "", "..", "__pycache__"):
        with pytest.raises(
            ValueError, match=r"Expected the name of an embedded checkpoint, got .*; available: .*lfw-32"
        ):
            demo_checkpoint(name)
