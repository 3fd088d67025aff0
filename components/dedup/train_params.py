"""Size and training of the copy-detection network, apart from the code they configure: reading them needs no torch."""

from __future__ import annotations

from pydantic import Field

from components.params import Strict


class NetworkParams(Strict):
    """The network's size."""

    side: int = Field(64, ge=16)  # pixels of the squashed input
    width: int = Field(16, ge=4)  # channels after the stem; they double at each of the three stages
    dim: int = Field(128, ge=8)  # of the descriptor (SSCD: 512)
    gem: float = Field(3.0, gt=0)  # power of the generalised mean; fixed, for learning it diverges (SSCD)


class TrainingParams(Strict):
    """How long and how."""

    images: int = Field(20_000, ge=2)  # of the pool, at most, that the network learns from
    steps: int = Field(400, ge=1)
    batch: int = Field(128, ge=2)  # images a step, two views each (SSCD: 4,096)
    lr: float = Field(2e-3, gt=0)  # AdamW, warm-up over 30 steps, cosine to 0 (SSCD: LARS, for its large batch)
    weight_decay: float = Field(1e-4, ge=0)
    temperature: float = Field(0.05, gt=0)
    entropy: float = Field(10.0, ge=0)  # lambda; SSCD: 30 at batch 4,096, and advises 10 to begin with
