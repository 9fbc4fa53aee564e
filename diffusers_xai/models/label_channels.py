"""Labels as channels of the image."""

import torch
from torch import nn


CLASS_ENCODINGS = ("integer", "scaled", "bits")


class LabelChannels(nn.Module):
    """Writes a label into constant image channels (thesis section 4.2.2, listing C.2).

    | `encoding`  | channels | value of label `y`                          | value of the null label |
    |-------------|----------|---------------------------------------------|-------------------------|
    | `"integer"` | 1        | `y`                                         | -1                      |
    | `"scaled"`  | 1        | `y / (num_classes - 1)`                     | -1                      |
    | `"bits"`    | n        | the bits of `y` as -1/+1, most significant first | 0                  |
    """

    def __init__(self, num_classes: int, encoding: str, null_label: int):
        super().__init__()
        self.num_classes = num_classes
        self.encoding = encoding
        self.null_label = null_label
        self.num_channels = (num_classes - 1).bit_length() if encoding == "bits" else 1

    def forward(self, class_labels: torch.Tensor, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """`class_labels` (B,) integers -> (B, num_channels, height, width) of `dtype`."""
        is_null = (class_labels == self.null_label)[:, None]
        if self.encoding == "bits":
            shifts = torch.arange(self.num_channels - 1, -1, -1, device=class_labels.device)
            values = (2 * ((class_labels[:, None] >> shifts) & 1) - 1).to(dtype).masked_fill(is_null, 0.0)
        else:
            values = class_labels[:, None].to(dtype)
            if self.encoding == "scaled":
                values = values / (self.num_classes - 1)
            values = values.masked_fill(is_null, -1.0)
        return values[:, :, None, None].expand(-1, -1, height, width)
