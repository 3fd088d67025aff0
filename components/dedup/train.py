"""Train the demo's own copy-detection network on the pool, SSCD's way (Pizzi et al. 2022, section 3).

Loss = InfoNCE at temperature 0.05 between two edited views of an image + lambda x the entropy term, which pushes every
descriptor from its nearest non-copy and makes one threshold mean the same everywhere in the space.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from components.dedup.network import CopyNet
from components.dedup.train_params import NetworkParams, TrainingParams
from components.dedup.views import RGB, ViewParams, random_view
from components.errors import VitrailError
from components.progress import Progress


def train_network(
    thumbnails: RGB, network: NetworkParams, views: ViewParams, params: TrainingParams, seed: int
) -> CopyNet:
    """The network, in eval mode, trained on ``thumbnails`` [N, s, s, 3] uint8 (s above ``network.side``).

    Raises:
        VitrailError: fewer than two images: nothing to tell apart.
    """
    if len(thumbnails) < 2:
        raise VitrailError(f"descriptor training: {len(thumbnails)} image(s); it needs two; use kind: thumbnail")
    model = CopyNet(network)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    progress = Progress("copy descriptor: training", params.steps, unit="steps")
    for step, pair in enumerate(_ahead(_pairs(thumbnails, network.side, views, params, seed), params.steps)):
        scale = min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / params.steps))
        for group in optimizer.param_groups:
            group["lr"] = params.lr * scale
        loss = copy_loss(model(torch.from_numpy(pair)), params.temperature, params.entropy)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        progress.advance(note=f"loss {loss.item():.3f}")
    progress.close()
    return model.eval()


def copy_loss(descriptors: Tensor, temperature: float, entropy: float) -> Tensor:
    """SSCD's loss of ``descriptors`` [2B, d] (unit length): row i and row i + B are views of one image.

    InfoNCE over all other rows, plus ``entropy`` x the mean of -log(distance to the nearest row of another image).
    """
    rows = len(descriptors)
    similarity = descriptors @ descriptors.T  # [2B, 2B]
    own = torch.eye(rows, dtype=torch.bool)
    partner = torch.arange(rows).roll(rows // 2)
    contrast = F.cross_entropy((similarity / temperature).masked_fill(own, -torch.inf), partner)
    nearest = similarity.masked_fill(own | own.roll(rows // 2, 0), -2.0).amax(1)
    squared = (2 - 2 * nearest).clamp(min=1e-6)  # distance^2 of unit vectors
    return contrast - entropy * 0.5 * squared.log().mean()


def _pairs(thumbnails: RGB, side: int, views: ViewParams, params: TrainingParams, seed: int) -> Iterator[RGB]:
    """Endless batches [2B, side, side, 3]: first views of B images, then second views of the same."""
    generator = np.random.default_rng(seed)
    batch = min(params.batch, len(thumbnails))
    while True:
        order = generator.permutation(len(thumbnails))
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            yield np.stack(
                [
                    random_view(thumbnails[row], side, smallest, views, generator)
                    for smallest in (views.original_crop, views.copy_crop)
                    for row in rows
                ]
            )


def _ahead(batches: Iterator[RGB], count: int) -> Iterator[RGB]:
    """``count`` batches, made in another thread while the last one is used; its faults are raised here."""
    made: queue.Queue[RGB | BaseException] = queue.Queue(2)
    stopped = threading.Event()

    def offer(item: RGB | BaseException) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for _ in range(count):
                if stopped.is_set():
                    return
                offer(next(batches))
        except BaseException as fault:  # handed over, not swallowed
            offer(fault)

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    try:
        for _ in range(count):
            item = made.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        maker.join()
