"""SSCD's loss (Pizzi et al. 2022, section 3): InfoNCE between copies + lambda x a differential-entropy term.

Both take the similarity of every row of a batch to every row, and say which rows match (show a common image). Pure
functions; the batch is the global one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def matches(sources: Tensor) -> Tensor:
    """[N, N] bool from ``sources`` [N, S]: whether two rows have an image in common. True on the diagonal."""
    return (sources[:, None, :, None] == sources[None, :, None, :]).flatten(2).any(2)


def info_nce(similarity: Tensor, match: Tensor, temperature: float) -> Tensor:
    """Mean over rows of the mean over a row's positives p of -log(e^s_p / (e^s_p + sum over negatives e^s_n)).

    No denominator holds the other positives (equation 2 with SimCLR's pairs; mixed images have several positives).

    Args:
        similarity: [N, N] cosines. match: [N, N] bool. temperature: divides the cosines.
    """
    own = torch.eye(len(match), dtype=torch.bool, device=match.device)
    positive = match & ~own
    scaled = similarity / temperature
    negatives = scaled.masked_fill(match, -torch.inf).logsumexp(1, keepdim=True)  # [N, 1]
    # -log(e^s / (e^s + e^L)) = softplus(L - s); the masked entries are kept out of the gradient, not only of the sum
    each = F.softplus(negatives - scaled).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    return (each.sum(1) / count.clamp(min=1))[count > 0].mean()


def entropy(similarity: Tensor, match: Tensor) -> Tensor:
    """Mean over rows of -log(distance to the nearest row of no common image) (Kozachenko-Leonenko; section 3.3).

    Distances are of unit vectors: squared, 2 - 2 cosine, held above 1e-6.
    """
    nearest = similarity.masked_fill(match, -2.0).amax(1)
    return -0.5 * (2 - 2 * nearest).clamp(min=1e-6).log().mean()


def copy_loss(descriptors: Tensor, sources: Tensor, temperature: float, weight: float) -> Tensor:
    """InfoNCE + ``weight`` x entropy of ``descriptors`` [N, d] (unit length); ``sources`` [N, S]: images in each."""
    similarity, match = descriptors @ descriptors.T, matches(sources)
    return info_nce(similarity, match, temperature) + weight * entropy(similarity, match)
