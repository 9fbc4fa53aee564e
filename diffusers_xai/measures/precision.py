"""The precision that measures compute in."""

import torch


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as float64, on its device where that has float64 and on the CPU otherwise (Apple's MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
