"""Can this machine train this preset? Rough memory arithmetic, in milliseconds, before any data is touched."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import VitrailError
from components.learning.blocks import swiglu_hidden
from components.learning.heads import HeadConfig
from components.learning.vit import ViTConfig
from components.params import load_params
from components.training.costs.memory import embedding_layers, memory_per_rank, states_per_rank, tokens_per_rank
from components.training.params import TrainingParams
from components.training.ranks.distributed import launched_rank

__all__ = ["memory_per_rank", "states_per_rank", "tokens_per_rank"]  # here, too, for those who ask what fits

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What a run finds."""

    gpus: int
    gpu_bytes: int  # of the smallest; 0 without
    gpu_name: str
    cores: int
    memory: int  # bytes

    def __str__(self) -> str:
        what = f"{self.gpus} x {self.gpu_name} of {self.gpu_bytes / GB:.0f} GB" if self.gpus else "no CUDA device"
        return f"{what}, {self.cores} cores, {self.memory / GB:.0f} GB of memory"


def this_machine() -> Machine:
    """The CUDA devices, cores and memory here (a container's limit goes before the machine's)."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(i) for i in range(count)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
        memory = min(memory, int(limit)) if limit.isdigit() else memory
    except OSError:
        limit = "max"  # no control group: the machine's own memory counts
    return Machine(
        count,
        min((s.total_memory for s in sizes), default=0),
        sizes[0].name if sizes else "",
        len(os.sched_getaffinity(0)),
        memory,
    )


def count_backbone(vit: ViTConfig) -> int:
    """Parameters of the backbone."""
    d = vit.embed_dim
    hidden = swiglu_hidden(d, vit.mlp_ratio) if vit.ffn == "swiglu" else int(d * vit.mlp_ratio)
    ffn = d * 2 * hidden + 2 * hidden + hidden * d + d if vit.ffn == "swiglu" else 2 * d * hidden + hidden + d
    attention = d * 3 * d + (3 * d if vit.qkv_bias else 0) + d * d + d
    block = attention + ffn + 4 * d + (0 if vit.layerscale_init is None else 2 * d)
    patches = (vit.image_size // vit.patch_size) ** 2
    embed = sum(inputs * outputs + outputs for inputs, outputs, _ in embedding_layers(vit))
    embeddings = embed + d * (1 + patches) + d + d + vit.registers * d
    return embeddings + vit.depth * block + 2 * d


def count_head(in_dim: int, head: HeadConfig) -> int:
    """Parameters of a projection head."""
    widths = [in_dim] + [head.hidden] * (head.layers - 1) + [head.bottleneck]
    mlp = sum(a * b + b for a, b in itertools.pairwise(widths))
    return mlp + head.prototypes * head.bottleneck + head.prototypes


def count_parameters(params: TrainingParams) -> dict[str, int]:
    """Parameters of backbone and heads."""
    dim = params.vit.embed_dim
    counts = {"backbone": count_backbone(params.vit), "dino_head": count_head(dim, params.heads.dino)}
    if params.heads.ibot is not None:
        counts["ibot_head"] = count_head(dim, params.heads.ibot)
    return counts


def on_gpu(params: TrainingParams, machine: Machine) -> bool:
    """Whether the run is to be on CUDA devices."""
    return params.engine.device.startswith("cuda") or (params.engine.device == "auto" and machine.gpus > 0)


def sixteen_bit(params: TrainingParams, gpu: bool) -> bool:
    """Whether weights are held in 16 bits."""
    return params.engine.precision in ("fp16", "bf16") or (params.engine.precision == "auto" and gpu)


def misfit(params: TrainingParams, machine: Machine, ranks: int = 1, teacher: int = 0, here: int | None = None) -> str:
    """Why ``ranks`` processes, ``here`` of them (all) on ``machine``, cannot train ``params``; "" if they can."""
    gpu, here = on_gpu(params, machine), here or ranks
    if not gpu and params.engine.precision == "fp16":
        return "engine.precision is fp16, which needs a CUDA GPU; on a CPU use fp32, bf16 or auto"
    sixteen = sixteen_bit(params, gpu)
    need = sum(memory_per_rank(params, ranks, sixteen, teacher, gpu).values())
    if not gpu:
        each = f" in each of {here} processes" if here > 1 else ""
        return "" if here * need <= 0.9 * machine.memory else f"needs about {need / GB:.1f} GB of memory{each}"
    alone, eight = (sum(memory_per_rank(params, n, sixteen, teacher, gpu).values()) / GB for n in (1, 8))
    wanted = f"needs CUDA GPUs: one of {alone:.0f} GB, or {eight:.0f} GB on each of 8"
    if not machine.gpus:
        return wanted
    if need <= 0.95 * machine.gpu_bytes:
        return ""
    hint = ""
    if here < machine.gpus and not misfit(params, machine, ranks // here * machine.gpus, teacher, machine.gpus):
        hint = f"; a process on each of the {machine.gpus} GPUs here has room: run.processes: auto, or torchrun"
    return f"{wanted} (this run has {ranks} {'process' if ranks == 1 else 'processes'}){hint}"


def fitting(presets: Mapping[str, TrainingParams], machine: Machine, ranks: int = 1) -> list[str]:
    """Names of the presets that can be trained on ``machine`` by ``ranks`` processes."""
    return [name for name, params in presets.items() if not misfit(params, machine, ranks)]


def require(path: Path, params: TrainingParams, ranks: int = 1, teacher: int = 0, here: int | None = None) -> None:
    """Nothing when ``ranks`` processes on machines like this one can train the preset ``params`` of file ``path``.

    Args:
        teacher: parameters of a frozen teacher.
        here: processes on this machine; as the launcher says when left out.

    Raises:
        VitrailError: they cannot; the line says what is needed, what was found and which presets beside ``path`` fit.
    """
    machine = this_machine()
    fault = misfit(params, machine, ranks, teacher, here or min(ranks, launched_rank().local_size))
    if fault:
        presets = {p.stem: load_params(p, type(params)) for p in sorted(path.parent.glob("*.yaml"))}
        fits = ", ".join(fitting(presets, machine, ranks)) or "none"
        raise VitrailError(f"{path}: {fault}; found {machine}; presets that fit here: {fits}")
