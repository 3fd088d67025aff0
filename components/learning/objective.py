"""The network of a self-supervised learner (backbone and heads) and its losses: DINO, iBOT and KoLeo, or contrastive.

Pretraining and distillation differ in who the teacher is and what the student is shown; what is computed is here.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field, field_validator
from torch import Tensor, nn

from components.input_paths import PluginName
from components.learning.collapse import feature_figures
from components.learning.heads import HeadConfig, ProjectionHead
from components.learning.losses.centering import centered_softmax, update_center
from components.learning.losses.collective import sum_over, world_size
from components.learning.losses.contrastive import contrastive_loss
from components.learning.losses.dino import dino_loss
from components.learning.losses.ibot import ibot_loss
from components.learning.losses.koleo import koleo_loss
from components.learning.losses.sinkhorn import sinkhorn_knopp
from components.learning.vit import VisionTransformer, ViTConfig
from components.params import CHANGES, Strict
from components.plugins import load_plugin


class HeadsParams(Strict):
    """The projection heads; ``ibot: null`` shares the DINO head (the short recipe)."""

    dino: HeadConfig  # of class tokens; the contrastive objective's, too
    ibot: HeadConfig | None = None


TERMS = ("dino_global", "dino_local", "ibot", "koleo", "contrastive")


class OwnLoss(Strict):
    """A term of the user's own."""

    effect: ClassVar = CHANGES
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)  # of the term, as it is logged
    call: PluginName  # package.module:function; it takes the student's Output and the Targets, returns a scalar
    weight: float = Field(1.0, ge=0, le=1000.0)

    @field_validator("name")
    @classmethod
    def _is_new(cls, name: str) -> str:
        if name in TERMS:
            raise ValueError(f"{name!r} is a term already; choose another name")
        return name


class ObjectiveParams(Strict):
    """Weights and temperatures of the losses (arXiv 2304.07193, section 4 and table 16).

    With ``engine.accumulation`` all that looks across images (Sinkhorn's shares, the centre, KoLeo's neighbours) works
    on one micro-batch at a time: of all ranks, but KoLeo's, which ``koleo_over`` decides.
    """

    effect: ClassVar = CHANGES
    # dino: the student predicts the prototypes that its moving average, the teacher, gives another view. contrastive:
    # the views of an image find one another among all views of the batch (arXiv 2002.05709); nobody teaches, and the
    # moving average is kept for evaluation alone. For few images and short runs (docs/training.md)
    kind: Literal["dino", "contrastive"] = "dino"
    contrastive_temperature: float = Field(0.2, gt=0, le=10.0)  # of cosines; SimCLR's tables: 0.1 to 0.5
    dino_weight: float = Field(1.0, ge=0, le=1000.0)
    ibot_weight: float = Field(1.0, ge=0, le=1000.0)
    koleo_weight: float = Field(0.1, ge=0, le=1000.0)
    koleo_over: Literal["rank", "all"] = "rank"  # where nearest neighbours are sought: DINOv2 a GPU, DINOv3 all
    student_temperature: float = Field(0.1, gt=0, le=10.0)
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"  # long recipe: sinkhorn, short: softmax centring
    sinkhorn_iterations: int = Field(3, ge=1, le=1000)
    center_momentum: float = Field(0.9, ge=0, le=1)  # of softmax centring, a micro-batch
    own: list[OwnLoss] = []  # further terms

    def check(self, heads: HeadsParams) -> None:
        """Nothing when ``heads`` are those of the objective.

        Raises:
            ValueError: they are not, or an own loss was named that would not be given what it needs.
        """
        if self.kind == "dino":
            for name, head in (("dino", heads.dino), ("ibot", heads.ibot)):
                if head is not None and not head.prototypes:
                    raise ValueError(f"heads.{name}.prototypes 0: objective.kind: dino needs prototypes; set 2 or more")
                if head is not None and head.batch_norm:
                    raise ValueError(f"heads.{name}.batch_norm: of objective.kind: contrastive; set false")
            return
        if heads.dino.prototypes:
            raise ValueError(
                f"heads.dino.prototypes {heads.dino.prototypes}: objective.kind: contrastive compares the head's "
                "vectors themselves; set 0"
            )
        if heads.ibot is not None:
            raise ValueError("heads.ibot: objective.kind: contrastive hides no patches; set null")
        if self.own:
            raise ValueError(
                "objective.own: its losses take a teacher's targets, which objective.kind: contrastive lacks"
            )


