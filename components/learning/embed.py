"""From pixels to tokens: patches, mask token, position embedding, CLS and register tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.errors import VitrailError
from components.learning.packing import pack
from components.learning.stem import ConvolutionalStem

# How the table of position embeddings is resampled to another grid, always bicubic:
#   offset  factor (new + 0.1) / old, no antialiasing: the released models without registers
#   size    to the new size, antialiased: the released models with registers
#   plain   to the new size, no antialiasing: Hugging Face's Dinov2Model
Interpolation = Literal["offset", "size", "plain"]
Stem = Literal["patch", "convolutional"]  # what makes tokens of pixels: one linear map a patch, or convolutions


class PatchEmbed(nn.Module):
    """A linear map of each ``patch x patch`` square; the same as a convolution of that stride, for all crops at once.

    ``weight``: ``[dim, channels, patch, patch]``, ``bias``: ``[dim]``, as in a convolution.
    """

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(dim, channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Images ``[B_i, channels, H_i, W_i]`` to ``[sum B_i * N_i, dim]``, patches in row order."""
        return F.linear(
            pack([self._squares(i.to(self.weight.dtype)) for i in images]), self.weight.flatten(1), self.bias
        )

    def maps(self, images: Tensor) -> Tensor:
        """Images ``[B, channels, H, W]`` to ``[B, dim, H / patch, W / patch]``."""
        return F.conv2d(images, self.weight, self.bias, stride=self.patch_size)

    def _squares(self, images: Tensor) -> Tensor:
        (b, c, height, width), p = images.shape, self.patch_size
        squares = images.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return squares.reshape(b, (height // p) * (width // p), c * p * p)

    def init_weights(self, generator: torch.Generator) -> None:
        """PyTorch's own start for a convolution, drawn from ``generator``."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)


def interpolate_positions(positions: Tensor, grid: tuple[int, int], how: Interpolation) -> Tensor:
    """Position embeddings of patches ``[1, n * n, dim]`` for ``grid`` (rows, columns): ``[1, rows * columns, dim]``."""
    side = math.isqrt(positions.shape[1])
    if grid == (side, side):
        return positions
    table = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    if how == "offset":
        factor = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        table = F.interpolate(table, scale_factor=factor, mode="bicubic")
    else:
        table = F.interpolate(table, size=grid, mode="bicubic", antialias=how == "size")
    return table.flatten(2).transpose(1, 2).to(positions.dtype)


class Embeddings(nn.Module):
    """Tokens of all crops, ``[CLS][registers][patches]`` a sample; position embeddings cover CLS and patches only."""

    def __init__(
        self,
        embed: PatchEmbed | ConvolutionalStem,
        image_size: int,
        dim: int,
        registers: int,
        interpolation: Interpolation,
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.registers = registers
        self.patch_embed = embed
        patch_size = embed.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of ``images`` ``[B, C, H, W]``.

        Raises:
            VitrailError: a side is no multiple of the patch.
        """
        height, width = images.shape[-2:]
        patch = self.patch_embed.patch_size
        if height % patch or width % patch or not height or not width:
            down = [max(side // patch, 1) * patch for side in (height, width)]
            raise VitrailError(
                f"image of {height} x {width} px: sides must be multiples of the patch of {patch} px;"
                f" use for instance {down[0]} x {down[1]}"
            )
        return height // patch, width // patch

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        """Images ``[B_i, C, H_i, W_i]`` and masks (bool ``[B_i, N_i]``, true where hidden) to ``[rows, dim]``."""
        grids = [self.grid(group) for group in images]
        sizes = [group.shape[0] * grid[0] * grid[1] for group, grid in zip(images, grids, strict=True)]
        patches = self.patch_embed(images).split(sizes)
        cls_position, positions = self.pos_embed.split([1, self.pos_embed.shape[1] - 1], dim=1)
        tokens = []
        for part, group, grid, mask in zip(patches, images, grids, masks, strict=True):
            samples = group.shape[0]
            part = part.view(samples, grid[0] * grid[1], -1)
            if mask is not None:  # hidden patches still learn where they are: replaced before positions are added
                part = torch.where(mask[..., None], self.mask_token.to(part.dtype), part)
            pieces = [(self.cls_token + cls_position).expand(samples, -1, -1)]
            if self.register_tokens is not None:
                pieces.append(self.register_tokens.expand(samples, -1, -1))
            pieces.append(part + interpolate_positions(positions, grid, self.interpolation))
            tokens.append(torch.cat(pieces, dim=1))
        return pack(tokens)

    def init_weights(self, generator: torch.Generator) -> None:
        """Positions truncated normal 0.02, CLS and registers normal 1e-6, mask token zero."""
        self.patch_embed.init_weights(generator)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
