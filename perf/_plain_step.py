"""A step of DINOv2's method as one writes it in plain PyTorch, sharing no code with components/.

A separate forward pass for each size of crop, blocks that drop samples as the released code does when nothing packs
them, torch's own weight normalisation, AdamW, clipping and average. It is what ``perf whole_step`` compares with.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Of the network and its crops; ViT-S/14 with heads of 8,192 prototypes."""

    dim: int = 384
    heads: int = 6
    depth: int = 12
    patch: int = 14
    side: int = 224
    drop: float = 0.3
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 8192


class PlainBlock(nn.Module):
    """Pre-norm block on ``[B, T, dim]`` with LayerScale and dropped samples."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.heads, self.rate = shape.heads, shape.drop
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), 1e-5)) for _ in range(2))

    def attend(self, x: Tensor) -> Tensor:
        """Attention's residual."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.proj(mixed) * self.gamma1
        return out

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward network's residual."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.gamma2
        return out

    def forward(self, x: Tensor) -> Tensor:
        for residual in (self.attend, self.feed):
            if not self.training:
                x = x + residual(x)
                continue
            count = max(int(len(x) * (1 - self.rate)), 1)
            chosen = torch.randperm(len(x))[:count]
            x = torch.index_add(x, 0, chosen, residual(x[chosen]), alpha=len(x) / count)
        return x


class PlainViT(nn.Module):
    """``[B, 3, H, W]`` to class token and patch tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch, self.grid = shape.patch, shape.side // shape.patch
        self.embed = nn.Conv2d(3, shape.dim, shape.patch, shape.patch)
        self.cls, self.mask = nn.Parameter(torch.zeros(1, 1, shape.dim)), nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.position = nn.Parameter(torch.randn(1, 1 + self.grid**2, shape.dim) * 0.02)
        self.blocks = nn.Sequential(*(PlainBlock(shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``masks``: bool ``[B, N]``, true where a patch is hidden."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks[:, :, None], self.mask, x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        side = images.shape[-1] // self.patch
        position: Tensor = self.position
        if side != self.grid:
            table = position[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
            table = F.interpolate(table, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
            position = torch.cat([position[:, :1], table], dim=1)
        x = self.norm(self.blocks(x + position))
        return x[:, 0], x[:, 1:]


class PlainHead(nn.Module):
    """Three layers, then cosine similarities with the prototypes."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, bottleneck = shape.hidden, shape.bottleneck
        layers = [nn.Linear(shape.dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, shape.prototypes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.normalize(self.mlp(x), dim=-1))
        return out


def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Targets whose prototypes are used equally over the batch."""
    shares = torch.exp(logits / temperature)
    shares /= shares.sum()
    for _ in range(rounds):
        shares /= shares.sum(0, keepdim=True) * shares.shape[1]
        shares /= shares.sum(1, keepdim=True) * len(shares)
    return shares * len(shares)


class PlainStep:
    """Student, teacher and optimizer; called with crops and masks, it makes one step."""

    def __init__(self, shape: Shape, clip: float = 3.0) -> None:
        self.student = nn.ModuleList([PlainViT(shape), PlainHead(shape), PlainHead(shape)])
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, weight_decay=0.04)
        self.clip = clip

    def __call__(self, large: Tensor, small: Tensor, masks: Tensor, momentum: float) -> float:
        """Crops ``[2B, 3, G, G]`` and ``[L*B, 3, l, l]``, masks bool ``[2B, N]``; returns the loss."""
        hidden = masks.flatten().nonzero().flatten()
        weights = (1 / masks.sum(1).clamp(min=1)).unsqueeze(1).expand_as(masks)[masks]
        vit, dino, ibot = self.teacher
        with torch.no_grad():
            cls, patches = vit(large)
            targets = sinkhorn(dino(torch.cat(cls.chunk(2)[::-1])), 0.05).chunk(2)
            hidden_targets = sinkhorn(ibot(patches.flatten(0, 1)[hidden]), 0.05)
        vit, dino, ibot = self.student
        cls, patches = vit(large, masks)
        local, _ = vit(small)
        views = len(small) * 2 // len(large)
        pairs = [(part, target) for part in dino(local).chunk(views) for target in targets]
        pairs += [(part, target) for part, target in zip(dino(cls).chunk(2), targets, strict=True)]
        loss = torch.stack([-(t * F.log_softmax(s / 0.1, -1)).sum(-1).mean() for s, t in pairs]).sum() / len(pairs)
        of_patches = -(hidden_targets * F.log_softmax(ibot(patches.flatten(0, 1)[hidden]) / 0.1, -1)).sum(-1)
        loss = loss + (of_patches * weights).sum() / len(large)
        for view in cls.chunk(2):
            unit = F.normalize(view, dim=-1)
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
            loss = loss - 0.1 * torch.log(F.pairwise_distance(unit, unit[nearest]) + 1e-8).mean()
        loss.backward()
        for part in self.student:
            nn.utils.clip_grad_norm_(part.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            averages: list[Tensor] = list(self.teacher.parameters())
            torch._foreach_mul_(averages, momentum)
            torch._foreach_add_(averages, list[Tensor](self.student.parameters()), alpha=1 - momentum)
        return loss.item()
