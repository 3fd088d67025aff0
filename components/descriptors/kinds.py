"""Copy-detection descriptors: the official SSCD network, one trained on the pool, whitened thumbnails, or a plug-in.

A descriptor is a row of unit length; the cosine of two rows says how alike two pictures are *as copies*. All kinds go
through one small interface, so the graph, the thresholds and retrieval do not know which is in use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.descriptors.discriminant import DiscriminantParams, HandcraftedFeatureParams, features, fit_discriminant
from components.descriptors.sscd import SscdParams, load_sscd
from components.descriptors.train_params import DescriptorTrainingParams, EditParams, NetworkParams
from components.descriptors.views import ViewParams, squash
from components.descriptors.whiten import Whitening, fit_whitening
from components.errors import VitrailError
from components.images.samples import RGB
from components.input_paths import InputPath, PluginName
from components.params import Seed, Strict
from components.plugins import load_plugin
from components.storage import StorageParams, atomic_file


class TrainedParams(Strict):
    """A network of SSCD's kind, trained on the pool inside the stage, or before it by the ``train`` command."""

    kind: Literal["trained"]
    weights: InputPath | None = None  # a file that ``train`` wrote; null: train on the pool
    network: NetworkParams = NetworkParams()
    edits: EditParams = EditParams()
    training: DescriptorTrainingParams = DescriptorTrainingParams()
    whiten: float = Field(0.05, ge=0, le=1000.0)  # floor of the whitening, relative to the strongest direction
    seed: Seed = 0


class ThumbnailParams(Strict):
    """No network: gray thumbnails at zero mean and unit spread, PCA-whitened. Blind to crops."""

    kind: Literal["thumbnail"]
    side: int = Field(16, ge=4, le=8192)
    dim: int = Field(64, ge=2, le=65_536)
    whiten: float = Field(0.05, ge=0, le=1000.0)


class DiscriminantDescriptorParams(Strict):
    """Oriented gradients projected by discriminant analysis on the pool; no network, closed form."""

    kind: Literal["discriminant"]
    features: HandcraftedFeatureParams = HandcraftedFeatureParams()
    views: ViewParams = ViewParams(aspect=1.1, copy_crop=0.5)
    learning: DiscriminantParams = DiscriminantParams()
    seed: Seed = 0


class OwnDescriptorParams(Strict):
    """A descriptor of the user's own, ready for use: nothing is learned from the pool."""

    kind: Literal["plugin"]
    call: PluginName  # package.module:maker; the maker takes this section, returns a Descriptor
    settings: dict[str, Any] = {}  # whatever the maker wants to know


LearnedParams = TrainedParams | DiscriminantDescriptorParams | ThumbnailParams
ReadyParams = SscdParams | OwnDescriptorParams
DescriptorParams = Annotated[ReadyParams | LearnedParams, Field(discriminator="kind")]


class Descriptor(Protocol):
    """Pictures to unit rows."""

    dim: int
    side: int  # pixels of the prepared picture's short side

    def prepare(self, rgb: RGB) -> RGB:
        """The picture as :meth:`embed` wants it: small, so that many fit in memory."""

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        """[N, dim], unit length, of prepared pictures."""


class Thumbnail:
    """See :class:`ThumbnailParams`."""

    def __init__(self, side: int, whitening: Whitening) -> None:
        self.side, self._whitening = side, whitening
        self.dim = whitening.projection.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        return squash(rgb, self.side)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        return self._whitening.apply(_gray(pictures))


class Discriminant:
    """See :class:`DiscriminantDescriptorParams`."""

    def __init__(self, measured: HandcraftedFeatureParams, whitening: Whitening) -> None:
        self._measured, self._whitening = measured, whitening
        self.side = measured.side
        self.dim = whitening.projection.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        return squash(rgb, self._measured.side)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        return self._whitening.apply(features(pictures, self._measured))


class TrainedDescriptor:
    """See :class:`TrainedParams`."""

    def __init__(self, model: Any, whitening: Whitening) -> None:
        self._model, self._whitening = model, whitening
        self.side = model.params.side
        self.dim = whitening.projection.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        return squash(rgb, self._model.params.side)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        return self._whitening.apply(_forward(self._model, np.stack(pictures)))


