"""The only module that imports DeepSpeed: ZeRO-3 training from one CPU process to many nodes, by the same calls.

Weights, gradients, fp32 masters and both AdamW moments are partitioned over the ranks; so are the teacher and its fp32
moving average. On CUDA the weights are fp16 with dynamic loss scaling (bf16 by choice), on a CPU fp32.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from components.errors import VitrailError
from components.params import CHANGES, NEUTRAL, Effect, Strict
from components.training.distributed import World, sum_
from components.training.ema import ShardedEMA

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


@dataclass(frozen=True)
class StepReport:
    """What a step did: gradient norms before clipping by sub-module, and whether it was skipped as non-finite."""

    norms: dict[str, float]
    skipped: bool
    loss_scale: float
    bad_losses: int = 0  # micro-batches, over all ranks, whose loss was not finite


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _deepspeed(device: torch.device) -> Any:
    """The package, told the device before it looks for one, with no C++ built on first use."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    with _quiet():
        import deepspeed
        import deepspeed.ops

        # Ranks of one machine would otherwise compile a shared-memory all-reduce when the first group is made.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls a collective by its old name, once a step.
    warnings.filterwarnings("ignore", message=".*reduce_scatter_tensor.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    return deepspeed


@dataclass(frozen=True)
class Parts:
    """How the parts of a student are treated. Sub-modules are named as the student's children."""

    batch: int  # images a rank and micro-batch (DeepSpeed wants to know)
    clipped: Sequence[str] = ()  # gradients are clipped within each of these
    # Kinds of modules whose weights are gathered and reduced together, not layer by layer: fewer, larger messages, and
    # half the cost of ZeRO-3's hooks (vitt on a CPU: 7 % over a plain loop instead of 13 %).
    whole: Sequence[type[nn.Module]] = ()
    heads: Sequence[str] = ()  # their gradients are summed in fp32 under ``reduce_dtype: heads_fp32``


class Engine:
    """A student under ZeRO-3 with AdamW, its moving average in a second ZeRO-3 module, and any frozen ones.

    Args:
        student: the module to train, fp32 on the CPU, equal on every rank; called through :attr:`student`.
        average: a module with the same parameters that the moving average is written into.
        groups: AdamW's groups, each with ``params`` and the keys ``lr_multiplier``, ``wd_multiplier``,
            ``is_last_layer``, as ``components.learning.param_groups`` makes them.
        parts: how its parts are treated.
    """

    def __init__(
        self,
        student: nn.Module,
        average: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        params: EngineParams,
        world: World,
        parts: Parts,
    ) -> None:
        self._whole = list(parts.whole)
        self._frozen: list[Any] = []
        self.params, self.world = params, world
        self.precision = pick_precision(params.precision, world.device)
        self.dtype = DTYPES[self.precision]
        self._batch = parts.batch
        self._tried = False  # a whole step has gone well
        self._deepspeed = _deepspeed(world.device)
        with self._refusals():
            self._build(student, average, groups, parts)

    def _build(
        self,
        student: nn.Module,
        average: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        parts: Parts,
    ) -> None:
        clipped, heads = parts.clipped, parts.heads
        world, params = self.world, self.params
        initial = {name: p.detach().float().cpu().clone() for name, p in student.named_parameters()}
        optimizer = torch.optim.AdamW(
            [dict(group) for group in groups],
            lr=0.0,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            fused=world.device.type == "cuda",
        )
        self.student = self._initialize(student, optimizer)
        self._zero = self.student.optimizer
        # At the smallest scale it would raise an exception of its own; here max_skipped is what ends a run.
        if hasattr(self._zero.loss_scaler, "raise_error_at_min_scale"):
            self._zero.loss_scaler.raise_error_at_min_scale = False
        self._parameters = dict(self.student.module.named_parameters())
        self._masters = {name: self._zero.get_local_fp32_param(p) for name, p in self._parameters.items()}
        if params.reduce_dtype == "heads_fp32" and self.precision != "fp32":
            own = [p for name, p in self._parameters.items() if name.split(".", 1)[0] in heads]
            _reduce_in_fp32(self._zero, own, world.device)
        if self.precision != "fp32":
            # DeepSpeed makes its masters from the rounded weights; the exact ones are known here.
            self._load_masters({name: self.cut(name, whole) for name, whole in initial.items()})
        children = dict(student.named_children())
        self._clip_names = [name for name in clipped if name in children]
        self._clip_of = {
            f"{child}.{name}": index
            for index, child in enumerate(self._clip_names)
            for name, _ in children[child].named_parameters()
        }
        self.average = self._initialize(average.requires_grad_(False).eval())
        targets = {name: p.ds_tensor.data for name, p in self.average.module.named_parameters()}
        self.ema = ShardedEMA(self._masters, targets, lambda: _regather(self.average.optimizer))
        self._skipped_in_a_row = 0
        self._bad_losses = torch.zeros(1, device=world.device)  # of this step, on this rank

    def frozen(self, module: nn.Module) -> Any:
        """``module`` partitioned like the others, for inference only."""
        self._frozen.append(self._initialize(module.requires_grad_(False).eval()))
        return self._frozen[-1]

    @torch.no_grad()
    def write(self, frozen: Any, shards: Mapping[str, Tensor]) -> None:
        """Fill a module that :meth:`frozen` gave from this rank's ``shards``, cut as this engine's own."""
        for name, parameter in frozen.module.named_parameters():
            parameter.ds_tensor.data.copy_(shards[name])
        _regather(frozen.optimizer)

    def close(self) -> None:
        """Free what this engine holds, for another to take its place; it is of no use afterwards.

        DeepSpeed's hooks keep engines alive for good, so their tensors are let go one by one.
        """
        modules = [engine.module for engine in (self.student, self.average, *self._frozen)]
        with _quiet():
            for engine in (self.student, self.average, *self._frozen):
                engine.destroy()
        for module in modules:
            for parameter in module.parameters():
                parameter.data = parameter.ds_tensor.data = torch.empty(0, device=parameter.device)
                parameter.grad = None
        self._masters, self.ema.shards, self._frozen = {}, [], []
        self._zero.optimizer.state.clear()
        self._zero.optimizer.param_groups.clear()
        vars(self._zero).clear()  # flat masters, gradients and buckets
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()

    def _initialize(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
        with _quiet():
            if any(isinstance(part, tuple(self._whole)) for part in module.modules()):
                self._deepspeed.utils.set_z3_leaf_modules(module, self._whole)
            engine, *_ = self._deepspeed.initialize(
                model=module, optimizer=optimizer, config=self._config(), dist_init_required=None
            )
        if optimizer is None:
            engine.eval()
        return engine

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Until a step has gone well, any fault under ``engine.zero`` is taken for a value that DeepSpeed cannot take.

        It answers some values by a check, others by whatever breaks: a missing attribute, a compiler, a division.

        Raises:
            VitrailError: in the place of such a fault; names the keys.
        """
        try:
            yield
        except VitrailError:
            raise
        except Exception as fault:
            if self._tried or not self.params.zero or isinstance(fault, torch.cuda.OutOfMemoryError):
                raise
            said, where = " ".join(str(fault).split()), f"{self.world.size} ranks of {self.world.device.type}"
            asked = ", ".join(f"{key}: {value}" for key, value in self.params.zero.items())
            kind = "" if isinstance(fault, ValueError | AssertionError) else f"{type(fault).__name__}: "
            raise VitrailError(f"engine.zero ({asked}): DeepSpeed refuses it on {where}: {kind}{said[:200]}") from None

    def _config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": 3,
            "overlap_comm": self.world.device.type == "cuda",
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": 100_000,
            # Buckets of DeepSpeed's default size would be allocated whole, 2 GB, for the smallest model.
            "reduce_bucket_size": 50_000_000 if self.world.device.type == "cuda" else 4_000_000,
        }
        if self.world.size == 1:
            # Nothing to partition over: keep every weight gathered instead of copying it at each use.
            zero |= {"stage3_param_persistence_threshold": 2**40, "stage3_max_live_parameters": 2**40}
        communication = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}[self.precision]
        return {
            "train_micro_batch_size_per_gpu": self._batch,
            "gradient_accumulation_steps": self.params.accumulation,
            "zero_optimization": zero | self.params.zero,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # done here, by sub-module
            "steps_per_print": 2**40,
            "wall_clock_breakdown": False,
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32" if self.params.reduce_dtype == "fp32" else communication,
            "fp16": {
                "enabled": self.precision == "fp16",
                "initial_scale_power": self.params.loss_scale_power,
                "loss_scale_window": self.params.loss_scale_window,
                "hysteresis": 1,
                "min_loss_scale": 1,
            },
            "bf16": {"enabled": self.precision == "bf16"},
        }

    # -- one step ---------------------------------------------------------------------------------------------------

    def set_rates(
        self, lr: float, weight_decay: float, last_layer_lr: float | None = None, backbone_share: float = 1.0
    ) -> None:
        """This step's rates; every group's multipliers are applied here.

        ``backbone_share``: of the rate, for groups marked ``is_backbone``. At 0 they stay exactly as they are, for
        AdamW's decay is times the rate, too.
        """
        for group in self._zero.optimizer.param_groups:
            rate = last_layer_lr if last_layer_lr is not None and group.get("is_last_layer") else lr
            rate *= backbone_share if group.get("is_backbone") else 1.0
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
            group["weight_decay"] = weight_decay * group.get("wd_multiplier", 1.0)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate one micro-batch's ``loss`` (the engine scales it)."""
        self._bad_losses += (~torch.isfinite(loss.detach())).float()
        with self._refusals():
            self.student.backward(loss)

    def micro_step(self) -> None:
        """End a micro-batch that is not the step's last: its gradients stay and add up."""
        self.student.step()

    def step(self) -> StepReport:
        """Clip and apply the gradients; a loss or gradient that is not finite on any rank skips the step on every rank.

        Overflowing fp16 gradients lower the loss scale; a loss that is not finite has nothing to do with the scale,
        which is then what it was before.

        Raises:
            VitrailError: too many steps in a row were skipped.
        """
        scaler = self._zero.loss_scaler
        before = {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)}
        scale = float(self._zero.loss_scale)
        norms, bad = self._clip(scale)
        if bad:
            # The gradients of a bad loss may still be finite; this makes DeepSpeed skip the step in every precision.
            self._zero.averaged_gradients[0][0].fill_(float("nan"))
        with self._refusals(), _quiet():
            self.student.step()
        self._tried = True
        skipped = bool(self._zero.overflow)
        if bad:
            for key, value in before.items():
                setattr(scaler, key, value)
        if not skipped:
            self._skipped_in_a_row = 0
        elif float(self._zero.loss_scale) == scale:  # else: an overflow, and the next scale is worth a try
            self._skipped_in_a_row += 1
        return StepReport(norms, skipped, float(self._zero.loss_scale), bad)

    def require_progress(self) -> None:
        """Nothing, unless ``max_skipped`` steps in a row were skipped, besides those that lowered the loss scale.

        Raises:
            VitrailError: they were.
        """
        if self._skipped_in_a_row >= self.params.max_skipped:
            raise VitrailError(
                f"{self._skipped_in_a_row} steps in a row had non-finite losses or gradients (loss scale "
                f"{float(self._zero.loss_scale):g}); lower schedule.learning_rate, or use engine.precision: bf16; the "
                "last checkpoint is kept"
            )

    @torch.no_grad()
    def _clip(self, scale: float) -> tuple[dict[str, float], int]:
        """Scale each sub-module's gradient shards to the norm limit.

        Returns:
            The norms before (nan or inf when non-finite) by sub-module, and the number of bad losses on all ranks.
        """
        grads: list[list[Tensor]] = [[] for _ in self._clip_names]
        owner = {id(p): self._clip_of.get(name) for name, p in self._parameters.items()}
        # averaged_gradients: by optimizer sub-group, this rank's part of each parameter's mean gradient, in fp32.
        for index, group in enumerate(self._zero.fp16_groups):
            for parameter, grad in zip(group, self._zero.averaged_gradients[index], strict=True):
                which = owner[id(parameter)]
                if which is not None:
                    grads[which].append(grad)
        squares = [torch.stack(torch._foreach_norm(part)).float().square().sum() for part in grads]
        # one all-reduce, one wait for the device: [sub-modules + 1]
        *totals, bad = sum_(torch.stack([*squares, self._bad_losses[0]])).tolist()
        self._bad_losses.zero_()
        norms = [total**0.5 / scale for total in totals]
        for part, norm in zip(grads, norms, strict=True):
            if 0 < self.params.clip < norm < float("inf"):
                torch._foreach_mul_(part, self.params.clip / (norm + 1e-6))
        return dict(zip(self._clip_names, norms, strict=True)), round(bad)

    # -- state ------------------------------------------------------------------------------------------------------

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor of parameter ``name``, flat and zero-padded as ZeRO pads it."""
        return cut(whole, self._masters[name].numel(), self.world.rank)

    def sizes(self) -> dict[str, int]:
        """Elements of every whole parameter."""
        return {name: int(p.ds_numel) for name, p in self._parameters.items()}

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the whole parameters."""
        return {name: torch.Size(p.ds_shape) for name, p in self._parameters.items()}

    def bytes_held(self) -> dict[str, int]:
        """Bytes of this rank's shards, as its tensors are: what ``plan`` predicts (components.training.capability)."""

        def size(tensors: Iterable[Tensor]) -> int:
            return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

        flat, inner = self._zero.fp32_partitioned_groups_flat, self._zero.optimizer.state
        return {
            "student": size(p.ds_tensor for p in self._parameters.values()),
            "teacher": size(p.ds_tensor for p in self.average.module.parameters()),
            "masters": size(flat),
            "average": size(self.ema.shards),
            "moments": size(inner[part][key] for part in flat for key in MOMENTS if part in inner),
            "gradients": size([self._zero.grad_partitions_flat_buffer]),
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """This rank's shards, flat fp32, keys ``master/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME``, ``ema/NAME``, and
        the small rest (loss scaler, AdamW's step count), which is equal on every rank."""
        shards = {f"master/{name}": shard for name, shard in self._masters.items()}
        shards |= {f"ema/{name}": shard for name, shard in self.ema.state().items()}
        inner = self._zero.optimizer.state
        steps = [float(inner[flat]["step"]) for flat in self._zero.fp32_partitioned_groups_flat if flat in inner]
        if steps:
            for key in MOMENTS:
                for name, parameter in self._parameters.items():
                    shards[f"{key}/{name}"] = self._zero.get_local_fp32_param(parameter, key)
        scaler = self._zero.loss_scaler
        rest = {
            "adam_steps": steps[0] if steps else 0.0,
            "loss_scaler": {key: getattr(scaler, key) for key in SCALER if hasattr(scaler, key)},
            "skipped_in_a_row": self._skipped_in_a_row,
        }
        return {name: shard.detach() for name, shard in shards.items()}, rest

    @torch.no_grad()
    def load(self, shards: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave (cut for this number of ranks)."""
        if rest["adam_steps"]:
            for flat in self._zero.fp32_partitioned_groups_flat:
                self._zero.optimizer.state[flat] = {
                    "step": torch.tensor(rest["adam_steps"], device=flat.device if flat.is_cuda else "cpu"),
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }
            for key in MOMENTS:
                for name, parameter in self._parameters.items():
                    self._zero.get_local_fp32_param(parameter, key).copy_(shards[f"{key}/{name}"])
        for key, value in rest["loss_scaler"].items():
            setattr(self._zero.loss_scaler, key, value)
        self._skipped_in_a_row = int(rest["skipped_in_a_row"])
        self._load_masters({name: shards[f"master/{name}"] for name in self._masters})
        self.ema.load({name: shards[f"ema/{name}"] for name in self._masters})

    @torch.no_grad()
    def _load_masters(self, shards: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            self._masters[name].copy_(shards[name])
            parameter.ds_tensor.data.copy_(shards[name])
        _regather(self._zero)


MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW

# What DeepSpeed's DynamicLossScaler counts; a static scaler has none of it but the scale.
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def cut(whole: Tensor, length: int, rank: int) -> Tensor:
    """Elements ``rank * length`` on of flattened ``whole``, zero-padded to ``length``."""
    flat = whole.reshape(-1)
    part = flat[rank * length : (rank + 1) * length]
    return torch.nn.functional.pad(part, (0, length - part.numel()))


def _regather(zero: Any) -> None:
    """Copies that ZeRO-3 keeps besides the shards are renewed from them: it never gathers what it holds.

    These are small parameters, held whole, and ZeRO++'s second partition within a node, made anew on the next use.
    """
    kept, offload = zero.persistent_parameters, getattr(zero, "parameter_offload", zero)
    if kept:
        offload.partition_all_parameters()
        kept[0].all_gather(kept)
    for parameter in offload.module.parameters():
        parameter.ds_secondary_tensor = None


def _reduce_in_fp32(zero: Any, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
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
