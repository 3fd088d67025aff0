"""Memory of a rank by part, before anything is made: shards to the byte, what a step needs besides them by counting.

The counts follow what autograd keeps of components.learning.blocks and .heads; perf/plan.py holds them against the
peak of real runs.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

from components.learning.heads import HeadConfig
from components.learning.objective import HeadsParams
from components.learning.stochastic_depth import kept_samples
from components.learning.vit import ViTConfig
from components.training.params import TrainingParams

CUDA_CONTEXT = 1.5e9  # bytes: driver, libraries and allocator slack of a process on a GPU
CPU_PROCESS = 1.0e9  # bytes: interpreter, torch and DeepSpeed
BUCKET = {
    True: 50_000_000,
    False: 4_000_000,
}  # elements reduced at a time, on a GPU or not (components.training.sharded.zero)
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered at most (DeepSpeed's stage3_max_live_parameters)
PREFETCH = 50_000_000  # elements gathered ahead (its stage3_prefetch_bucket_size)


class Sizes(NamedTuple):
    """Elements of a network's parameters."""

    parameters: tuple[int, ...]
    backbone: int
    pieces: tuple[int, ...]  # of what is gathered and reduced together: blocks and heads

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parameters)


@functools.cache
def network_sizes(vit: ViTConfig, heads: HeadsParams) -> Sizes:
    """Sizes of the network, which is described and not made."""
    import torch

    from components.learning.blocks import Block
    from components.learning.heads import ProjectionHead
    from components.learning.vit import VisionTransformer

    with torch.device("meta"):
        made = [ProjectionHead(vit.embed_dim, head) for head in (heads.dino, heads.ibot) if head is not None]
        modules = [VisionTransformer(vit), *made]
    pieces = [part for module in modules for part in module.modules() if isinstance(part, Block | ProjectionHead)]
    return Sizes(
        tuple(p.numel() for module in modules for p in module.parameters()),
        sum(p.numel() for p in modules[0].parameters()),
        tuple(sum(p.numel() for p in piece.parameters()) for piece in pieces),
    )


