"""ZeRO-3 training from one CPU process to many nodes, by the same calls.

Weights, gradients, fp32 masters and both AdamW moments are partitioned over the ranks; so are the teacher and its fp32
moving average. On CUDA the weights are fp16 with dynamic loss scaling (bf16 by choice), on a CPU fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import VitrailError
from components.training.ranks.distributed import World, sum_
from components.training.sharded.ema import ShardedEMA
from components.training.sharded.engine_params import DTYPES, EngineParams, pick_precision
from components.training.sharded.zero import (
    MOMENTS,
    SCALER,
    cut,
    deepspeed_for,
    quiet,
    reduce_in_fp32,
    regather,
    settings,
)


@dataclass(frozen=True)
class StepReport:
    """What a step did: gradient norms before clipping by sub-module, and whether it was skipped as non-finite."""

    norms: dict[str, float]
    skipped: bool
    loss_scale: float
    bad_losses: int = 0  # micro-batches, over all ranks, whose loss was not finite


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
        self._deepspeed = deepspeed_for(world.device)
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
            reduce_in_fp32(self._zero, own, world.device)
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
        self.ema = ShardedEMA(self._masters, targets, lambda: regather(self.average.optimizer))
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
        regather(frozen.optimizer)

    def close(self) -> None:
        """Free what this engine holds, for another to take its place; it is of no use afterwards.

        DeepSpeed's hooks keep engines alive for good, so their tensors are let go one by one.
        """
        modules = [engine.module for engine in (self.student, self.average, *self._frozen)]
        with quiet():
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
        with quiet():
            if any(isinstance(part, tuple(self._whole)) for part in module.modules()):
                self._deepspeed.utils.set_z3_leaf_modules(module, self._whole)
            engine, *_ = self._deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=settings(self.params, self.world, self.precision, self._batch),
                dist_init_required=None,
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
        with self._refusals(), quiet():
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
        """Bytes of this rank's shards, as its tensors are: what ``plan`` predicts (components.training.costs)."""

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
        regather(self._zero)
