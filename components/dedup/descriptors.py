"""Copy-detection descriptors: the official SSCD network, one trained on the pool itself, or whitened thumbnails.

A descriptor is a row of unit length; the cosine of two rows says how alike two pictures are *as copies*. All kinds go
through one small interface, so the graph, the thresholds and retrieval do not know which is in use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.discriminant import DiscriminantParams, FeatureParams, features, fit_discriminant
from components.dedup.train_params import NetworkParams, TrainingParams
from components.dedup.views import RGB, ViewParams, squash
from components.dedup.whiten import Whitening, fit_whitening, normalise
from components.errors import VitrailError
from components.params import Strict
from components.storage import StorageParams, atomic_file, is_remote, open_store


class SscdParams(Strict):
    """Meta's released network as TorchScript (``sscd_disc_mixup.torchscript.pt``), from a path or an S3 address."""

    kind: Literal["sscd"]
    path: str = Field(min_length=1)  # file, or s3://bucket/key
    side: int = Field(288, ge=32)  # short side, aspect kept; with `squash`, both sides
    squash: bool = False  # True with side 320: a square, which batches
    batch: int = Field(32, ge=1)


class TrainedParams(Strict):
    """A small network of the same kind, trained on the pool inside the stage."""

    kind: Literal["trained"]
    network: NetworkParams = NetworkParams()
    views: ViewParams = ViewParams()
    training: TrainingParams = TrainingParams()
    whiten: float = Field(0.05, ge=0)  # floor of the whitening, relative to the strongest direction
    seed: int = 0


class ThumbnailParams(Strict):
    """No network: gray thumbnails at zero mean and unit spread, PCA-whitened. Blind to crops."""

    kind: Literal["thumbnail"]
    side: int = Field(16, ge=4)
    dim: int = Field(64, ge=2)
    whiten: float = Field(0.05, ge=0)


class DiscriminantDescriptorParams(Strict):
    """Oriented gradients projected by discriminant analysis on the pool; no network, closed form."""

    kind: Literal["discriminant"]
    features: FeatureParams = FeatureParams()
    views: ViewParams = ViewParams(aspect=1.1, copy_crop=0.5)
    learning: DiscriminantParams = DiscriminantParams()
    seed: int = 0


LearnedParams = TrainedParams | DiscriminantDescriptorParams | ThumbnailParams
DescriptorParams = Annotated[SscdParams | LearnedParams, Field(discriminator="kind")]


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

    def __init__(self, measured: FeatureParams, whitening: Whitening) -> None:
        self._measured, self._whitening = measured, whitening
        self.side = measured.side
        self.dim = whitening.projection.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        return squash(rgb, self._measured.side)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        return self._whitening.apply(features(pictures, self._measured))


class Network:
    """See :class:`TrainedParams`."""

    def __init__(self, model: Any, whitening: Whitening) -> None:
        self._model, self._whitening = model, whitening
        self.side = model.params.side
        self.dim = whitening.projection.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        return squash(rgb, self._model.params.side)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        return self._whitening.apply(_forward(self._model, np.stack(pictures)))


class Sscd:
    """See :class:`SscdParams`."""

    dim: int

    def __init__(self, model: Any, params: SscdParams) -> None:
        self._model, self._params = model, params
        self.side = params.side
        probe = self.embed([np.zeros((params.side, params.side, 3), np.uint8)])
        self.dim = probe.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        side = self._params.side
        if self._params.squash:
            return squash(rgb, side)
        import cv2

        height, width = rgb.shape[:2]
        scale = side / min(height, width)
        size = max(side, round(width * scale)), max(side, round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(rgb, size, interpolation=how), np.uint8)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        import torch

        rows: list[NDArray[np.float32]] = []
        step = self._params.batch if self._params.squash else 1  # pictures of many shapes do not stack
        with torch.inference_mode():
            for start in range(0, len(pictures), step):
                pixels = torch.from_numpy(np.stack(pictures[start : start + step])).permute(0, 3, 1, 2).float() / 255
                mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
                rows.append(self._model((pixels - mean[:, None, None]) / std[:, None, None]).numpy())
        return normalise(np.concatenate(rows))


def learn(params: LearnedParams, thumbnails: RGB, path: Path) -> None:
    """Fit a descriptor to ``thumbnails`` [N, s, s, 3] uint8 of the pool and write it to ``path`` (safetensors)."""
    from safetensors.numpy import save

    if isinstance(params, ThumbnailParams):
        gray = _gray([squash(picture, params.side) for picture in thumbnails])
        whitening = fit_whitening(gray, params.dim, params.whiten)
        tensors: dict[str, NDArray[Any]] = {}
    elif isinstance(params, DiscriminantDescriptorParams):
        whitening = fit_discriminant(thumbnails, params.features, params.views, params.learning, params.seed)
        tensors = {}
    else:
        from components.dedup.train import train_network

        model = train_network(thumbnails, params.network, params.views, params.training, params.seed)
        small = np.stack([squash(picture, params.network.side) for picture in thumbnails])
        whitening = fit_whitening(_forward(model, small), params.network.dim, params.whiten)
        tensors = {f"network.{name}": value.contiguous().numpy() for name, value in model.state_dict().items()}
    tensors |= {"whitening.mean": whitening.mean, "whitening.projection": whitening.projection}
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_file(path) as file:
        file.write(save(contiguous, metadata={"params": json.dumps(params.model_dump(mode="json"))}))


def load_descriptor(params: DescriptorParams, path: Path, storage: StorageParams) -> Descriptor:
    """The descriptor that ``params`` describe; ``path``: the weights that :func:`learn` wrote.

    Raises:
        VitrailError: no such file, or not the kind of file expected.
    """
    return _load_sscd(params, storage) if isinstance(params, SscdParams) else _load_learned(params, path)


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

    from components.dedup.network import CopyNet

    model = CopyNet(params.network)
    state = {n.removeprefix("network."): torch.from_numpy(t) for n, t in tensors.items() if n.startswith("network.")}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise VitrailError(f"{path}: weights of another network size; delete it and run dedup again") from None
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(model.eval(), whitening)


@lru_cache(maxsize=1)
def _load_sscd(params: SscdParams, storage: StorageParams) -> Descriptor:
    import io

    import torch

    if is_remote(params.path):
        root, _, name = params.path.rpartition("/")
        data = open_store(storage.model_copy(update={"root": root})).read(name)
    else:
        try:
            data = Path(params.path).read_bytes()
        except OSError as fault:
            raise VitrailError(
                f"descriptor.path {params.path}: {fault.strerror}; download SSCD's TorchScript"
            ) from None
    try:
        return Sscd(torch.jit.load(io.BytesIO(data), map_location="cpu").eval(), params)
    except RuntimeError as fault:
        reason = str(fault).strip().splitlines()[0]
        raise VitrailError(f"descriptor.path {params.path}: not SSCD's TorchScript file ({reason})") from None


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
