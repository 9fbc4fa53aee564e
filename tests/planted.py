"""Networks in which it is known what passes where."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


class _OwnChannel(nn.Module):
    """Looks at one channel of the sample and predicts the noise of that one."""

    def __init__(self, channel):
        super().__init__()
        self.channel = channel

    def forward(self, sample, label=None):
        output = torch.zeros_like(sample)
        output[:, self.channel] = 0.5 * sample[:, self.channel]
        if label is not None:
            output[:, self.channel] += label[:, None, None]
        return output


class OneBlockHearsTheLabel(ModelMixin, ConfigMixin):
    """Three blocks, each of a channel of its own, whose outputs are added; the middle one alone hears the label."""

    @register_to_config
    def __init__(self, sample_size=4, in_channels=3, num_class_embeds=2, null_class_label=-1, class_attributes=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList(_OwnChannel(channel) for channel in range(3))

    def forward(self, sample, timestep, class_labels=None):
        label = class_labels.to(sample) * self.scale
        hidden = [block(sample, label if i == 1 else None) for i, block in enumerate(self.blocks)]
        return UNet2DOutput(sample=sum(hidden))
