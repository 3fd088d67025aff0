"""The transformer block on packed tokens: attention, feed-forward networks, LayerScale.

Every parameter is read only in its own module's forward, as ZeRO-3 gathers it for that time alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.learning.packing import Layout, group_rows
from components.learning.stochastic_depth import Kept, add_kept, share_of


class Attention(nn.Module):
    """Multi-head self-attention within each sample of a packed sequence."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None) -> Tensor:
        """``[rows, dim]`` to the same shape, or ``[m, dim]`` of the ``m`` rows named; samples never see each other."""
        dim = x.shape[-1]
        packed = self.qkv(x)
        parts = packed.split(group_rows(layout)) if len(layout) > 1 else (packed,)
        mixed = []
        for part, group in zip(parts, layout, strict=True):
            # Three [B, heads, T, head dim], as views. Unbound before they are turned: so backward joins gradients that
            # lie in the order of the rows, in one straight pass.
            qkv = part.view(group.samples, group.tokens, 3, self.heads, dim // self.heads)
            q, k, v = (each.transpose(1, 2) for each in qkv.unbind(2))
            mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, dim))
        joined = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        out: Tensor = self.proj(joined if rows is None else joined.index_select(0, rows))
        return out


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def swiglu_hidden(dim: int, ratio: float = 4.0) -> int:
    """Two thirds of the MLP's hidden size, up to a multiple of 8: 2736 for ViT-L, 4096 for ViT-g."""
    return (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8


class SwiGLU(nn.Module):
    """Gated feed-forward network, ``w3(silu(a) * b)`` with ``a, b`` from one fused layer (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A learnt factor a channel on a residual, small at the start (arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, residual: Tensor, x: Tensor | None = None) -> Tensor:
        """``gamma * residual``, added to ``x`` where one is given."""
        return residual * self.gamma if x is None else torch.addcmul(x, residual, self.gamma)


class Unscaled(nn.Module):
    """In the place of :class:`LayerScale` where a model has none."""

    def forward(self, residual: Tensor, x: Tensor | None = None) -> Tensor:
        """``residual``, added to ``x`` where one is given."""
        return residual if x is None else x + residual


class Block(nn.Module):
    """Pre-norm block: attention, then feed-forward network, each as a scaled residual."""

    def __init__(
        self, dim: int, heads: int, *, swiglu: bool, mlp_ratio: float, qkv_bias: bool, layerscale_init: float | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, qkv_bias)
        self.ls1 = Unscaled() if layerscale_init is None else LayerScale(dim, layerscale_init)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, swiglu_hidden(dim, mlp_ratio)) if swiglu else Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = Unscaled() if layerscale_init is None else LayerScale(dim, layerscale_init)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        attn_kept: Kept | None = None,
        ffn_kept: Kept | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """``[rows, dim]`` to the same shape; a :class:`Kept` limits its residual to the samples it names.

        ``rows``, int64 ``[m]``, asks for the output of these rows alone, ``[m, dim]``. Other rows then only serve as
        keys and values: the projection and the feed-forward network run on ``m`` rows.
        """
        if rows is not None:
            return self._some(x, layout, attn_kept, ffn_kept, rows)
        if attn_kept is None:
            x = self.ls1(self.attn(self.norm1(x), layout), x)
        else:
            part = x.index_select(0, attn_kept.rows)
            x = add_kept(x, self.ls1(self.attn(self.norm1(part), attn_kept.layout)), attn_kept)
        if ffn_kept is None:
            x = self.ls2(self.mlp(self.norm2(x)), x)
        else:
            part = x.index_select(0, ffn_kept.rows)
            x = add_kept(x, self.ls2(self.mlp(self.norm2(part))), ffn_kept)
        return x

    def _some(self, x: Tensor, layout: Layout, attn_kept: Kept | None, ffn_kept: Kept | None, rows: Tensor) -> Tensor:
        """``rows`` of the output. Of few rows all are computed, and those of dropped samples multiplied by zero: to
        sort them out first, a GPU would have to wait for their number."""
        some = x.index_select(0, rows)
        if attn_kept is None:
            some = self.ls1(self.attn(self.norm1(x), layout, rows), some)
        else:
            share, place = share_of(rows, attn_kept, x)
            part = self.norm1(x.index_select(0, attn_kept.rows))
            some = torch.addcmul(some, self.ls1(self.attn(part, attn_kept.layout, place)), share)
        if ffn_kept is None:
            out: Tensor = self.ls2(self.mlp(self.norm2(some)), some)
            return out
        share, _ = share_of(rows, ffn_kept, x)
        return torch.addcmul(some, self.ls2(self.mlp(self.norm2(some))), share)
