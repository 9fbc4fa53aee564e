"""The trained model inside the package."""

from pathlib import Path


def demo_checkpoint() -> str:
    """Path of the embedded checkpoint: a small ConvNeXt U-Net of faces at 32 px, for `XAIPipeline.from_pretrained`.

    Its data, limits and licence ("for research") are in the folder's `README.md`.
    """
    return str(Path(__file__).parent / "lfw-32")
