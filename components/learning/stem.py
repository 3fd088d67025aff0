"""A convolutional stem in the place of the linear patch embedding, for few images and short runs (arXiv 2106.14881)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.learning.packing import pack

LEAST = 8  # channels of the first convolution


def stem_channels(patch_size: int, dim: int) -> list[int]:
    """Channels after each convolution of stride 2: ``dim`` last, and half as many before each."""
    count = patch_size.bit_length() - 1
    return [max(LEAST, dim >> (count - 1 - number)) for number in range(count)]


class ConvolutionalStem(nn.Module):
    """3 x 3 convolutions of stride 2 with GELU, then a linear map: one token a ``patch x patch`` square.

    The paper's has batch normalisation, which ties images of a batch together, and ReLU. A token sees pixels of its
    neighbours' squares, so a hidden patch is not fully hidden from the student (iBOT). After each of these there are
    ``extra`` convolutions of stride 1 with GELU, added to what they are given.

    ``patch_size`` is a power of two.
    """

    def __init__(self, patch_size: int, channels: int, dim: int, extra: int = 0) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = [channels, *stem_channels(patch_size, dim)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.extra = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(extra)) for width in widths[1:] if extra
        )
        self.out = nn.Linear(widths[-1], dim)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Images ``[B_i, channels, H_i, W_i]`` to ``[sum B_i * N_i, dim]``, patches in row order."""
        maps = [self._convolved(group.to(self.out.weight.dtype)) for group in images]
        tokens: Tensor = self.out(pack([each.flatten(2).transpose(1, 2) for each in maps]))
        return tokens

    def maps(self, images: Tensor) -> Tensor:
        """Images ``[B, channels, H, W]`` to ``[B, dim, H / patch, W / patch]``."""
        found: Tensor = self.out(self._convolved(images).permute(0, 2, 3, 1))
        return found.permute(0, 3, 1, 2)

    def _convolved(self, images: Tensor) -> Tensor:
        for number, conv in enumerate(self.convs):
            images = F.gelu(conv(images))
            for more in self.extra[number] if self.extra else ():  # type: ignore[union-attr]
                images = images + F.gelu(more(images))
        return images

    def init_weights(self, generator: torch.Generator) -> None:
        """Normal, by the inputs of a unit (He et al.), biases zero."""
        for conv in [*self.convs, *(conv for level in self.extra for conv in level)]:  # type: ignore[attr-defined]
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.normal_(conv.weight, std=math.sqrt(2 / conv.weight[0].numel()), generator=generator)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.out.bias)
