"""Settings that torch and the Hub's client read when they are first imported."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads would only wait for each other
