"""Settings that torch, tqdm and the Hub's client read when they are first imported."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: threads would only wait for each other
os.environ["TQDM_DISABLE"] = "1"  # of bars that do not say otherwise, such as those of pipelines