class Output(NamedTuple):
    """What the network says about a batch of B images."""

    cls: Tensor  # [2B, D] class tokens of the global crops
    dino_global: Tensor  # [2B, K] logits; of a head without prototypes unit vectors [2B, bottleneck]
    dino_local: Tensor | None  # [L*B, K] logits
    ibot: Tensor | None  # [M, K'] logits of the chosen patches
    patches: Tensor | None = None  # [2B, N, D] patch tokens of the global crops, where asked for


class Network(nn.Module):
    """A backbone with its DINO head, and an iBOT head unless that is shared."""

    def __init__(
        self, backbone: VisionTransformer, dino_head: ProjectionHead, ibot_head: ProjectionHead | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None = None,
        masks: Tensor | None = None,
        patches: Tensor | None = None,
        dense: bool = False,
    ) -> Output:
        """One packed pass.

        Args:
            global_crops: ``[2B, 3, G, G]``.
            local_crops: ``[L*B, 3, l, l]``.
            masks: bool ``[2B, N]``: patches hidden from the network.
            patches: int64 ``[M]`` into ``[2B * N]``: patch tokens that get iBOT logits.
            dense: give out the global crops' patch tokens, too.
        """
        groups = [global_crops] if local_crops is None else [global_crops, local_crops]
        hidden = [masks, None][: len(groups)]
        every = None
        if dense:
            found = self.backbone(groups, hidden)
            classes, every = [part.cls for part in found], found[0].patches
            chosen = None if patches is None else every.flatten(0, 1).index_select(0, patches)
        else:
            classes, chosen = self.backbone.chosen(groups, hidden, patches)
        tokens = list(classes)
        if chosen is not None and self.ibot_head is None:
            tokens.append(chosen)
        # One call a head: its weights are gathered once, and one large product is made instead of three.
        parts = list(self.dino_head(torch.cat(tokens)).split([len(part) for part in tokens]))
        ibot = None
        if chosen is not None:
            ibot = parts.pop() if self.ibot_head is None else self.ibot_head(chosen)
        dino_local = parts[1] if len(parts) > 1 else None
        return Output(classes[0], parts[0], dino_local, ibot, every)


def build_network(vit: ViTConfig, heads: HeadsParams, seed: int) -> Network:
    """A network with start values drawn from ``seed``, equal on every rank."""
    backbone = VisionTransformer(vit)
    dino = ProjectionHead(vit.embed_dim, heads.dino)
    ibot = None if heads.ibot is None else ProjectionHead(vit.embed_dim, heads.ibot)
    generator = torch.Generator().manual_seed(seed)
    for module in (backbone, dino, ibot):
        if module is not None:
            module.init_weights(generator)
    return Network(backbone, dino, ibot)


class Targets(NamedTuple):
    """The teacher's probabilities, fp32, without gradient."""

    dino: Tensor  # [2B, K]
    ibot: Tensor | None  # [M, K']


