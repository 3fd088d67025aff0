"""Has the training collapsed? Four signs of it, and a detector that warns or stops the run when one stays.

All images on one point (features without spread, a target that is the same for all) and targets that say nothing
(cross-entropy at ln K) are the two ways in which self-distillation fails (arXiv 2104.14294, section 5.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from components.errors import VitrailError
from components.learning.losses.collective import sum_over
from components.learning.schedules import Length, iterations_of
from components.params import NEUTRAL, Strict


class CollapseParams(Strict):
    """When a run counts as collapsed; the figures are in its curves under the same names.

    The defaults lie far outside of what a healthy run shows (docs/training.md); null switches a sign off.
    """

    effect: ClassVar = NEUTRAL
    action: Literal["off", "warn", "stop"] = "warn"
    after: Length = 0.2  # iterations, or share of the run: nothing counts before, while everything warms up
    patience: int = Field(200, ge=1, le=10**12)  # iterations that a sign must hold without a break
    feature_rank: float | None = Field(1.5, ge=0, le=1000.0)  # effective rank of the class tokens: at most this
    feature_std: float | None = Field(
        0.05, ge=0, le=1000.0
    )  # of normalised class tokens, 1 is evenly spread: at most this
    prototype_usage: float | None = Field(0.1, ge=0, le=1)  # entropy of the mean target, share of ln K: at most this
    cross_entropy: float | None = Field(
        0.995, ge=0, le=10.0
    )  # of student against teacher, share of ln K: at least this


class Sign(NamedTuple):
    """One sign: a figure of the curves, and on which side of a threshold it is bad."""

    figure: str
    above: bool
    meaning: str


SIGNS = (
    Sign("feature_rank", False, "the class tokens span a line, not a space"),
    Sign("feature_std", False, "all images have nearly the same class token"),
    Sign("prototype_usage", False, "all images share a few prototypes"),
    Sign("cross_entropy", True, "the student learns nothing about the teacher's targets (ln K)"),
)


class Detector:
    """Follows the signs point by point.

    Args:
        params: thresholds and patience.
        total: iterations of the run, or of its phase.
        first: steps trained before them.
    """

    def __init__(self, params: CollapseParams, total: int, first: int = 0) -> None:
        self.params = params
        self._after = first + iterations_of(params.after, total)
        self._since: dict[str, int] = {}  # figure -> first step of the present stretch
        self._warned: set[str] = set()

    def state(self) -> dict[str, Any]:
        """For a checkpoint: which signs hold since when, and of which it was told."""
        return {"since": dict(self._since), "warned": sorted(self._warned)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self._since, self._warned = dict(state["since"]), set(state["warned"])

    def look(self, step: int, point: Mapping[str, float]) -> str:
        """Take the figures of ``step``; returns a line to print, "" when there is nothing to say.

        Raises:
            VitrailError: a sign has held for ``patience`` iterations and ``action`` is "stop".
        """
        if self.params.action == "off" or step < self._after:
            return ""
        for sign in SIGNS:
            limit, value = getattr(self.params, sign.figure), point.get(sign.figure)
            if limit is None or value is None or not math.isfinite(value):
                continue  # not asked for, or nothing known: skipped steps are another fault
            if value < limit if sign.above else value > limit:
                self._since.pop(sign.figure, None)
                self._warned.discard(sign.figure)
                continue
            since = self._since.setdefault(sign.figure, step)
            if step - since < self.params.patience:
                continue
            side = "at least" if sign.above else "at most"
            line = f"step {step}: collapsed: {sign.figure} is {value:.3g}, {side} {limit:g} since step {since}: "
            line += sign.meaning
            if self.params.action == "stop":
                raise VitrailError(
                    f"{line}; look at the curves, lower schedule.learning_rate or check objective.centering; to go on "
                    "nevertheless set collapse.action: warn, the checkpoints are kept"
                )
            if sign.figure not in self._warned:
                self._warned.add(sign.figure)
                return line
        return ""


@torch.no_grad()
def feature_figures(cls: Tensor, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Spread of class tokens over the batch of all ranks.

    ``feature_rank``: effective rank of the centred tokens, ``exp`` of the entropy of their singular values (Roy and
    Vetterli 2007; arXiv 2210.02885): 1 on a line, D when all directions carry as much, 0 when all tokens are equal.
    ``feature_std``: mean standard deviation of the L2-normalised tokens' entries times ``sqrt(D)``: near 1 when
    directions are used evenly, 0 when all tokens point one way. Both are nan where tokens are not finite.

    Args:
        cls: ``[B, D]`` of this rank.
        group: ranks whose batches count together.
    """
    rows = cls.double() if cls.device.type == "cpu" else cls.float()  # [B, D]
    unit = torch.nn.functional.normalize(rows, dim=-1)
    dim = rows.shape[1]
    # one all-reduce: count, sums, squares of the unit vectors, and the second moments of the tokens [D, D]
    parts = [rows.new_tensor([len(rows)]), rows.sum(0), unit.sum(0), unit.square().sum(0), (rows.T @ rows).flatten()]
    count, total, unit_sum, unit_squares, moments = sum_over(torch.cat(parts), group).split([1, dim, dim, dim, dim**2])
    count = count[0]
    mean = total / count
    covariance = moments.view(dim, dim) / count - torch.outer(mean, mean)
    # tokens of a step that is going to be skipped may hold nan, of which eigenvalues cannot be had
    known = torch.isfinite(covariance).all()
    spectrum = torch.linalg.eigvalsh(covariance.where(known, covariance.new_zeros(()))).clamp_min(0)
    # what is left of equal tokens by rounding has a spectrum, too, but no meaning
    noise = torch.finfo(rows.dtype).eps * 10 * moments.view(dim, dim).diagonal().sum() / count
    values = spectrum.sqrt()  # singular values of the centred tokens, up to a factor
    share = values / values.sum().clamp_min(torch.finfo(rows.dtype).tiny)
    rank = torch.where(spectrum.sum() > noise, torch.special.entr(share).sum().exp(), spectrum.new_zeros(()))
    rank = rank.where(known, rank.new_tensor(math.nan))
    variance = (unit_squares / count - (unit_sum / count).square()).clamp_min(0) * (count / (count - 1).clamp_min(1))
    return {"feature_rank": rank.float(), "feature_std": (variance.sqrt().mean() * dim**0.5).float()}
