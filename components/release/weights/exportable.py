"""The forward pass as one graph for any batch, height and width: for ONNX and ``torch.export``. No mask input.

Equal to :class:`VisionTransformer`'s to rounding. Position embeddings are resampled by two small matrices, which are
computed in the graph from the grid: what bicubic interpolation does along each side, as it is separable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.learning.blocks import Attention, Block, LayerScale, Mlp, SwiGLU
from components.learning.embed import Interpolation
from components.learning.packing import Group
from components.learning.vit import VisionTransformer


class ExportableBackbone(nn.Module):
    """Normalised images ``[B, 3, H, W]`` to ``cls`` ``[B, D]`` and ``patches`` ``[B, N, D]``, after the final norm.

    Sides that are no multiple of the patch are cut down to the next that is, at bottom and right: a graph cannot refuse
    them.
    """

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.config = backbone.config
        self.embeddings, self.blocks, self.norm = backbone.embeddings, backbone.blocks, backbone.norm
        self.side = self.config.image_size // self.config.patch_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        own = self.embeddings
        patch = self.config.patch_size
        maps = own.patch_embed.maps(
            images[:, :, : images.shape[2] // patch * patch, : images.shape[3] // patch * patch]
        )
        samples, dim, rows, columns = maps.shape
        cls_position, positions = own.pos_embed[:, :1], own.pos_embed[0, 1:]
        table = positions.view(self.side, self.side, dim)
        down, across = resampling(rows, columns, self.side, self.config.interpolation, table)
        # [rows, side] x [side, side, D] x [side, columns]
        resized = torch.einsum("rs,std,ct->rcd", down, table, across).reshape(1, rows * columns, dim)
        tokens = [(own.cls_token + cls_position).expand(samples, -1, -1)]
        if own.register_tokens is not None:
            tokens.append(own.register_tokens.expand(samples, -1, -1))
        tokens.append(maps.flatten(2).transpose(1, 2) + resized)
        x = torch.cat(tokens, 1)
        length = 1 + self.config.registers + rows * columns
        x = x.reshape(samples * length, dim)
        for block in self.blocks:
            x = self.run_block(block, x, Group(samples, length))
        x = self.norm(x).view(samples, length, dim)
        return x[:, 0], x[:, 1 + self.config.registers :]

    def run_block(self, block: nn.Module, x: Tensor, group: Group) -> Tensor:
        """``block`` on the tokens ``x`` [rows, D] of ``group``."""
        out: Tensor = block(x, (group,))
        return out


class OnnxBackbone(ExportableBackbone):
    """The same with blocks of ONNX's own operators, which pass over activations as seldom as they can.

    Query, key and value are three products: the parts of one would be copied out of it. The scale of attention and
    LayerScale multiply weights, which a runtime does once, when it opens the file.
    """

    def run_block(self, block: nn.Module, x: Tensor, group: Group) -> Tensor:
        """See :meth:`ExportableBackbone.run_block`."""
        assert isinstance(block, Block)
        x = x + _scaled(_mixed(block.attn, block.norm1(x), group), block.attn.proj, block.ls1)
        ffn, y = block.mlp, block.norm2(x)
        if isinstance(ffn, Mlp):
            return x + _scaled(F.gelu(ffn.fc1(y)), ffn.fc2, block.ls2)
        assert isinstance(ffn, SwiGLU)
        gate, value = (_part(y, ffn.w12, number, 2) for number in range(2))
        return x + _scaled(F.silu(gate) * value, ffn.w3, block.ls2)


def _mixed(attn: Attention, x: Tensor, group: Group) -> Tensor:
    """Attention's sum of values [rows, D], before its last product."""
    dim = x.shape[-1]
    head = dim // attn.heads
    parts = (_part(x, attn.qkv, number, 3, head**-0.5 if number == 0 else None) for number in range(3))
    q, k, v = (part.view(group.samples, group.tokens, attn.heads, head).transpose(1, 2) for part in parts)
    weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)
    return torch.matmul(weights, v).transpose(1, 2).reshape(-1, dim)


def _part(x: Tensor, layer: nn.Linear, number: int, count: int, factor: float | None = None) -> Tensor:
    """Part ``number`` of the ``count`` that ``layer`` computes side by side, times ``factor``."""
    width = layer.out_features // count
    weight = layer.weight[number * width : (number + 1) * width]
    bias = None if layer.bias is None else layer.bias[number * width : (number + 1) * width]
    if factor is not None:
        weight, bias = weight * factor, None if bias is None else bias * factor
    return F.linear(x, weight, bias)


def _scaled(x: Tensor, layer: nn.Linear, scale: nn.Module) -> Tensor:
    """``scale(layer(x))``."""
    if not isinstance(scale, LayerScale):
        out: Tensor = layer(x)
        return out
    return F.linear(x, layer.weight * scale.gamma[:, None], layer.bias * scale.gamma)


def resampling(rows: int, columns: int, side: int, how: Interpolation, like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices ``[rows, side]`` and ``[columns, side]`` that resample a square table to ``rows`` x ``columns``."""
    down, across = _matrix(rows, side, how, like), _matrix(columns, side, how, like)
    if how == "offset":  # the table's own grid is left as it is; any other is shifted a little by the offset
        eye = torch.eye(side, device=like.device, dtype=like.dtype)
        same = (_count(rows, like) == side) & (_count(columns, like) == side)
        down = torch.where(same, _fitted(eye, rows), down)
        across = torch.where(same, _fitted(eye, columns), across)
    return down, across


def _count(number: int, like: Tensor) -> Tensor:
    return torch.ones(number, device=like.device, dtype=like.dtype).sum()


def _fitted(eye: Tensor, number: int) -> Tensor:
    """The first ``number`` rows of ``eye``, repeated as needed: only read where ``number`` is its side."""
    places = torch.arange(number, device=eye.device).clamp(max=eye.shape[0] - 1)
    return eye[places]


def _matrix(number: int, side: int, how: Interpolation, like: Tensor) -> Tensor:
    """What bicubic interpolation from ``side`` to ``number`` samples multiplies by, ``[number, side]``."""
    step = side / (_count(number, like) + (0.1 if how == "offset" else 0.0))  # table cells a sample
    centres = (torch.arange(number, device=like.device, dtype=like.dtype) + 0.5) * step
    cells = torch.arange(side, device=like.device, dtype=like.dtype)
    if how == "size":  # antialiased: the kernel widens where it shrinks, and what lies outside does not count
        width = torch.clamp(step, min=1.0)
        weights = _cubic((cells[None] + 0.5 - centres[:, None]) / width, -0.5)
        return weights / weights.sum(1, keepdim=True)
    places = centres - 0.5
    first = torch.floor(places)
    weights = torch.zeros(1, device=like.device, dtype=like.dtype)
    for offset in (-1, 0, 1, 2):  # cells outside repeat the edge
        cell = first + offset
        share = _cubic(places - cell, -0.75)
        weights = weights + share[:, None] * (cell.clamp(0, side - 1)[:, None] == cells[None]).to(like.dtype)
    return weights


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel; PyTorch takes a = -0.75, and -0.5 where it antialiases."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
