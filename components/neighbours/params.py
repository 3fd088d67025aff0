"""How neighbours are searched for: ``neighbours`` in params/dedup.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.params import Strict

POINTS_PER_CENTROID = 39  # FAISS' own lower bound for a k-means it does not warn about


class NeighbourParams(Strict):
    """The index and its memory. docs/dedup.md holds the measurements behind the defaults."""

    factory: str = "auto"  # a FAISS factory string, or "auto": by size and device
    flat_up_to: int = Field(100_000, ge=1)  # base rows up to which the search is exact
    pq_bytes: int = Field(32, ge=1)  # code bytes a vector
    pq_bits: Literal[4, 8] = 4  # of a sub-quantiser; 4: scanned in registers (CPU); a GPU always takes 8
    opq_dim: int = Field(0, ge=0)  # dimension OPQ rotates to before coding; 0: no OPQ
    train_per_list: int = Field(64, ge=POINTS_PER_CENTROID)  # training vectors a list; FAISS advises 30 to 256
    nprobe: int | Literal["auto"] = Field("auto")  # lists visited a query; auto: as many as edge_recall needs
    edge_recall: float = Field(0.95, gt=0, lt=1)  # expected share of edges at edge_cosine found; see factory.py
    edge_cosine: float = Field(0.6, gt=0, lt=1)  # the paper's self-dedup threshold; closer edges are found more often
    recall_sample: int = Field(256, ge=0)  # images searched exactly too, to measure the recall of edges; 0: none
    exact_held_out: int = Field(1_000_000, ge=1)  # held-out descriptors that relative dedup compares one by one
    candidates: int = Field(4, ge=1)  # times k candidates are taken from a coded index, to be scored exactly
    block: int = Field(8192, ge=1)  # queries at a time: bounds memory
    device: Literal["auto", "cpu"] = "auto"  # auto: every GPU that FAISS sees
    lists: Literal["memory", "mapped"] = "memory"  # of an index on disk: read into memory, or memory-mapped
    seed: int = 0  # which vectors train the index
