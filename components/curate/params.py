"""``params/curate.yaml``."""

from __future__ import annotations

from pydantic import Field

from components.curate.pca_hash import HashParams
from components.curate.safety import FaceParams, NsfwParams
from components.executor import ExecutorParams
from components.images.decode import DecodeLimits
from components.images.sandbox import SandboxParams
from components.params import Strict
from components.tables.database import MemoryParams
from components.web.policy import PolicyParams


class CurateParams(Strict):
    """``params/curate.yaml``."""

    policy: PolicyParams
    decode: DecodeLimits
    sandbox: SandboxParams = SandboxParams()
    pca_hash: HashParams
    nsfw: NsfwParams
    faces: FaceParams
    memory: MemoryParams = MemoryParams()  # of each join
    max_page_bytes: int = Field(10_000_000, ge=1)
    chunk: int = Field(512, ge=1)  # images a work item
    shard_bytes: int = Field(268_435_456, ge=1)  # a tar shard begins anew above this
    executor: ExecutorParams
