"""The vision transformer: one forward pass for crops of all sizes.

``VisionTransformer(config)([global_crops, local_crops], [masks, None])`` returns one :class:`Features` a group. Each
equals, within rounding, that of a separate pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.errors import VitrailError, nearest
from components.learning.blocks import Block
from components.learning.embed import Embeddings, Interpolation, PatchEmbed, Stem
from components.learning.packing import Group, Layout, unpack
from components.learning.stem import ConvolutionalStem
from components.learning.stochastic_depth import Kept, draw_kept
from components.params import CHANGES, Strict

# Width, depth and heads of the named architectures (arXiv 2304.07193, table 17; ViT-B has 12 blocks). ViT-g was
# released with SwiGLU only; the other released models, distilled, have the MLP, and ViT-L's own recipe SwiGLU.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vitt": {"embed_dim": 128, "depth": 4, "heads": 4},
    "vits": {"embed_dim": 384, "depth": 12, "heads": 6},
    "vitb": {"embed_dim": 768, "depth": 12, "heads": 12},
    "vitl": {"embed_dim": 1024, "depth": 24, "heads": 16},
    "vitg": {"embed_dim": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}


class ViTConfig(Strict):
    """The shape of a vision transformer."""

    effect: ClassVar = CHANGES
    image_size: int = Field(gt=0, le=8192)  # px; the square the table of position embeddings is made for
    patch_size: int = Field(gt=0, le=8192)  # px
    in_channels: int = Field(default=3, gt=0, le=65_536)
    embed_dim: int = Field(gt=0, le=65_536)
    depth: int = Field(gt=0, le=1000)
    heads: int = Field(gt=0, le=65_536)
    ffn: Literal["mlp", "swiglu"] = "mlp"
    mlp_ratio: float = Field(default=4.0, gt=0, le=1000.0)
    registers: int = Field(default=0, ge=0, le=1000)
    layerscale_init: float | None = Field(1e-5, gt=0, le=10.0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)  # share of samples a residual skips, the same in every block
    qkv_bias: bool = True
    interpolation: Interpolation = "offset"
    stem: Stem = "patch"  # tokens by one linear map a patch, or by 3 x 3 convolutions (few images, short runs)
    stem_extra: int = Field(default=0, ge=0, le=100)  # residual 3 x 3 convolutions after each of the stem's strides

    @model_validator(mode="after")
    def _fits(self) -> ViTConfig:
        if self.embed_dim % self.heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.stem == "convolutional" and (self.patch_size < 2 or self.patch_size.bit_count() != 1):
            raise ValueError(f"stem: convolutional needs a patch_size of 2, 4, 8, 16, ..., not {self.patch_size}")
        if self.stem_extra and self.stem != "convolutional":
            raise ValueError(f"stem_extra {self.stem_extra}: of stem: convolutional; set 0")
        return self


def vit_config(architecture: str, image_size: int, patch_size: int, **changes: Any) -> ViTConfig:
    """The configuration of a named architecture (``vitt vits vitb vitl vitg``); ``changes`` override its values."""
    if architecture not in ARCHITECTURES:
        known = list(ARCHITECTURES)
        raise VitrailError(
            f"no architecture {architecture!r}; there are {', '.join(known)}{nearest(architecture, known)}"
        )
    return ViTConfig(**{**ARCHITECTURES[architecture], "image_size": image_size, "patch_size": patch_size, **changes})


class Features(NamedTuple):
    """Tokens of one group of crops: ``cls`` ``[B, D]``, ``registers`` ``[B, R, D]``, ``patches`` ``[B, N, D]``."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class VisionTransformer(nn.Module):
    """A pre-norm ViT on packed tokens.

    In training mode with ``drop_path > 0`` it draws which samples to keep from ``self.generator``, a CPU generator of
    its own: seed it per rank (:meth:`seed_drop_path`) and keep ``generator.get_state()`` with a checkpoint.
    ``checkpoint_blocks = True`` computes blocks again in backward instead of storing their activations.
    ``short_last_block = False`` lets :meth:`chosen` run the last block on all rows.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        embed: PatchEmbed | ConvolutionalStem
        if c.stem == "convolutional":
            embed = ConvolutionalStem(c.patch_size, c.in_channels, c.embed_dim, c.stem_extra)
        else:
            embed = PatchEmbed(c.patch_size, c.in_channels, c.embed_dim)
        self.embeddings = Embeddings(embed, c.image_size, c.embed_dim, c.registers, c.interpolation)
        self.blocks = nn.ModuleList(
            Block(
                c.embed_dim,
                c.heads,
                swiglu=c.ffn == "swiglu",
                mlp_ratio=c.mlp_ratio,
                qkv_bias=c.qkv_bias,
                layerscale_init=c.layerscale_init,
            )
            for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=1e-6)
        self.checkpoint_blocks = False
        self.short_last_block = True
        self.generator = torch.Generator()
        self.seed_drop_path(0)
        self.init_weights(torch.Generator().manual_seed(0))

    def seed_drop_path(self, seed: int) -> None:
        """Start the choice of kept samples anew from ``seed``."""
        self.generator.manual_seed(seed)

    def forward(
        self, crops: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor | None] | None = None
    ) -> Any:  # Features for one tensor, list[Features] for a sequence
        """Features after the final norm.

        Args:
            crops: one tensor ``[B, C, H, W]``, or one a size; any sides that are multiples of the patch.
            masks: bool ``[B, N]`` a group, true where a patch is hidden, or None.

        Returns:
            :class:`Features` for one tensor, a list of them for a sequence.

        Raises:
            VitrailError: a side is no multiple of the patch, or a mask does not fit its crops.
        """
        groups = [crops] if isinstance(crops, Tensor) else list(crops)
        hidden = [masks] if isinstance(masks, Tensor) else [None] * len(groups) if masks is None else list(masks)
        x, layout = self._embed(groups, hidden)
        for block, (attn, ffn) in zip(self.blocks, self._kept(layout, x.device), strict=True):
            x = self._run(block, x, layout, attn, ffn)
        features = self._features(self.norm(x), layout)
        return features[0] if isinstance(crops, Tensor) else features

    def chosen(
        self, crops: Sequence[Tensor], masks: Sequence[Tensor | None], patches: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """The tokens that losses read, equal to those of :meth:`forward` within rounding, for less work.

        The last block's projection, feed-forward network and the final norm see these tokens alone: its other rows
        serve as keys and values only. In a step of vitt that is a sixth of all products of matrices.

        Args:
            crops: as for :meth:`forward`, one tensor a size.
            masks: one, or None, a group.
            patches: int64 ``[M]`` into the ``[B * N]`` patches of the first group; None: none.

        Returns:
            Class tokens ``[B_i, D]`` of each group, and the chosen patch tokens ``[M, D]``, after the final norm.
        """
        x, layout = self._embed(crops, masks)
        starts, rows = 0, []
        for group in layout:
            rows.append(torch.arange(starts, starts + group.samples * group.tokens, group.tokens, device=x.device))
            starts += group.samples * group.tokens
        if patches is not None:
            first, extra = layout[0].tokens, 1 + self.config.registers
            count = first - extra
            rows.append(patches.div(count, rounding_mode="floor") * first + extra + patches % count)
        index = torch.cat(rows)
        last = len(self.blocks) - 1
        for number, (block, (attn, ffn)) in enumerate(zip(self.blocks, self._kept(layout, x.device), strict=True)):
            short = number == last and self.short_last_block
            x = self._run(block, x, layout, attn, ffn, index if short else None)
        x = x if self.short_last_block else x.index_select(0, index)
        parts = list(self.norm(x).split([len(part) for part in rows]))
        found = None if patches is None else parts.pop()
        return parts, found

    def intermediate(self, images: Tensor, blocks: int | Sequence[int], norm: bool = True) -> list[Features]:
        """Features after some blocks, in their order.

        Args:
            images: ``[B, C, H, W]``.
            blocks: the number of last blocks, or zero-based block numbers.
            norm: apply the final norm to each (linear probes do; depth heads of the released models do not).
        """
        depth = len(self.blocks)
        wanted = list(range(depth - blocks, depth)) if isinstance(blocks, int) else list(blocks)
        if not wanted or min(wanted) < 0 or max(wanted) >= depth or wanted != sorted(set(wanted)):
            raise VitrailError(f"blocks {blocks}: give rising numbers of 0 to {depth - 1}, or a count of 1 to {depth}")
        x, layout = self._embed([images], [None])
        found = []
        for number, (block, (attn, ffn)) in enumerate(zip(self.blocks, self._kept(layout, x.device), strict=True)):
            x = self._run(block, x, layout, attn, ffn)
            if number in wanted:
                found.extend(self._features(self.norm(x) if norm else x, layout))
            if number == wanted[-1]:
                break
        return found

    def init_weights(self, generator: torch.Generator) -> None:
        """Start values: linear weights truncated normal 0.02, biases zero, norms one, the rest by its module."""
        self.embeddings.init_weights(generator)
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def _embed(self, groups: Sequence[Tensor], masks: Sequence[Tensor | None]) -> tuple[Tensor, Layout]:
        if len(masks) != len(groups):
            raise VitrailError(f"{len(masks)} masks for {len(groups)} groups of crops: give one (or None) a group")
        layout = []
        for group, mask in zip(groups, masks, strict=True):
            grid = self.embeddings.grid(group)
            patches = grid[0] * grid[1]
            if mask is not None and tuple(mask.shape) != (group.shape[0], patches):
                raise VitrailError(f"mask of shape {tuple(mask.shape)}: the crops need {(group.shape[0], patches)}")
            layout.append(Group(group.shape[0], 1 + self.config.registers + patches))
        return self.embeddings(groups, masks), tuple(layout)

    def _kept(self, layout: Layout, device: torch.device) -> list[tuple[Kept | None, Kept | None]]:
        if not self.training or self.config.drop_path == 0:
            return [(None, None)] * len(self.blocks)
        kept = draw_kept(layout, self.config.drop_path, 2 * len(self.blocks), self.generator, device)
        return list(zip(kept[::2], kept[1::2], strict=True))

    def _run(self, block: nn.Module, x: Tensor, layout: Layout, *how: Kept | Tensor | None) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, layout, *how, use_reentrant=False, preserve_rng_state=False)
            return out
        out = block(x, layout, *how)
        return out

    def _features(self, packed: Tensor, layout: Layout) -> list[Features]:
        registers = self.config.registers
        found = []
        for part, group in zip(unpack(packed, layout), layout, strict=True):
            cls, register, patches = part.split([1, registers, group.tokens - 1 - registers], dim=1)
            found.append(Features(cls[:, 0], register, patches))
        return found