def states_per_rank(params: TrainingParams, ranks: int, sixteen_bit: bool) -> dict[str, int]:
    """Bytes of a rank's shards by part, exactly (``Engine.bytes_held`` measures the same).

    ZeRO-3 cuts every parameter into equal parts and pads the last. Student and teacher are held in the training's
    type, beside fp32 masters (DeepSpeed makes them in fp32, too), average and moments; gradients add up in fp32.
    """
    shard = sum(-(-size // ranks) for size in network_sizes(params.vit, params.heads).parameters)
    width = 2 if sixteen_bit else 4
    return {
        "student": width * shard,
        "teacher": width * shard,
        "masters": 4 * shard,
        "average": 4 * shard,
        "moments": 8 * shard,
        "gradients": 4 * shard,
    }


def tokens_per_rank(params: TrainingParams) -> int:
    """Tokens of the student's crops in a micro-batch."""
    return sum(samples * tokens for samples, tokens in crop_groups(params))


def memory_per_rank(
    params: TrainingParams, ranks: int, sixteen_bit: bool, teacher: int = 0, gpu: bool | None = None
) -> dict[str, float]:
    """Bytes at the peak of a step by part: states exactly, the rest by count.

    The peak lies where backward begins, with all activations and logits alive, or, where a rank holds many parameters
    and few images, in the optimizer's step; what that needs beyond the other is a part of its own.

    Args:
        teacher: parameters of a frozen teacher, which is held besides the moving average.
        gpu: whether ranks are on GPUs; 16 bits are taken to mean that.
    """
    gpu = sixteen_bit if gpu is None else gpu
    sizes, states = network_sizes(params.vit, params.heads), states_per_rank(params, ranks, sixteen_bit)
    width = 2 if sixteen_bit else 4
    mixed = sixteen_bit and params.engine.reduce_dtype != "same"
    bucket = BUCKET[gpu] * (4 if params.engine.reduce_dtype == "fp32" else width + (4 if mixed else 0))
    # One process's shards are the weights. Several keep of the student what is used again soon, up to LIVE elements;
    # the teacher has let go of its own by then (perf/gathers.py). A gram teacher's pass comes while the student waits.
    gathered = 0 if ranks == 1 else min(sizes.total, LIVE + max(sizes.pieces) + PREFETCH)
    if params.gram is not None and ranks > 1:
        gathered += min(sizes.backbone, 2 * max(sizes.pieces) + PREFETCH)
    step = {
        "images": _images(params, width),
        "activations": _activations(params, width),
        "prototypes' logits": _heads(params, width),
        "patch similarities": _similarities(params),
        "gram teacher's pass": _gram_pass(params, width),
    }
    if params.gram is not None:
        teacher += sizes.backbone
    # Later, activations are gone: gradients are laid out to be cut and summed, then copied flat; AdamW makes square
    # roots and quotients where it is not fused into one kernel.
    later = max(min(width * sizes.total, bucket), states["gradients"] * (1 if gpu else 3))
    return {
        "student": states["student"],
        "teacher": states["teacher"],
        "masters": states["masters"],
        "average": states["average"],
        "AdamW moments": states["moments"],
        "gradients": states["gradients"],
        "frozen teacher": width * teacher / ranks,
        "gathered layers": width * gathered,
        # gradients on their way are laid out anew to be cut, while backward goes on
        "buffers": bucket + (min(width * sizes.total, bucket) if ranks > 1 else 0),
        **step,
        "reduction and optimizer, beyond these": max(0.0, later - sum(step.values())),
        "process": CUDA_CONTEXT if gpu else CPU_PROCESS,
    }


def scratch_bytes(params: TrainingParams) -> float:
    """Of a checkpoint: fp32 masters, average and AdamW's two moments, and the gram teacher in 16 bits."""
    sizes = network_sizes(params.vit, params.heads)
    return 16.0 * sizes.total + (2.0 * sizes.backbone if params.gram is not None else 0.0)


def crop_groups(params: TrainingParams) -> list[tuple[int, int]]:
    """(samples, tokens a sample) of the student's global and local crops in a micro-batch."""
    extra, patch, crops = 1 + params.vit.registers, params.vit.patch_size, params.augment
    found = [(2 * params.run.batch, extra + (crops.global_size // patch) ** 2)]
    if crops.locals:
        found.append((crops.locals * params.run.batch, extra + (crops.local_size // patch) ** 2))
    return found


def hidden_patches(params: TrainingParams) -> float:
    """Patches of a micro-batch that the iBOT loss is on, in the mean."""
    grid = (params.augment.global_size // params.vit.patch_size) ** 2
    return 2 * params.run.batch * params.patches_taught() * grid


def feed_forward_width(vit: ViTConfig) -> int:
    """Hidden features of a block's feed-forward part."""
    from components.learning.blocks import swiglu_hidden

    return swiglu_hidden(vit.embed_dim, vit.mlp_ratio) if vit.ffn == "swiglu" else int(vit.embed_dim * vit.mlp_ratio)


def embedding_layers(vit: ViTConfig) -> list[tuple[int, int, int]]:
    """Layers from pixels to tokens: inputs and outputs of a unit, and at how many places of a patch it is computed."""
    if vit.stem == "patch":
        return [(vit.in_channels * vit.patch_size**2, vit.embed_dim, 1)]
    from components.learning.stem import stem_channels

    widths = [vit.in_channels, *stem_channels(vit.patch_size, vit.embed_dim)]
    convolutions = [
        (9 * before, after, (vit.patch_size >> number) ** 2)
        for number, (first, after) in enumerate(itertools.pairwise(widths), 1)
        for before in (first, *[after] * vit.stem_extra)
    ]
    return [*convolutions, (widths[-1], vit.embed_dim, 1)]


def _images(params: TrainingParams, width: int) -> float:
    crops, batch, vit = params.augment, params.run.batch, params.vit
    pixels = 3 * batch * (2 * crops.global_size**2 + crops.locals * crops.local_size**2)
    # uint8, fp32 normalised, cast where that is another type, and cut into patches
    images = pixels * (1 + 4 + (width if width != 4 else 0) + width)
    if vit.stem == "patch":
        return images
    # each convolution's output before and after GELU
    units = 2 * sum(outputs * places for _, outputs, places in embedding_layers(vit)[:-1])
    patches = sum(samples * (tokens - 1 - vit.registers) for samples, tokens in crop_groups(params))
    return images + width * patches * units


def _activations(params: TrainingParams, width: int) -> float:
    """What backward needs of the blocks, in widths of a token a block.

    Attention's branch: the stream that its norm reads, the norm's output, q, k, v, attention's output (twice: crops of
    two sizes are joined again), the projection's output for LayerScale. Feed-forward: stream, norm, layers, output.
    """
    vit = params.vit
    scaled = 0 if vit.layerscale_init is None else 1
    feed_forward = (4 if vit.ffn == "swiglu" else 2) * feed_forward_width(vit) / vit.embed_dim
    attention = 1 + 1 + 3 + 1 + (1 if params.augment.locals else 0) + scaled
    block = attention + 1 + 1 + feed_forward + scaled
    groups, tokens = crop_groups(params), tokens_per_rank(params)
    kept = tokens
    if vit.drop_path:
        kept = sum(kept_samples(samples, vit.drop_path) * length for samples, length in groups)
    a_block = kept * block
    if vit.drop_path:
        a_block += tokens / max(vit.depth, 1)  # the stream itself is kept once, and copied where residuals are added
    whole = vit.depth * a_block
    if params.gram is None:
        # The last block's projection and feed-forward part see only the tokens that losses read.
        read = sum(samples for samples, _ in groups) + hidden_patches(params)
        whole -= max(0.0, kept - read) * (2 + feed_forward + 2 * scaled)
    if params.run.activation_checkpointing:
        whole = vit.depth * tokens + a_block  # the stream before every block, and one block computed again
    # first tokens, last norm's input and output, and a gradient of the stream with one layer's
    around = 4 * tokens
    return (whole + around) * vit.embed_dim * width


def _similarities(params: TrainingParams) -> float:
    """Gram anchoring, fp32: the student's and the teacher's similarities, their difference and its gradient."""
    if params.gram is None:
        return 0.0
    return 4 * 4 * 2 * params.run.batch * (params.augment.global_size // params.vit.patch_size) ** 4


def _gram_pass(params: TrainingParams, width: int) -> float:
    """Its crops, and the widest of its layers, of which nothing is kept: norm, features twice, output and stream."""
    if params.gram is None:
        return 0.0
    size = params.gram.size or params.augment.global_size
    tokens = 2 * params.run.batch * (1 + params.vit.registers + (size // params.vit.patch_size) ** 2)
    layer = tokens * (3 * params.vit.embed_dim + 2 * feed_forward_width(params.vit)) * width
    crops = 2 * params.run.batch * 3 * size**2 * (1 + 4 + 2 * width) if params.gram.size else 0
    return crops + layer


def _heads(params: TrainingParams, width: int) -> float:
    batch, masked = params.run.batch, hidden_patches(params)
    local = params.augment.locals * batch
    dino, ibot = params.heads.dino, params.heads.ibot
    if params.objective.kind == "contrastive":  # cosines of all views of a rank, three fp32 tables of them
        return _head(params, dino, width, 2 * batch + local, 0) + 3 * 4 * (2 * batch + local) ** 2
    if ibot is None:
        return _head(params, dino, width, 2 * batch + local + masked, 2 * batch + masked)
    both = _head(params, dino, width, 2 * batch + local, 2 * batch)
    return both + _head(params, ibot, width, masked, masked)


def _head(params: TrainingParams, head: HeadConfig, width: int, rows: float, taught: float) -> float:
    """Bytes of a head that sees ``rows`` tokens of the student and ``taught`` of the teacher."""
    hidden = (params.vit.embed_dim + 2 * head.hidden * (head.layers - 1) + 2 * head.bottleneck) * rows * width
    prototypes = 2 * head.prototypes * head.bottleneck * width  # normalised, and their gradient
    # student: logits, their fp32 form, a product with the targets and a gradient; teacher: targets, fp32
    logits = head.prototypes * (rows * (width + 4 + 4 + 4) + taught * 4)
    return hidden + prototypes + logits
