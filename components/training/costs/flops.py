"""The work of a step, by counting: floating-point operations by part, and bytes that a rank sends."""

from __future__ import annotations

import itertools

from components.learning.heads import HeadConfig
from components.learning.stochastic_depth import kept_samples
from components.learning.vit import ViTConfig
from components.training.costs.memory import (
    LIVE,
    crop_groups,
    embedding_layers,
    feed_forward_width,
    hidden_patches,
    network_sizes,
)
from components.training.params import TrainingParams


def flops_per_step(params: TrainingParams, ranks: int, teacher: TrainingParams | None = None) -> dict[str, float]:
    """Floating-point operations of a step on all ranks, by part; a product of matrices counts 2 a multiplication.

    Backward is twice a forward. Norms, softmax, losses and the optimizer are left out: they are bound by memory.
    Every block is counted whole, as in published figures. The last block does less: only what losses read
    (``VisionTransformer.chosen``).
    ``gram teacher`` is there with gram anchoring, and is of steps from its start on. ``teacher``: distillation's frozen
    network; None: the moving average of the student teaches.
    """
    vit, batch = params.vit, params.run.batch
    side, hidden = params.augment.global_size, hidden_patches(params)
    groups = crop_groups(params)
    blocks = sum(_kept(samples, vit) * _blocks(vit, tokens) for samples, tokens in groups)
    embeddings = sum(samples * _embeddings(vit, tokens) for samples, tokens in groups)
    teaching = teacher or params
    length = 1 + teaching.vit.registers + (side // teaching.vit.patch_size) ** 2
    seen = 2 * batch * (_blocks(teaching.vit, length) + _embeddings(teaching.vit, length))
    its_dino, its_ibot = teaching.heads.dino, teaching.heads.ibot or teaching.heads.dino
    its_dim = teaching.vit.embed_dim
    dino = params.heads.dino
    ibot = params.heads.ibot or dino
    classes = sum(samples for samples, _ in groups)
    if params.objective.kind == "contrastive":
        seen = its_head = 0.0  # the moving average has no pass
    else:
        its_head = 2 * batch * _head(its_dim, its_dino)
    parts = {
        "student": 3 * (blocks + embeddings),
        "blocks again in backward": blocks if params.run.activation_checkpointing else 0.0,
        "teacher": seen,
        "DINO head" if dino.prototypes else "projection head": 3 * classes * _head(vit.embed_dim, dino) + its_head,
        "iBOT head": hidden * (3 * _head(vit.embed_dim, ibot) + _head(its_dim, its_ibot)),
    }
    if params.gram is not None:
        tokens = 1 + vit.registers + ((params.gram.size or side) // vit.patch_size) ** 2
        patches = (side // vit.patch_size) ** 2
        similarities = (3 + 1) * 2.0 * vit.embed_dim * patches**2  # the student's, with backward, and the teacher's
        parts["gram teacher"] = 2 * batch * (_blocks(vit, tokens) + _embeddings(vit, tokens) + similarities)
    return {name: ranks * params.engine.accumulation * count for name, count in parts.items() if count}


def bytes_moved(
    params: TrainingParams, ranks: int, sixteen_bit: bool = True, teacher: TrainingParams | None = None
) -> dict[str, float]:
    """Bytes that a rank sends (and receives as many) in a step, about, by part.

    Every micro-batch gathers teacher and student once, and in backward the student again but for the ``LIVE`` elements
    that ZeRO-3 still has from forward; blocks that are computed again there add nothing to that. Gradients are cut and
    summed, those of the heads in fp32 by default; Sinkhorn-Knopp sums prototypes. perf/gathers.py holds the gathers
    against what DeepSpeed asks for.
    """
    width = 2 if sixteen_bit else 4
    sizes = network_sizes(params.vit, params.heads)
    heads = sizes.total - sizes.backbone
    exact = {"heads_fp32": (width, 4), "same": (width, width), "fp32": (4, 4)}[params.engine.reduce_dtype]
    alone = params.objective.kind == "contrastive"  # no teacher
    prototypes = params.heads.dino.prototypes + (params.heads.ibot or params.heads.dino).prototypes
    rounds = 2 * params.objective.sinkhorn_iterations if params.objective.centering == "sinkhorn" else 1
    parts = {
        "teacher's weights": 0.0
        if alone
        else width * (network_sizes(teacher.vit, teacher.heads) if teacher else sizes).total,
        "student's weights": width * sizes.total,
        "student's weights again in backward": width * max(0, sizes.total - LIVE),
        "gradients": exact[0] * sizes.backbone + exact[1] * heads,
        "prototypes' sums": 2 * 4 * rounds * prototypes,
    }
    if alone:  # every rank is given the views of all, and their gradients are summed
        views = (2 + params.augment.locals) * params.run.batch * params.heads.dino.bottleneck
        parts["views"] = 3 * 4 * ranks * views
    if params.gram is not None:
        parts["gram teacher's weights"] = width * sizes.backbone
    share = params.engine.accumulation * (ranks - 1) / ranks
    return {name: share * size for name, size in parts.items() if size}


def _kept(samples: int, vit: ViTConfig) -> int:
    return kept_samples(samples, vit.drop_path) if vit.drop_path else samples


def _blocks(vit: ViTConfig, tokens: int) -> float:
    """Forward through all blocks of a crop of ``tokens``: four projections, feed-forward, and attention itself."""
    products = 4 * vit.embed_dim**2 + feed_forward_products(vit)
    return vit.depth * (2.0 * tokens * products + 4.0 * vit.embed_dim * tokens**2)


def feed_forward_products(vit: ViTConfig) -> int:
    """Multiplications of a token in a block's feed-forward part."""
    return (3 if vit.ffn == "swiglu" else 2) * vit.embed_dim * feed_forward_width(vit)


def _embeddings(vit: ViTConfig, tokens: int) -> float:
    """Patches of a crop of ``tokens`` made tokens."""
    products = sum(inputs * outputs * places for inputs, outputs, places in embedding_layers(vit))
    return 2.0 * (tokens - 1 - vit.registers) * products


def _head(in_dim: int, head: HeadConfig) -> float:
    """Forward of a token through a projection head."""
    widths = [in_dim] + [head.hidden] * (head.layers - 1) + [head.bottleneck, head.prototypes]
    return 2.0 * sum(a * b for a, b in itertools.pairwise(widths))
