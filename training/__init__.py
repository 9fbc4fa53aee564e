"""Trains the label-conditioned ConvNeXt U-Net; `train.py` is the command."""
