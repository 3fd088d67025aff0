"""The only module that imports DeepSpeed: its settings, and what ZeRO-3 leaves to its user."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.deferred_imports import absent
from components.training.ranks.distributed import World
from components.training.sharded.engine_params import EngineParams, Precision

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW

# What DeepSpeed's DynamicLossScaler counts; a static scaler has none of it but the scale.
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed's and its compiler probes' chatter kept off the user's terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("DeepSpeed", "root", "torch.distributed")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for logger, level in zip(loggers[1:], levels[1:], strict=True):
        logger.setLevel(level)


def deepspeed_for(device: torch.device) -> Any:
    """The package, told the device before it looks for one, with no C++ built on first use."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    # Its autotuner, which nothing here uses, would import MLflow: two seconds in ranks that record nothing.
    with quiet(), absent("mlflow"):
        import deepspeed
        import deepspeed.ops

        _without_compiler()
        # Ranks of one machine would otherwise compile a shared-memory all-reduce when the first group is made.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls a collective by its old name, once a step.
    warnings.filterwarnings("ignore", message=".*reduce_scatter_tensor.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    return deepspeed


def _without_compiler() -> None:
    """Import Muon, which every engine asks for and nothing here uses, without torch's compiler: that takes seconds."""
    with contextlib.suppress(ImportError):  # where DeepSpeed has it elsewhere, or not at all, an engine starts later
        from deepspeed.runtime import compiler

        own, compiler.compile = compiler.compile, lambda: lambda function: function
        try:
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        finally:
            compiler.compile = own


def settings(params: EngineParams, world: World, precision: Precision, batch: int) -> dict[str, Any]:
    """DeepSpeed's configuration; ``batch``: images a rank and micro-batch."""
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": world.device.type == "cuda",
        "contiguous_gradients": True,
        "stage3_param_persistence_threshold": 100_000,
        # Buckets of DeepSpeed's default size would be allocated whole, 2 GB, for the smallest model.
        "reduce_bucket_size": 50_000_000 if world.device.type == "cuda" else 4_000_000,
    }
    if world.size == 1:
        # Nothing to partition over: keep every weight gathered instead of copying it at each use.
        zero |= {"stage3_param_persistence_threshold": 2**40, "stage3_max_live_parameters": 2**40}
    communication = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}[precision]
    return {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": params.accumulation,
        "zero_optimization": zero | params.zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # done here, by sub-module
        "steps_per_print": 2**40,
        "wall_clock_breakdown": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32" if params.reduce_dtype == "fp32" else communication,
        "fp16": {
            "enabled": precision == "fp16",
            "initial_scale_power": params.loss_scale_power,
            "loss_scale_window": params.loss_scale_window,
            "hysteresis": 1,
            "min_loss_scale": 1,
        },
        "bf16": {"enabled": precision == "bf16"},
    }


def cut(whole: Tensor, length: int, rank: int) -> Tensor:
    """Elements ``rank * length`` on of flattened ``whole``, zero-padded to ``length``."""
    flat = whole.reshape(-1)
    part = flat[rank * length : (rank + 1) * length]
    return torch.nn.functional.pad(part, (0, length - part.numel()))


def regather(zero: Any) -> None:
    """Copies that ZeRO-3 keeps besides the shards are renewed from them: it never gathers what it holds.

    These are small parameters, held whole, and ZeRO++'s second partition within a node, made anew on the next use.
    """
    kept, offload = zero.persistent_parameters, getattr(zero, "parameter_offload", zero)
    if kept:
        offload.partition_all_parameters()
        kept[0].all_gather(kept)
    for parameter in offload.module.parameters():
        parameter.ds_secondary_tensor = None


def reduce_in_fp32(zero: Any, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Let ZeRO-3 sum the gradients of ``parameters`` over the ranks in fp32, all others in its communication type.

    DeepSpeed 0.19 keeps one bucket a type and asks ``get_param_comm_dtype`` which one a parameter's gradient goes
    into (deepspeed/runtime/zero/stage3.py, ``reduce_independent_p_g_buckets_and_remove_grads``), but fills in more than
    one type for torch's autocast only. Here the second bucket is added and the question answered.
    """
    usual = zero.communication_data_type
    if not parameters or usual == torch.float32:
        return
    ours = {id(parameter) for parameter in parameters}
    buffer = torch.empty(zero.reduce_bucket_size, dtype=torch.float32, device=device)
    zero.ipg_buckets[torch.float32] = type(zero.ipg_buckets[usual])(buffer=buffer)
    zero.get_param_comm_dtype = lambda parameter: torch.float32 if id(parameter) in ours else usual