def learn(params: LearnedParams, pictures: Sequence[RGB], path: Path) -> None:
    """Fit a descriptor to ``pictures`` of the pool, squashed uint8 [s, s, 3], and write it to ``path`` (safetensors).

    A network's training keeps its checkpoints beside ``path``, and carries on from there when it was stopped.
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {}
    checkpoint = path.with_name(f"{path.stem}.training.safetensors")
    if isinstance(params, ThumbnailParams):
        gray = _gray([squash(picture, params.side) for picture in pictures])
        whitening = fit_whitening(gray, params.dim, params.whiten)
    elif isinstance(params, DiscriminantDescriptorParams):
        stacked = np.stack([*pictures])
        whitening = fit_discriminant(stacked, params.features, params.views, params.learning, params.seed)
    else:
        from components.descriptors.train import train_network

        model = train_network(pictures, params.network, params.edits, params.training, params.seed, checkpoint)
        rows = [_forward(model, block) for block in _squashed(pictures, params.network.side)]
        whitening = fit_whitening(np.concatenate(rows), params.network.dim, params.whiten)
        tensors = {f"network.{name}": value.contiguous().numpy() for name, value in model.state_dict().items()}
    tensors |= {"whitening.mean": whitening.mean, "whitening.projection": whitening.projection}
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(save(contiguous, metadata={"params": json.dumps(params.model_dump(mode="json"))}))
    checkpoint.unlink(missing_ok=True)


def adopt(params: TrainedParams, path: Path) -> None:
    """Copy the descriptor that ``params.weights`` names to ``path``.

    Raises:
        VitrailError: it is not there, is no descriptor, or is of another network than ``params`` describe.
    """
    assert params.weights is not None
    source = Path(params.weights)
    try:
        data = source.read_bytes()
    except OSError as fault:
        raise VitrailError(
            f"descriptor.weights {source}: {fault.strerror}; write it with python -m components.dedup train"
        ) from None
    _load_learned(params, source)
    with atomic_file(path) as file:
        file.write(data)


def load_descriptor(params: DescriptorParams, path: Path, storage: StorageParams) -> Descriptor:
    """The descriptor that ``params`` describe; ``path``: the weights that :func:`learn` wrote.

    Raises:
        VitrailError: no such file or plug-in, or not the kind of file expected.
    """
    if isinstance(params, OwnDescriptorParams):
        own: Descriptor = load_plugin(params.call, "descriptor.call")(params)
        return own
    return load_sscd(params, storage) if isinstance(params, SscdParams) else _load_learned(params, path)


def thumbnail_side(params: LearnedParams) -> int:
    """The side of the thumbnails to learn from: half as large again as the input, so that crops keep detail."""
    if isinstance(params, ThumbnailParams):
        return params.side
    return (params.network.side if isinstance(params, TrainedParams) else params.features.side) * 3 // 2


def learning_limit(params: LearnedParams) -> int:
    """How many images of the pool, at most, the descriptor learns from."""
    if isinstance(params, ThumbnailParams):
        return 20_000
    return params.training.images if isinstance(params, TrainedParams) else params.learning.images


def _load_learned(params: LearnedParams, path: Path) -> Descriptor:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        whitening = Whitening(tensors["whitening.mean"], tensors["whitening.projection"])
    except FileNotFoundError:
        raise VitrailError(f"{path}: no descriptor weights; run the dedup stage first") from None
    except (SafetensorError, KeyError) as fault:
        raise VitrailError(f"{path}: not descriptor weights ({fault}); delete it and run dedup again") from None
    if isinstance(params, ThumbnailParams):
        return Thumbnail(params.side, whitening)
    if isinstance(params, DiscriminantDescriptorParams):
        return Discriminant(params.features, whitening)
    import torch

    from components.descriptors.network import CopyNet

    model = CopyNet(params.network)
    state = {n.removeprefix("network."): torch.from_numpy(t) for n, t in tensors.items() if n.startswith("network.")}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise VitrailError(f"{path}: weights of another network than descriptor.network describes") from None
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedDescriptor(model.eval(), whitening)


def _squashed(pictures: Sequence[RGB], side: int, block: int = 512) -> Iterator[RGB]:
    """Blocks [<= block, side, side, 3] of ``pictures``, which need not fit in memory together."""
    for start in range(0, len(pictures), block):
        yield np.stack([squash(pictures[row], side) for row in range(start, min(start + block, len(pictures)))])


def _forward(model: Any, pictures: RGB, batch: int = 128) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(pictures[start : start + batch])).numpy() for start in range(0, len(pictures), batch)
        ]
    return np.concatenate(parts)


def _gray(pictures: Sequence[RGB]) -> NDArray[np.float32]:
    rows = np.stack([picture.mean(2, dtype=np.float32).ravel() for picture in pictures])
    rows -= rows.mean(1, keepdims=True)
    return np.asarray(rows / (rows.std(1, keepdims=True) + 4.0), np.float32)
