"""LARS (You, Gitman and Ginsburg 2017): momentum SGD whose step is scaled, layer by layer, to the layer's norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Lars(Optimizer):
    """``v <- momentum v + lr x rate x (g + decay w)``, ``w <- w - v``, ``rate = trust |w| / (|g| + decay |w|)``.

    Groups with ``adapt: False`` (biases, norms) take plain momentum steps: rate 1. A layer of zero norm, as the last
    norms of residual branches are at first, or one without gradient has rate 1 as well.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": weight_decay, "trust": trust, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; ``closure`` is not supported by this optimizer."""
        if closure is not None:
            raise ValueError("Lars takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                change, rate = weight.grad, 1.0
                if group["adapt"]:
                    norm, slope = float(weight.norm()), float(change.norm())
                    if norm > 0 and slope > 0:
                        rate = group["trust"] * norm / (slope + group["decay"] * norm)
                change = change.add(weight, alpha=group["decay"])
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(change, alpha=group["lr"] * rate)
                weight.sub_(state["momentum"])


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels, decayed and adapted; vectors (biases, norms), neither."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "decay": weight_decay, "weight_decay": weight_decay, "adapt": True},
        {"params": vectors, "decay": 0.0, "weight_decay": 0.0, "adapt": False},
    ]
