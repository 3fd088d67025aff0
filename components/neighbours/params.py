"""How neighbours are searched for: ``neighbours`` in params/dedup.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.params import Seed, Strict

POINTS_PER_CENTROID = 39  # FAISS' own lower bound for a k-means it does not warn about

FORMS = (
    r"auto|Flat|(OPQ[1-9]\d{0,3}(_[1-9]\d{0,4})?,)?IVF[1-9]\d{0,7}(_HNSW[1-9]\d{0,2})?,(Flat|PQ[1-9]\d{0,3}(x[48])?)"
)


class NeighbourParams(Strict):
    """The index and its memory. docs/dedup.md holds the measurements behind the defaults."""

    factory: str = "auto"  # "auto": by size and device; or a FAISS factory string of a form in FORMS

    @field_validator("factory")
    @classmethod
    def _known_form(cls, value: str) -> str:
        # FAISS takes many more, some of which write beyond their memory here
        if not re.fullmatch(FORMS, value):
            raise ValueError(
                "expected auto, Flat, or lists with codes such as IVF1024,PQ32x4, IVF65536_HNSW32,PQ32 or"
                " OPQ32_128,IVF1024,PQ32x4 or IVF1024,Flat"
            )
        return value

    flat_up_to: int = Field(100_000, ge=1, le=10**12)  # base rows up to which the search is exact
    pq_bytes: int = Field(32, ge=1, le=65_536)  # code bytes a vector
    pq_bits: Literal[4, 8] = 4  # of a sub-quantiser; 4: scanned in registers (CPU); a GPU always takes 8
    opq_dim: int = Field(0, ge=0, le=65_536)  # dimension OPQ rotates to before coding; 0: no OPQ
    train_per_list: int = Field(
        64, ge=POINTS_PER_CENTROID, le=65_536
    )  # training vectors a list; FAISS advises 30 to 256
    nprobe: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] = (
        "auto"  # lists visited a query; auto: as many as edge_recall needs
    )
    edge_recall: float = Field(0.95, gt=0, lt=1)  # expected share of edges at edge_cosine found; see factory.py
    edge_cosine: float = Field(0.6, gt=0, lt=1)  # the paper's self-dedup threshold; closer edges are found more often
    recall_sample: int = Field(
        256, ge=0, le=10**12
    )  # images searched exactly too, to measure the recall of edges; 0: none
    exact_held_out: int = Field(
        1_000_000, ge=1, le=10**12
    )  # held-out descriptors that relative dedup compares one by one
    candidates: int = Field(4, ge=1, le=1000)  # times k candidates are taken from a coded index, to be scored exactly
    block: int = Field(8192, ge=1, le=2**50)  # queries at a time: bounds memory
    device: Literal["auto", "cpu"] = "auto"  # auto: every GPU that FAISS sees
    lists: Literal["memory", "mapped"] = "memory"  # of an index on disk: read into memory, or memory-mapped
    seed: Seed = 0  # which vectors train the index
