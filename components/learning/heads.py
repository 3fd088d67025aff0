"""The projection head: an MLP whose output is scaled to unit length, then cosine similarities with K prototypes.

DINO and iBOT compare images by their prototypes. The contrastive objective compares the vectors themselves, and its
head has no prototypes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from components.learning.losses.collective import gather
from components.params import CHANGES, Strict


class HeadConfig(Strict):
    """The shape of a projection head (arXiv 2304.07193, table 16 and appendix B)."""

    effect: ClassVar = CHANGES
    # K: 65,536 in the short recipe, 131,072 in the long; 0: none, as objective.kind: contrastive wants it
    prototypes: int = Field(ge=0, le=10_000_000)
    hidden: int = Field(default=2048, gt=0, le=65_536)
    bottleneck: int = Field(default=256, gt=0, le=65_536)  # 384 for DINO's head in the long recipe
    layers: int = Field(default=3, ge=1, le=1000)
    # of the MLP's start weights, not of the prototypes' (see ProjectionHead.init_weights). 0.02 nearly keeps the scale
    # of activations 2,048 wide; narrower layers need more, or the biases soon outweigh what tells images apart: about
    # 0.02 * sqrt(2048 / hidden)
    init_std: float = Field(default=0.02, gt=0, le=10.0)

    # standardise hidden features over the batch of all ranks, as SimCLR's head does: of objective.kind: contrastive
    batch_norm: bool = False

    @field_validator("prototypes")
    @classmethod
    def _not_one(cls, prototypes: int) -> int:
        if prototypes == 1:
            raise ValueError("with one prototype every image has the same target; at least 2, or 0 for none")
        return prototypes


class BatchStandardised(nn.Module):
    """Each feature less its mean over the batch of all ranks, over its standard deviation; no parameters, no memory.

    Batch normalisation without scale, shift and running figures (arXiv 1502.03167), for heads that are used in training
    alone. ``group``: ranks that hold as many rows each; None: this device alone.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, D]``; sums are in fp32."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = gather(rows.mean(0, keepdim=True), self.group).mean(0)
        variance = gather((rows - mean).square().mean(0, keepdim=True), self.group).mean(0)
        return ((rows - mean) * (variance + 1e-5).rsqrt()).to(x.dtype)


class NormalizedLinear(nn.Module):
    """``x @ (g * v / |v|)^T`` a prototype, without bias: weight normalisation written out.

    torch's ``weight_norm`` computes the weight in a hook or a parametrisation, which ZeRO-3 would run on shards; here
    both parameters are read in forward only. ``weight_v``: ``[out, in]``, ``weight_g``: ``[out, 1]``, trainable.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        v, g = self.weight_v, self.weight_g
        # the norm's square sum would overflow in fp16 for long vectors: summed in fp32
        norm = torch.linalg.vector_norm(v, dim=1, keepdim=True, dtype=torch.promote_types(v.dtype, torch.float32))
        return F.linear(x, v * (g / norm).to(v.dtype))


class ProjectionHead(nn.Module):
    """``layers`` linear layers with GELU between, L2-normalised bottleneck, normalised prototypes."""

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = [in_dim] + [config.hidden] * (config.layers - 1) + [config.bottleneck]
        self.mlp = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(widths)):
            if number:
                if config.batch_norm:
                    self.mlp.append(BatchStandardised())
                self.mlp.append(nn.GELU())
            self.mlp.append(nn.Linear(before, after))
        self.last_layer = NormalizedLinear(config.bottleneck, config.prototypes) if config.prototypes else None
        self.init_weights(torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        """Class or patch tokens ``[..., in_dim]`` to logits ``[..., K]`` within ``[-|g|, |g|]``.

        Without prototypes: to vectors ``[..., bottleneck]`` of unit length.
        """
        x = self.mlp(x)
        x = F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)  # 1e-12 is 0 in fp16
        if self.last_layer is not None:
            x = self.last_layer(x)
        return x

    def init_weights(self, generator: torch.Generator) -> None:
        """The MLP's weights truncated normal of ``config.init_std``, biases zero; prototypes uniform, ``weight_g`` one.

        Uniform in +- 1 / sqrt(bottleneck), the start of torch's linear layers: in the released code the last layer is
        made after the truncated normal was applied. A prototype's direction does not depend on its length, but how fast
        it turns does: AdamW moves all weights alike, so a vector of length 0.58, as here, turns at 0.55 of the rate of
        one that 0.02 makes 0.32 long (bottleneck 256).
        """
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.init_std, generator=generator)
                nn.init.zeros_(module.bias)
        if self.last_layer is None:
            return
        bound = self.config.bottleneck**-0.5
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)
        nn.init.ones_(self.last_layer.weight_g)
