"""A small network of SSCD's kind (Pizzi et al. 2022): residual trunk, GeM pooling, linear projection, unit length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.dedup.train_params import NetworkParams


class CopyNet(nn.Module):
    """uint8 images [B, side, side, 3] -> descriptors [B, dim], L2-normalised fp32."""

    def __init__(self, params: NetworkParams) -> None:
        super().__init__()
        self.params = params
        w = params.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(_Block(w, 2 * w), _Block(2 * w, 4 * w), _Block(4 * w, 8 * w))
        self.projection = nn.Linear(8 * w, params.dim)

    def init_weights(self, generator: torch.Generator) -> None:
        """He-normal convolutions; the last norm of each residual branch starts at zero (SSCD needs it to train)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _Block):
                nn.init.zeros_(module.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()  # [B, 3, S, S], channels-last in memory
        # Each image to its own mean and spread: brightness and contrast are no part of what makes a copy.
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) / (x.std((1, 2, 3), keepdim=True) + 4.0)
        x = self.stages(self.stem(x))
        pooled = x.clamp(min=1e-6).pow(self.params.gem).mean((2, 3)).pow(1 / self.params.gem)
        return F.normalize(self.projection(pooled), dim=-1)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + branch)
