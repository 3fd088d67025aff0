"""The augmentation to beat, written plainly: Pillow, crop after crop, each operation as torchvision documents it.

What DINOv2 trains with (torchvision's first transforms over Pillow images), without torchvision's own overhead.
"""

from __future__ import annotations

import io
import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from components.learning.augment import AugmentParams


def reference_batch(images: list[bytes], params: AugmentParams, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Encoded images to the two tensors of a batch, view by view, as the original's collate function stacks them."""
    views = [reference_views(data, params, rng) for data in images]
    return (
        torch.stack([v[0][i] for i in range(2) for v in views]),
        torch.stack([v[1][i] for i in range(params.locals) for v in views]),
    )


def reference_views(data: bytes, params: AugmentParams, rng: random.Random) -> tuple[list[Tensor], list[Tensor]]:
    """The global and local views of one encoded image: normalised float32 [3, side, side] each."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    views = [
        _view(image, kind, params.global_size, params.global_scale, params, rng)
        if kind < 2
        else _view(image, 2, params.local_size, params.local_scale, params, rng)
        for kind in range(2 + params.locals)
    ]
    return views[:2], views[2:]


def _view(
    image: Image.Image,
    kind: int,
    side: int,
    scale: tuple[float, float],
    params: AugmentParams,
    rng: random.Random,
) -> Tensor:
    left, top, width, height = random_box(image.width, image.height, scale, params.ratio, rng)
    view = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
    if rng.random() < params.hflip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < params.jitter.probability:
        view = _jitter(view, params, rng)
    if rng.random() < params.grayscale:
        view = Image.merge("RGB", [view.convert("L")] * 3)
    if rng.random() < params.blur[kind]:
        view = gaussian_blur(view, params.blur_kernel, rng.uniform(*params.blur_sigma))
    if rng.random() < params.solarize[kind]:
        view = ImageOps.solarize(view, params.solarize_threshold)
    tensor = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return tensor.sub_(torch.tensor(params.mean)[:, None, None]).div_(torch.tensor(params.std)[:, None, None])


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random resized crop."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def _jitter(view: Image.Image, params: AugmentParams, rng: random.Random) -> Image.Image:
    strengths = params.jitter
    for which in rng.sample(range(4), 4):
        if which == 0:
            view = ImageEnhance.Brightness(view).enhance(_factor(strengths.brightness, rng))
        elif which == 1:
            view = ImageEnhance.Contrast(view).enhance(_factor(strengths.contrast, rng))
        elif which == 2:
            view = ImageEnhance.Color(view).enhance(_factor(strengths.saturation, rng))
        else:
            view = turn_hue(view, rng.uniform(-strengths.hue, strengths.hue))
    return view


def _factor(strength: float, rng: random.Random) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def turn_hue(view: Image.Image, turn: float) -> Image.Image:
    """Add ``turn`` (of a full circle) to the hue channel of 8-bit HSV, with wrap-around."""
    h, s, v = view.convert("HSV").split()
    levels = np.array(h, dtype=np.uint8)
    levels += np.array(int(turn * 255) % 256, np.uint8)
    return Image.merge("HSV", (Image.fromarray(levels, "L"), s, v)).convert("RGB")


def gaussian_blur(view: Image.Image, kernel: int, sigma: float) -> Image.Image:
    """One depthwise two-dimensional convolution in floats, edges mirrored, rounded back to levels."""
    half = (kernel - 1) * 0.5
    taps = torch.exp(-0.5 * (torch.linspace(-half, half, kernel) / sigma) ** 2)
    taps = taps / taps.sum()
    weight = (taps[:, None] * taps[None, :]).expand(3, 1, kernel, kernel)
    planar = torch.from_numpy(np.array(view)).permute(2, 0, 1)[None].to(torch.float32)
    padded = torch.nn.functional.pad(planar, [kernel // 2] * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded, weight, groups=3)[0]
    return Image.fromarray(blurred.round().to(torch.uint8).permute(1, 2, 0).numpy())
