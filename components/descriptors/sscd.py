"""The official SSCD networks: TorchScript as Meta ships it, or a state dict with torchvision's names."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.descriptors.weights import read_weights
from components.descriptors.whiten import Whitening, normalise
from components.errors import VitrailError
from components.images.samples import RGB
from components.input_paths import InputPath
from components.params import Strict
from components.storage import StorageParams

if TYPE_CHECKING:
    from torch import Tensor


class WhiteningParams(Strict):
    """PCA whitening after the network, fitted on a background set by ``python -m components.dedup whiten``."""

    path: InputPath = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the file; ``whiten`` prints it


class SscdParams(Strict):
    """Meta's released network (``sscd_disc_mixup.torchscript.pt`` or ``.torchvision.pt``), or one in their layout."""

    kind: Literal["sscd"]
    path: InputPath = Field(min_length=1)  # a file, s3://bucket/key, or https://...
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")  # of the file; a URL needs it
    side: int = Field(288, ge=32, le=8192)  # short side, aspect kept; with `squash`, both sides
    squash: bool = False  # True with side 320: a square, which batches
    # SSCD's authors whiten for their figures; whether the paper did before 0.6 and 0.45 is not stated. null: not
    whitening: WhiteningParams | None = None
    batch: int = Field(32, ge=1, le=1_000_000)  # pictures of one shape at a time
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache: str = "scratch/weights"  # folder that fetched files are kept in, named by their digest


class Sscd:
    """See :class:`SscdParams`. ``model``: normalised fp32 [B, 3, H, W] to [B, dim]."""

    dim: int

    def __init__(self, model: Any, params: SscdParams, device: Any, whitening: Whitening | None = None) -> None:
        self._model, self._params, self._device, self._whitening = model, params, device, whitening
        self.side = params.side
        probe = self.embed([np.zeros((params.side, params.side, 3), np.uint8)])
        self.dim = probe.shape[1]

    def prepare(self, rgb: RGB) -> RGB:
        """Resized as the published code does: Pillow's bilinear filter, which averages over what it shrinks.

        The long side is cut off to whole pixels. Where a caller shrank a large picture by a whole factor before
        (``views.reduce``), levels differ from the published ones by a few.
        """
        from PIL import Image

        side = self._params.side
        height, width = rgb.shape[:2]
        short = min(height, width)
        size = (side, side) if self._params.squash else (side * width // short, side * height // short)
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR), np.uint8)

    def embed(self, pictures: Sequence[RGB]) -> NDArray[np.float32]:
        import torch

        from components.descriptors.network import normalised

        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, picture in enumerate(pictures):
            shapes.setdefault(picture.shape, []).append(number)  # only pictures of one shape stack
        rows: dict[int, NDArray[np.float32]] = {}
        with torch.inference_mode():
            for alike in shapes.values():
                for start in range(0, len(alike), self._params.batch):
                    batch = alike[start : start + self._params.batch]
                    pixels = torch.from_numpy(np.stack([pictures[number] for number in batch])).to(self._device)
                    made = self._model(normalised(pixels.permute(0, 3, 1, 2).float())).float().cpu().numpy()
                    rows |= dict(zip(batch, made, strict=True))
        found = normalise(np.stack([rows[number] for number in range(len(pictures))]))
        return found if self._whitening is None else self._whitening.apply(found)


@lru_cache(maxsize=1)
def load_sscd(params: SscdParams, storage: StorageParams) -> Sscd:
    """The network that ``params`` name, on its device.

    Raises:
        VitrailError: not there, of another digest, or not such a network.
    """
    import torch

    where = f"descriptor.path {params.path}"
    if params.device == "cuda" and not torch.cuda.is_available():
        raise VitrailError("descriptor.device: cuda, but torch finds no CUDA device; set it to auto or cpu")
    device = torch.device("cuda" if params.device != "cpu" and torch.cuda.is_available() else "cpu")
    data = read_weights(params.path, params.sha256, Path(params.cache), storage, "descriptor.path")
    try:
        model = torch.jit.load(io.BytesIO(data), map_location="cpu") if _is_torchscript(data) else _resnet(data, where)
        return Sscd(model.eval().to(device), params, device, _whitening(params.whitening))
    except RuntimeError as fault:
        reason = str(fault).strip().splitlines()[0]
        raise VitrailError(f"{where}: not SSCD's TorchScript or state dict ({reason})") from None


def _whitening(params: WhiteningParams | None) -> Whitening | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if params is None:
        return None
    where = f"descriptor.whitening {params.path}"
    try:
        data = Path(params.path).read_bytes()
    except OSError as fault:
        raise VitrailError(f"{where}: {fault.strerror}; write it with python -m components.dedup whiten") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != params.sha256:
        raise VitrailError(f"{where}: its SHA-256 is {digest}, params say {params.sha256}; give the file that is meant")
    try:
        tensors = load(data)
        return Whitening(tensors["whitening.mean"], tensors["whitening.projection"])
    except (SafetensorError, KeyError) as fault:
        raise VitrailError(f"{where}: no whitening ({fault}); write it anew") from None


def _is_torchscript(data: bytes) -> bool:
    """TorchScript archives hold code; state dicts do not."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _resnet(data: bytes, where: str) -> Any:
    from components.descriptors.resnet import ResNet, network_of

    state = _state(data, where)
    if any(name.startswith("embeddings.") for name in state):
        raise VitrailError(f"{where}: Classy Vision's layout; take the .torchvision.pt or .torchscript.pt file")
    state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    model = ResNet(network_of(state, 224, where))
    model.load_state_dict(state)
    return model


def _state(data: bytes, where: str) -> dict[str, Tensor]:
    """Named tensors of a PyTorch or safetensors file; nothing in it is run."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if data[8:9] == b"{":  # a safetensors header follows its eight bytes of length
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise VitrailError(f"{where}: not SSCD's TorchScript or state dict ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise VitrailError(f"{where}: not a state dict of tensors; give the file that Meta published, or its tensors")
    return state
