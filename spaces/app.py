"""What a Space starts: the interface of the package `diffusers_xai`, which lies beside this file."""

import os


if "SPACES_ZERO_GPU" in os.environ:
    import spaces  # noqa: F401  (before torch, which it patches)

from diffusers_xai.app.server import serve  # noqa: E402


if __name__ == "__main__":
    serve()
