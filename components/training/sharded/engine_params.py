"""How the numbers of training are held and moved: the engine's parameters, and the precision that a device gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator

from components.errors import VitrailError
from components.params import CHANGES, NEUTRAL, Effect, Strict

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _quantised(zero: Mapping[str, Any]) -> dict[str, Any]:
    """What of DeepSpeed's ``zero_optimization`` changes results: ZeRO++ rounds what it sends."""
    return {key: value for key, value in zero.items() if key.startswith("zero_quantized")}


class EngineParams(Strict):
    """How the numbers are held and moved; ``device: auto`` is CUDA where there is one."""

    device: Annotated[str, NEUTRAL] = "auto"
    precision: Annotated[Literal["auto", "fp32", "fp16", "bf16"], CHANGES] = "auto"  # auto: fp16 on CUDA, fp32 on a CPU
    accumulation: Annotated[int, NEUTRAL] = Field(1, ge=1, le=1_000_000)  # micro-batches a step; see run.batch
    # gradient norm of each sub-module on its own (DINOv2's code); 0: none
    clip: Annotated[float, CHANGES] = Field(3.0, ge=0, le=1e6)
    loss_scale_power: Annotated[int, CHANGES] = Field(16, ge=0, le=32)  # fp16: the first loss scale is 2**this
    # fp16: steps without overflow before the scale doubles
    loss_scale_window: Annotated[int, CHANGES] = Field(1000, ge=1, le=1_000_000)
    # Non-finite steps in a row before the run stops. fp16 overflows that still lower the loss scale do not count: from
    # 2**32 a healthy run may need more of them until its gradients fit
    max_skipped: Annotated[int, NEUTRAL] = Field(20, ge=1, le=1000)
    # Type of gradients on the wire: the weights' own but fp32 for the heads (DINOv2's), the weights' own, or fp32
    reduce_dtype: Annotated[Literal["heads_fp32", "same", "fp32"], CHANGES] = "heads_fp32"
    # passed to DeepSpeed's zero_optimization (ZeRO++ among it)
    zero: Annotated[dict[str, Any], Effect(True, _quantised)] = Field(default_factory=dict)
    # seconds without a sign of life of a rank on another host: it is lost
    silence: Annotated[float, NEUTRAL] = Field(120.0, gt=0, le=1_000_000)

    @field_validator("zero")
    @classmethod
    def _third_stage(cls, zero: dict[str, Any]) -> dict[str, Any]:
        if zero.get("stage", 3) != 3:
            raise ValueError(f"stage {zero['stage']}: training here is ZeRO-3; leave the key out")
        return zero


def pick_precision(asked: str, device: torch.device) -> Precision:
    """The precision for ``device``.

    Raises:
        VitrailError: fp16 or bf16 was asked of a device that has none.
    """
    if asked == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if asked == "fp16" and device.type == "cpu":
        raise VitrailError("engine.precision: this CPU run has no fp16 units; use fp32 (or bf16), or a CUDA device")
    if asked == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise VitrailError("engine.precision: this GPU has no bf16; use fp16")
    return asked  # type: ignore[return-value]
