"""``params/curate.yaml``."""

from __future__ import annotations

from pydantic import Field, field_validator

from components.curate.duplicates.pca_hash import HashParams
from components.curate.pixels.filters import FilterParams
from components.curate.pixels.safety import FaceParams, NsfwParams
from components.curate.results.reasons import REASONS
from components.executor import ExecutorParams
from components.images.decode import DecodeLimits
from components.images.sandbox import SandboxParams
from components.params import Share, Strict
from components.tables.database import MemoryParams
from components.web.rules.policy import PolicyParams


class CurateParams(Strict):
    """``params/curate.yaml``."""

    policy: PolicyParams
    decode: DecodeLimits
    sandbox: SandboxParams = SandboxParams()
    pca_hash: HashParams
    nsfw: NsfwParams
    faces: FaceParams
    filters: list[FilterParams] = []  # of your own; each drops images as `filter:NAME`
    memory: MemoryParams = MemoryParams()  # of each join
    max_page_bytes: int = Field(10_000_000, ge=1, le=2**50)
    chunk: int = Field(512, ge=1, le=1_000_000)  # images a work item
    shard_bytes: int = Field(268_435_456, ge=1, le=2**50)  # a tar shard begins anew above this
    least_kept: Share = 0.5  # of the images; a run that leaves less says which values dropped the others
    executor: ExecutorParams

    def blamed(self) -> dict[str, str]:
        """Reason to drop an image -> the value that decided."""
        decode, policy = self.decode, self.policy
        return {
            "forgotten": "policy.forgotten",
            "restricted-domain": "policy.restricted",
            "robots-disallowed": "policy.respect_robots",
            "opt-out": "policy.respect_opt_out" if policy.respect_opt_out else "the page",
            "too-many-bytes": f"decode.max_bytes {decode.max_bytes:,}",
            "too-many-pixels": f"decode.max_pixels {decode.max_pixels:,}",
            "too-many-frames": f"decode.max_frames {decode.max_frames}",
            "too-small": f"decode.min_side {decode.min_side}",
            "too-much-memory": f"sandbox.megabytes {self.sandbox.megabytes}",
            "too-slow": f"sandbox.seconds {self.sandbox.seconds:g}",
            "near-duplicate": f"pca_hash.radius {self.pca_hash.radius}",
            "nsfw": f"nsfw.threshold {self.nsfw.threshold:g}",
            **{one.reason: f"filters, {one.name}.threshold {one.threshold:g}" for one in self.filters},
        }

    def reasons(self) -> tuple[str, ...]:
        """Every reason that a row of the index can have."""
        return (*REASONS, *(one.reason for one in self.filters))

    def plugins(self) -> list[str]:
        """The plug-ins that score images."""
        return [self.nsfw.model, self.faces.model, *(one.call for one in self.filters)]

    @field_validator("filters")
    @classmethod
    def _names_differ(cls, filters: list[FilterParams]) -> list[FilterParams]:
        names = [one.name for one in filters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two filters have the name {twice[0]!r}; their reasons could not be told apart")
        return filters
