"""The copy-detection network (Pizzi et al. 2022): residual trunk, GeM pooling, linear projection, unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.descriptors.resnet import ResNet
from components.descriptors.train_params import NetworkParams

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CopyNet(nn.Module):
    """uint8 images [B, H, W, 3] -> descriptors [B, dim], L2-normalised fp32. Its names are official SSCD's."""

    def __init__(self, params: NetworkParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = ResNet(params)

    def init_weights(self, generator: torch.Generator) -> None:
        """See :meth:`ResNet.init_weights`."""
        self.backbone.init_weights(generator)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()  # [B, 3, H, W], channels-last in memory
        x = normalised(x) if self.params.normalise == "imagenet" else own_scale(x)
        return F.normalize(self.backbone(x), dim=-1)


def normalised(x: Tensor) -> Tensor:
    """Levels 0 to 255 [B, 3, H, W] less ImageNet's mean, over its spread."""
    mean, std = x.new_tensor(IMAGENET_MEAN) * 255, x.new_tensor(IMAGENET_STD) * 255
    return (x - mean[:, None, None]) / std[:, None, None]


def own_scale(x: Tensor) -> Tensor:
    """Each picture to zero mean and unit spread; the 4 levels keep a flat one from becoming noise."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) / (x.std((1, 2, 3), keepdim=True) + 4.0)
