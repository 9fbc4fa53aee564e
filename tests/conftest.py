"""Keeps the tests off the network: the Hub's client reads this when it is first imported."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
