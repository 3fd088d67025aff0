"""Train a copy-detection network the way SSCD was (Pizzi et al. 2022, sections 3 and 4).

Every draw follows from (seed, step, row), so a run that was stopped carries on from its last checkpoint to the same
network, and the number of threads that draw views changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.descriptors.contrastive_loss import copy_loss
from components.descriptors.edits import edited, mix
from components.descriptors.lars import Lars, groups
from components.descriptors.network import CopyNet
from components.descriptors.train_params import DescriptorTrainingParams, EditParams, NetworkParams, OptimizerParams
from components.errors import VitrailError
from components.images.samples import RGB
from components.params import fingerprint
from components.progress import Progress
from components.storage import atomic_file

AHEAD = 2  # batches drawn while one is learned from


def train_network(
    pictures: Sequence[RGB],
    network: NetworkParams,
    edits: EditParams,
    params: DescriptorTrainingParams,
    seed: int,
    checkpoint: Path | None = None,
) -> CopyNet:
    """The network, in eval mode on the CPU, trained on ``pictures``: uint8 [H, W, 3], larger than ``network.side``.

    ``checkpoint``: a file to carry on from where it exists, and to write every ``save_every`` steps.

    Raises:
        VitrailError: fewer than two images; no such device; the loss is not a number; a checkpoint of another run.
    """
    if len(pictures) < 2:
        raise VitrailError(f"descriptor training: {len(pictures)} image(s); it needs two; use kind: thumbnail")
    device = _device(params.device)
    model = CopyNet(network)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    optimizer = make_optimizer(model, params.optimizer)
    identity = _identity(pictures, network, edits, params, seed)
    done = _resume(checkpoint, model, optimizer, identity)
    progress = Progress("copy descriptor: training", params.steps - done, unit="steps")
    for step, (views, sources) in _batches(pictures, network.side, edits, params, seed, done):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, params.steps, params.optimizer)
        loss = backward(model, views.to(device), sources.to(device), params)
        if not math.isfinite(loss):
            raise VitrailError(
                f"descriptor training: the loss is {loss} at step {step}; lower training.optimizer.lr or "
                "training.entropy (SSCD's authors advise 10 to begin with)"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.advance(note=f"loss {loss:.3f}")
        if checkpoint is not None and (step + 1) % params.save_every == 0:
            _save(checkpoint, model, optimizer, identity, step + 1)
    progress.close()
    return model.to("cpu").eval()


def make_optimizer(model: nn.Module, params: OptimizerParams) -> torch.optim.Optimizer:
    """The optimizer that ``params`` describe; vectors (biases, norms) are not decayed."""
    parts = groups(model, params.weight_decay)
    if params.kind == "lars":
        return Lars(parts, params.lr, params.momentum, params.weight_decay, params.trust)
    return torch.optim.AdamW(parts, lr=params.lr)


def learning_rate(step: int, steps: int, params: OptimizerParams) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    warm = round(params.warmup * steps)
    if step < warm:
        return params.lr * (step + 1) / warm
    return params.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def backward(model: CopyNet, views: Tensor, sources: Tensor, params: DescriptorTrainingParams) -> float:
    """Leave the gradient of the loss over the whole batch in ``model``; returns the loss.

    With ``micro_batch``, memory for activations is that of so many views: descriptors are first computed without a
    graph, the loss gives the gradient of each descriptor, and a second pass carries those back part by part (Gao et
    al. 2021). The negatives are the whole batch's all the same; only batch norm sees parts.
    """
    size = params.micro_batch
    if size is None or size >= len(views):
        loss = copy_loss(model(views), sources, params.temperature, params.entropy)
        loss.backward()
        return loss.item()
    parts = [slice(start, start + size) for start in range(0, len(views), size)]
    with torch.no_grad(), _statistics_kept(model):
        rows = torch.cat([model(views[part]) for part in parts])
    rows.requires_grad_()
    loss = copy_loss(rows, sources, params.temperature, params.entropy)
    (slope,) = torch.autograd.grad(loss, rows)
    for part in parts:
        model(views[part]).backward(slope[part])
    return loss.item()


class _statistics_kept:
    """Batch norms normalise by their batch as in training, but leave their running statistics alone."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.track_running_stats = False

    def __exit__(self, *_: object) -> None:
        for norm in self._norms:
            norm.track_running_stats = True


def _batches(
    pictures: Sequence[RGB], side: int, edits: EditParams, params: DescriptorTrainingParams, seed: int, first: int
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(step, (views [2B, side, side, 3] uint8, images in each [2B, 2])) from step ``first`` on, drawn ahead."""
    with ThreadPoolExecutor(params.workers) as drawing, ThreadPoolExecutor(1) as collecting:

        def batch(step: int) -> tuple[Tensor, Tensor]:
            rows = _rows(len(pictures), params.batch, step, seed)
            sources = np.concatenate([rows, rows])

            def view(place: int) -> RGB:
                generator = np.random.default_rng([seed, step, place])
                return edited(pictures[int(sources[place])], side, edits, generator)

            views = np.stack(list(drawing.map(view, range(len(sources)))))
            both = mix(views, sources, params.mix, np.random.default_rng([seed, step, len(sources)]))
            return torch.from_numpy(views), torch.from_numpy(both)

        pending = [collecting.submit(batch, step) for step in range(first, min(first + AHEAD, params.steps))]
        for step in range(first, params.steps):
            if step + AHEAD < params.steps:
                pending.append(collecting.submit(batch, step + AHEAD))
            try:
                yield step, pending.pop(0).result()
            except BaseException:
                collecting.shutdown(cancel_futures=True)
                raise


def _rows(count: int, batch: int, step: int, seed: int) -> NDArray[np.int64]:
    """Images of ``step``: each epoch goes through all of them in an order of its own; a last short batch is left."""
    batch = min(batch, count)
    epoch, place = divmod(step, count // batch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[place * batch : (place + 1) * batch].astype(np.int64)


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise VitrailError("training.device: cuda, but torch finds no CUDA device; set it to auto or cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def _identity(
    pictures: Sequence[RGB], network: NetworkParams, edits: EditParams, params: DescriptorTrainingParams, seed: int
) -> str:
    """What a checkpoint must agree with: all that the result depends on, the pictures by a sample of them."""
    sample = [
        int(np.asarray(pictures[i], np.int64).sum()) for i in range(0, len(pictures), max(1, len(pictures) // 16))
    ]
    told = params.model_dump(mode="json", exclude={"save_every", "workers", "device", "images"})
    return fingerprint(network, edits, told, [seed, len(pictures), *sample])


def _save(path: Path, model: CopyNet, optimizer: torch.optim.Optimizer, identity: str, step: int) -> None:
    from safetensors.torch import save

    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value.contiguous() for name, value in state.items()}
    with atomic_file(path) as file:
        file.write(save(tensors, metadata={"identity": json.dumps([identity, step])}))


def _resume(path: Path | None, model: CopyNet, optimizer: torch.optim.Optimizer, identity: str) -> int:
    """Load ``path`` where there is one; returns the steps done."""
    if path is None or not path.exists():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found, step = json.loads(file.metadata()["identity"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as fault:
        raise VitrailError(f"{path}: not a training checkpoint ({fault}); delete it and run again") from None
    if found != identity:
        raise VitrailError(f"{path}: a checkpoint of other parameters or pictures; delete it to train anew")
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    print(f"copy descriptor: training carries on at step {step:,}", flush=True)
    return int(step)
