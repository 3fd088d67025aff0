"""KoLeo: spreads features over the sphere by the distance to the nearest other (arXiv 1806.03198, section 3.3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from components.learning.losses.collective import gather


def koleo_loss(features: Tensor, group: dist.ProcessGroup | None = None, eps: float = 1e-8) -> Tensor:
    """``-mean log(distance to the nearest neighbour + eps)`` of L2-normalised rows, in fp32.

    In fp16 ``eps`` would be 0 and the loss infinite for two equal images, hence fp32 whatever comes in.

    Args:
        features: class tokens before the head, ``[B, D]``, or ``[C, B, D]`` for C crops: neighbours are sought within
            a crop only (two views of one image are never neighbours) and the crops' losses are summed.
        group: seek neighbours on all its ranks (each holding as many rows); None: on this device alone.
        eps: keeps the logarithm finite.

    Returns:
        A scalar; 0 where a row has no other to be compared with.
    """
    if features.dim() == 3:
        return torch.stack([koleo_loss(crop, group, eps) for crop in features]).sum()
    # autocast would turn the products below into 16 bits again
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
        everyone = gather(own, group)
        if everyone.shape[0] < 2:
            return own.sum() * 0.0
        offset = 0 if group is None else dist.get_rank(group) * own.shape[0]
        with torch.no_grad():
            similarity = own @ everyone.T
            here = torch.arange(own.shape[0], device=own.device)
            similarity[here, here + offset] = -torch.inf
            nearest = similarity.argmax(1)
        distance = torch.linalg.vector_norm(own - everyone[nearest], dim=1)
        return -torch.log(distance + eps).mean()
