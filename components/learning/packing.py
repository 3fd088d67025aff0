"""Crops of several sizes as one sequence of tokens.

The tokens of every crop lie one after the other in one matrix ``[rows, dim]``: group after group (a group is the
crops of one size), sample after sample, token after token. Linear layers, norms and feed-forward networks run once on
that matrix; only attention needs to know where a sample begins and ends, and a :data:`Layout` tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Crops of one size: ``samples`` sequences of ``tokens`` tokens each."""

    samples: int
    tokens: int


Layout = tuple[Group, ...]


def group_rows(layout: Layout) -> list[int]:
    """Rows of the packed matrix that each group takes."""
    return [group.samples * group.tokens for group in layout]


def pack(groups: Sequence[Tensor]) -> Tensor:
    """``[B_i, T_i, dim]`` tensors as one ``[sum B_i * T_i, dim]`` (no copy where there is one group)."""
    flat = [group.reshape(-1, group.shape[-1]) for group in groups]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def unpack(packed: Tensor, layout: Layout) -> list[Tensor]:
    """The inverse of :func:`pack`: views ``[B_i, T_i, dim]`` of ``packed`` ``[rows, dim]``."""
    if len(layout) == 1:
        return [packed.view(layout[0].samples, layout[0].tokens, packed.shape[-1])]
    # One split, not slices: its backward writes every group's gradient once, where a slice's would fill a whole matrix.
    parts = packed.split(group_rows(layout))
    return [part.view(g.samples, g.tokens, part.shape[-1]) for part, g in zip(parts, layout, strict=True)]
