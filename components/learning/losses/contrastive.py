"""Contrastive loss: the views of an image find one another among those of the batch (InfoNCE, arXiv 1807.03748).

With two views an image it is the NT-Xent loss of SimCLR (arXiv 2002.05709, section 2.1). With more, each view has
several positives, and the loss is the mean over them (arXiv 2004.11362, equation 2, an image being a class).
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from components.learning.losses.collective import gather


def contrastive_loss(views: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean over views and their positives of ``-log softmax(cosine / temperature)``, in fp32 or finer.

    The softmax is over all other views of all ranks; the view itself is left out. A rank computes the rows of its own
    views. Gradients reach the views of all ranks, so that the ranks' mean has the gradient of the whole batch's loss.

    Args:
        views: ``[V, B, D]``: V views, at least two, of B images; the same image at the same place of each.
        temperature: more than 0.
        group: ranks that each hold as many images; None: this device alone.

    Returns:
        A scalar. It is ln(number of other views) where all vectors are equal.
    """
    with torch.autocast(views.device.type, enabled=False):  # it would turn the products below into 16 bits again
        count, images, _ = views.shape
        own = F.normalize(views.to(torch.promote_types(views.dtype, torch.float32)).flatten(0, 1), dim=-1)
        everyone = gather(own, group)
        rows, first = len(own), 0 if group is None else dist.get_rank(group) * len(own)
        here = torch.arange(rows, device=own.device)
        similarity = own @ everyone.T / temperature
        self_excluded = similarity.index_put((here, here + first), similarity.new_tensor(-torch.inf))
        others = torch.logsumexp(self_excluded, dim=1)
        # positives: this image's places in the other views
        shifts = images * torch.arange(1, count, device=own.device)
        partners = first + (here[:, None] + shifts[None, :]) % rows
        return (others - similarity.gather(1, partners).mean(1)).mean()


def chance_level(views: int) -> float:
    """The loss of vectors that are all equal: ln of the number of other views, of ``views`` in a batch of all ranks."""
    return math.log(views - 1)
