"""Residual networks (He et al. 2016; ResNeXt: Xie et al. 2017), with the parameter names of torchvision's.

The names matter: official SSCD weights come as a state dict of them. The stride is in the 3x3 convolution of a
bottleneck, as there. The head is the copy descriptor's: GeM pooling and one linear projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.descriptors.train_params import Arch, NetworkParams
from components.errors import VitrailError


class Shape(NamedTuple):
    """What tells one architecture from another."""

    layers: tuple[int, int, int, int]  # blocks a stage
    bottleneck: bool
    groups: int = 1
    group_width: int = 64  # channels a group of the 3x3 convolution, at the first stage and width 64


SHAPES: dict[Arch, Shape] = {
    "resnet10": Shape((1, 1, 1, 1), False),
    "resnet18": Shape((2, 2, 2, 2), False),
    "resnet50": Shape((3, 4, 6, 3), True),
    "resnext101_32x4d": Shape((3, 4, 23, 3), True, 32, 4),
    "resnext101_32x8d": Shape((3, 4, 23, 3), True, 32, 8),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 (bottleneck), beside a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, shape: Shape) -> None:
        super().__init__()
        if shape.bottleneck:
            inner, outputs = planes * shape.group_width // 64 * shape.groups, 4 * planes
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=shape.groups, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            outputs = planes
            self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
        self.bottleneck = shape.bottleneck
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that ends the residual branch."""
        return self.bn3 if self.bottleneck else self.bn2

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        if self.bottleneck:
            branch = self.bn3(self.conv3(F.relu(branch, inplace=True)))
        return F.relu(branch + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """Normalised images [B, 3, H, W] fp32 -> [B, dim]: trunk, GeM, projection. Not of unit length."""

    def __init__(self, params: NetworkParams) -> None:
        super().__init__()
        shape, width = SHAPES[params.arch], params.width
        self.gem, self.pools = params.gem, params.stem == "imagenet"
        kernel = 7 if self.pools else 3
        self.conv1 = nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        each = 4 if shape.bottleneck else 1  # channels a stage gives, over its planes
        self.layer1 = _stage(width, width, shape.layers[0], 1, shape)
        self.layer2 = _stage(width * each, width * 2, shape.layers[1], 2, shape)
        self.layer3 = _stage(width * 2 * each, width * 4, shape.layers[2], 2, shape)
        self.layer4 = _stage(width * 4 * each, width * 8, shape.layers[3], 2, shape)
        self.fc = nn.Linear(width * 8 * each, params.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pools:
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = self.fc(gem(x, self.gem))
        return pooled

    def init_weights(self, generator: torch.Generator) -> None:
        """He-normal (fan out) convolutions; residual branches end at zero, without which lambda 30 does not train."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, ResidualBlock):
                nn.init.zeros_(module.last_norm.weight)
        nn.init.xavier_uniform_(self.fc.weight, generator=generator)
        nn.init.zeros_(self.fc.bias)


def _stage(inputs: int, planes: int, blocks: int, stride: int, shape: Shape) -> nn.Sequential:
    outputs = planes * (4 if shape.bottleneck else 1)
    first = ResidualBlock(inputs, planes, stride, shape)
    return nn.Sequential(first, *(ResidualBlock(outputs, planes, 1, shape) for _ in range(blocks - 1)))


def gem(x: Tensor, power: float) -> Tensor:
    """Generalised mean of [B, C, H, W] over its places: [B, C] (Radenovic et al. 2018). 1: mean; large: maximum."""
    return x.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)


def network_of(state: Mapping[str, Tensor], side: int, where: str) -> NetworkParams:
    """The network that a state dict with torchvision's names belongs to, read from its shapes.

    Raises:
        VitrailError: the names or shapes are of none of :data:`SHAPES`.
    """
    try:
        width, kernel = state["conv1.weight"].shape[0], state["conv1.weight"].shape[2]
        dim = state["fc.weight"].shape[0]
        layers = tuple(
            len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
        )
        inner, group_width = state["layer1.0.conv2.weight"].shape[:2]
    except KeyError as fault:
        raise VitrailError(
            f"{where}: no tensor {fault}, so not a state dict of a torchvision ResNet; "
            "take the .torchvision.pt or .torchscript.pt file"
        ) from None
    for arch, shape in SHAPES.items():
        groups_fit = not shape.bottleneck or inner // group_width == shape.groups
        width_fits = shape.groups == 1 or group_width * 64 == shape.group_width * width
        blocks_fit = layers == shape.layers and ("layer1.0.conv3.weight" in state) == shape.bottleneck
        if blocks_fit and groups_fit and width_fits:
            stem: Literal["imagenet", "small"] = "imagenet" if kernel == 7 else "small"
            return NetworkParams(side=side, arch=arch, width=width, stem=stem, dim=dim, normalise="imagenet")
    raise VitrailError(f"{where}: a ResNet of {layers} blocks, {inner} by {group_width}; known are {', '.join(SHAPES)}")
