"""A protocol: everything a score depends on besides the network and the images, in one named and versioned file.

Scores can be compared only where the protocol is the same, so its name, version and digest go with every score. The
digest covers the values that change results, not the file's comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from components.benchmark.methods.ranking import CopyParams
from components.errors import VitrailError
from components.evaluation.dense.depth import DepthHeadParams
from components.evaluation.dense.matching import MatchingParams
from components.evaluation.dense.propagation import PropagationParams
from components.evaluation.dense.segmentation import SegmentationParams
from components.evaluation.features.extract import FeatureParams
from components.evaluation.image_level.few_shot import FewShotParams
from components.evaluation.image_level.linear import LinearParams
from components.evaluation.image_level.linear_grid import LinearGridParams
from components.evaluation.image_level.logistic import LogisticParams
from components.evaluation.image_level.retrieval import RankingParams
from components.params import NEUTRAL, Strict, fingerprint, load_params, results

FOLDER = "protocols"


class KnnParams(Strict):
    """The vote of neighbours."""

    k: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(min_length=1)
    shown: int = Field(20, ge=1, le=1_000_000)  # the k in the table
    temperature: float = Field(0.07, gt=0, le=10.0)
    choose: bool = False  # also report the k chosen on held-out training images, and the best k on the test images

    @model_validator(mode="after")
    def _shown_is_measured(self) -> KnnParams:
        if self.shown not in self.k:
            raise ValueError(f"shown: {self.shown} is not among k {self.k}")
        return self


class ProtocolParams(Strict):
    """``params/protocols/NAME.yaml``. A method whose section is null is not measured."""

    version: int = Field(ge=1, le=1_000_000)  # raise it whenever a value below changes
    about: Annotated[str, NEUTRAL] = ""
    features: FeatureParams
    knn: KnnParams
    linear: LinearParams
    few_shot: FewShotParams | None = None
    linear_grid: LinearGridParams | None = None
    logistic: LogisticParams | None = None
    retrieval: RankingParams | None = None
    copies: CopyParams | None = None
    segmentation: SegmentationParams | None = None  # of sets with masks
    depth: DepthHeadParams | None = None  # of sets with depths
    propagation: PropagationParams | None = None  # of masks through videos
    matching: MatchingParams | None = None  # of every set's held-out pictures


@dataclass(frozen=True)
class Protocol:
    """A protocol with its name, which is its file's."""

    name: str
    params: ProtocolParams

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the values that change results."""
        return fingerprint({key: value for key, value in results(self.params).items() if value is not None})

    @property
    def label(self) -> str:
        """Name, version and the digest's first eight digits, as tables show it."""
        return f"{self.name} v{self.params.version} ({self.digest[:8]})"

    @property
    def tags(self) -> dict[str, str]:
        """What identifies it in MLflow."""
        return {"vitrail.protocol": f"{self.name} v{self.params.version}", "vitrail.protocol_digest": self.digest}

    def plain(self) -> dict[str, str | int]:
        """As JSON."""
        return {"name": self.name, "version": self.params.version, "digest": self.digest}


def load_protocol(params_folder: Path, name: str, overrides: Sequence[str] = ()) -> Protocol:
    """The protocol ``name`` of ``params_folder/protocols``.

    Raises:
        VitrailError: there is no such file, it does not fit, or its name hides the size of the masks that it scores.
    """
    found = Protocol(name, load_params(params_folder / FOLDER / f"{name}.yaml", ProtocolParams, overrides))
    masks = found.params.segmentation
    if masks is not None and (size := str(masks.masks or "full")) not in name:
        of = f"{size} px" if masks.masks else "the size of their files"
        raise VitrailError(
            f"params/{FOLDER}/{name}.yaml: its masks are of {of}, and mIoU depends on that; the protocol's "
            f"name must hold {size!r}, as in {name}{size}"
        )
    return found


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--set`` values of the protocol's sections, and all others."""
    own = set(ProtocolParams.model_fields)
    of_protocol = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] in own]
    return of_protocol, [text for text in overrides if text not in of_protocol]


def refuse_changed(known: object, protocol: Protocol, where: Path) -> None:
    """Refuse to write scores over those of a protocol of the same name and version, but with other values.

    Args:
        known: the entry ``protocol`` of the earlier ``scores.json``.

    Raises:
        VitrailError: the file was changed and its version was not.
    """
    if not isinstance(known, dict) or "digest" not in known:
        return
    same = (known.get("name"), known.get("version")) == (protocol.name, protocol.params.version)
    if same and known["digest"] != protocol.digest:
        raise VitrailError(
            f"protocol {protocol.name} v{protocol.params.version} has changed since {where} was written; "
            f"raise `version` in params/{FOLDER}/{protocol.name}.yaml, so that old and new scores are not mixed up"
        )
