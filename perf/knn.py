"""The kNN benchmark against its own floor: one plain matrix product and top-k of the same size (50k x 10k x 384)."""

from __future__ import annotations

import time

import numpy as np
import torch

from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.knn import knn_predict_each

TRAIN, TEST, WIDTH, CLASSES, K = 50_000, 10_000, 384, 1000, 20
ROUNDS = 2


def main() -> dict[str, object]:
    """Seconds of both, best of :data:`ROUNDS` alternating rounds, and their ratio."""
    generator = np.random.default_rng(0)
    train = generator.normal(size=(TRAIN, WIDTH)).astype(np.float32)
    test = generator.normal(size=(TEST, WIDTH)).astype(np.float32)
    labels = generator.integers(0, CLASSES, TRAIN)
    bank, queries = torch.from_numpy(train), torch.from_numpy(test)
    ours, plain = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        (queries @ bank.T).topk(K, dim=1)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        knn_predict_each(LabelledFeatures(train, labels), test, [10, K])
        ours.append(time.perf_counter() - start)
    return {
        "size": f"{TEST} x {TRAIN} x {WIDTH}, k {K}",
        "plain_seconds": round(min(plain), 2),
        "ours_seconds": round(min(ours), 2),
        "ratio": round(min(ours) / min(plain), 2),
    }
