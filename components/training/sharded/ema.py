"""The teacher's moving average, kept where each rank's shard of the student's masters is: no weight is ever gathered.

With 16-bit weights the update ``(1 - m) * student`` of a late teacher (m = 0.9995 and above) is smaller than half a
unit of the weight and would be lost, so the average is an fp32 shard a rank, updated from the optimizer's fp32
masters and then rounded into the teacher's own shard (DINOv2's recipe keeps fp32 shards for the same reason).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class ShardedEMA:
    """fp32 moving averages of equally partitioned shards, by parameter name.

    Args:
        masters: the student's fp32 shards on this rank (views that the optimizer updates in place), each 1-d.
        targets: the teacher's shards, of its own dtype and the same lengths; written on every update.
        published: called after the targets were written (the engine refreshes what it holds gathered).

    Raises:
        ValueError: student and teacher do not have the same parameters, or shards of different length.
    """

    def __init__(
        self, masters: Mapping[str, Tensor], targets: Mapping[str, Tensor], published: Callable[[], None] | None = None
    ) -> None:
        if masters.keys() != targets.keys():
            odd = sorted(masters.keys() ^ targets.keys())[:3]
            raise ValueError(f"student and teacher do not match: {', '.join(odd)} in only one of the two")
        for name, master in masters.items():
            if master.numel() != targets[name].numel():
                raise ValueError(f"{name}: student shard of {master.numel()}, teacher shard of {targets[name].numel()}")
        self.names = list(masters)
        self._masters = [masters[name] for name in self.names]
        self._targets = [targets[name] for name in self.names]
        self._published = published
        self.shards = [master.detach().clone() for master in self._masters]
        self.publish()

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """``average = momentum * average + (1 - momentum) * student``, then round into the teacher."""
        torch._foreach_mul_(self.shards, momentum)
        torch._foreach_add_(self.shards, self._masters, alpha=1.0 - momentum)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write the averages into the teacher's shards."""
        torch._foreach_copy_(self._targets, self.shards)
        if self._published is not None:
            self._published()

    def state(self) -> dict[str, Tensor]:
        """This rank's fp32 shards by parameter name."""
        return dict(zip(self.names, self.shards, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over shards that :meth:`state` gave."""
        for name, shard in zip(self.names, self.shards, strict=True):
            shard.copy_(state[name])
        self.publish()