class Centering:
    """Turns the teacher's logits into targets, and holds the running centres when centring by softmax."""

    def __init__(self, params: ObjectiveParams, heads: HeadsParams, device: torch.device, group: object = None) -> None:
        self.params = params
        self.group: dist.ProcessGroup | None = group  # type: ignore[assignment]
        ibot = heads.ibot or heads.dino
        self.centers: dict[str, Tensor] = {}
        if params.centering == "softmax" and params.kind == "dino":
            self.centers = {
                "dino": torch.zeros(heads.dino.prototypes, device=device),
                "ibot": torch.zeros(ibot.prototypes, device=device),
            }

    @torch.no_grad()
    def targets(self, output: Output, temperature: float) -> Targets:
        """Probabilities of both crops' class tokens jointly, and of the chosen patches."""
        return Targets(
            self._center("dino", output.dino_global, temperature),
            None if output.ibot is None else self._center("ibot", output.ibot, temperature),
        )

    def _center(self, name: str, logits: Tensor, temperature: float) -> Tensor:
        if self.params.centering == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, self.params.sinkhorn_iterations, self.group)
        probabilities = centered_softmax(logits, self.centers[name], temperature)
        # the centre of a batch counts from the next one on, as in the original
        self.centers[name] = update_center(self.centers[name], logits, self.params.center_momentum, self.group)
        return probabilities


class Losses(NamedTuple):
    """Weighted terms; ``total`` is their sum."""

    total: Tensor
    terms: dict[str, Tensor]


def losses(
    student: Output, targets: Targets, weights: Tensor, params: ObjectiveParams, group: dist.ProcessGroup | None = None
) -> Losses:
    """All losses of a batch.

    Args:
        student: of the student's crops.
        targets: of the teacher's.
        weights: ``[M]``, 1 / number of chosen patches in the patch's image.
        params: weights and temperature.
        group: ranks that KoLeo looks for neighbours on, where ``koleo_over`` is "all".
    """
    dino = dino_loss(student.dino_global, student.dino_local, targets.dino, params.student_temperature)
    terms = {"dino_global": params.dino_weight * dino.global_crops}
    if student.dino_local is not None:
        terms["dino_local"] = params.dino_weight * dino.local_crops
    if student.ibot is not None and targets.ibot is not None:
        crops = student.dino_global.shape[0]
        ibot = ibot_loss(student.ibot, targets.ibot, weights, crops, params.student_temperature)
        terms["ibot"] = params.ibot_weight * ibot
    terms |= _koleo(student, params, group)
    for one in params.own:
        terms[one.name] = one.weight * load_plugin(one.call, f"objective.own: {one.name}")(student, targets)
    return total(terms)


def contrastive_losses(student: Output, params: ObjectiveParams, group: dist.ProcessGroup | None = None) -> Losses:
    """The contrastive loss over all views of a batch, and KoLeo where it has a weight.

    Args:
        student: of whole crops, by a head without prototypes.
        params: temperature, and KoLeo's weight.
        group: ranks whose views are told apart from one another.
    """
    images = student.dino_global.shape[0] // 2
    every = [student.dino_global] + ([] if student.dino_local is None else [student.dino_local])
    views = torch.cat(every).reshape(-1, images, student.dino_global.shape[-1])
    terms = {"contrastive": contrastive_loss(views, params.contrastive_temperature, group)}
    return total(terms | _koleo(student, params, group))


def _koleo(student: Output, params: ObjectiveParams, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    if not params.koleo_weight:
        return {}
    crops = student.cls.reshape(2, -1, student.cls.shape[-1])
    return {"koleo": params.koleo_weight * koleo_loss(crops, group if params.koleo_over == "all" else None)}


def total(terms: dict[str, Tensor]) -> Losses:
    """Weighted ``terms`` with their sum."""
    return Losses(torch.stack([term.float() for term in terms.values()]).sum(), terms)


@torch.no_grad()
def health(output: Output, targets: Targets, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Signs of collapse, over the batch of all ranks in ``group``.

    Shares of ln K, 0 when all images share a target, 1 when a target says nothing: ``target_entropy``, mean entropy of
    a target, and ``prototype_usage``, entropy of the mean target. ``feature_rank`` and ``feature_std`` of the class
    tokens: see :func:`components.learning.collapse.feature_figures`.
    """
    log_k = torch.log(torch.tensor(float(targets.dino.shape[-1])))
    mean = sum_over(targets.dino.mean(0), group) / world_size(group)
    return {
        "target_entropy": torch.special.entr(targets.dino).sum(-1).mean() / log_k,
        "prototype_usage": torch.special.entr(mean).sum() / log_k,
        **feature_figures(output.cls, group),
    }
