"""The app on a port, with few steps: `python serve.py PORT`."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "spaces"))

import app  # noqa: E402


if __name__ == "__main__":
    limits = app.Limits(max_mask_pixels=64)
    demo = app.build(app.load_model(), limits, steps=25, every=5)
    demo.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), **app.launch_options(limits))
