"""Colour operations in batches on the device: against Pillow, and against what a worker does with the same draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from components.learning import color, color_batch
from components.learning.augment import AugmentParams, JitterParams, MultiCrop, colors_on_device
from components.learning.collate import Crops, Uncolored, collate_bytes, normalize_crops

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def photos() -> np.ndarray:
    """uint8 [4, 160, 160, 3]."""
    return np.stack([getattr(skimage.data, name)()[60:220, 80:240, :3] for name in NAMES])


def batch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def gap(ours: Tensor, theirs: list[np.ndarray]) -> tuple[float, float]:
    """Largest and mean difference in levels."""
    difference = (ours - batch(np.stack(theirs))).abs()
    return float(difference.max()), float(difference.mean())


def turned(image: np.ndarray, turn: float) -> np.ndarray:
    h, s, v = Image.fromarray(image).convert("HSV").split()
    hue = (np.array(h).astype(int) + int(turn * 255)) % 256
    return np.asarray(Image.merge("HSV", (Image.fromarray(hue.astype(np.uint8)), s, v)).convert("RGB"))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_blends_are_pillows_within_one_level(which: int) -> None:
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
    operation = (color_batch.brightness, color_batch.contrast, color_batch.saturation)[which]
    factors = [0.6, 0.83, 1.21, 1.4]
    theirs = [
        np.asarray(enhance(Image.fromarray(image)).enhance(f)) for image, f in zip(photos(), factors, strict=True)
    ]
    worst, mean = gap(operation(batch(photos()), torch.tensor(factors)[:, None, None, None]), theirs)
    assert worst <= 1
    assert mean <= 0.01


def test_hue_is_pillows() -> None:
    turns = [-0.1, -0.03, 0.05, 0.4]
    theirs = [turned(image, t) for image, t in zip(photos(), turns, strict=True)]
    worst, mean = gap(color_batch.turn_hue(batch(photos()), torch.tensor(turns)[:, None, None, None]), theirs)
    assert worst <= 5  # one step of the 8-bit hue, where the two divisions round to either side of it
    assert mean <= 0.02


def test_all_orders_of_jitter_are_pillows() -> None:
    """Each view of the batch in its own order, with clipping in between."""
    orders = list(itertools.permutations(range(4)))
    images = np.repeat(photos(), 6, axis=0)
    factors = [1.4, 0.7, 1.2, 0.1]
    theirs = []
    for image, order in zip(images, orders, strict=True):
        view = image
        for which in order:
            if which == 3:
                view = turned(view, factors[3])
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
                view = np.asarray(enhance(Image.fromarray(view)).enhance(factors[which]))
        theirs.append(view)
    colors = torch.tensor([[number, *factors, 0, 0, 0] for number in range(24)], dtype=torch.float32)
    raw = torch.from_numpy(images).permute(0, 3, 1, 2)
    ours = color_batch.apply_colors(raw, colors, AugmentParams(), "cpu")
    difference = (ours - batch(np.stack(theirs))).abs()
    assert float(difference.mean()) <= 0.05
    assert float(difference.flatten().kthvalue(int(0.999 * difference.numel())).values) <= 3


def test_gray_blur_and_solarize() -> None:
    images = photos()
    colors = torch.zeros(4, 8)
    colors[:, 0] = -1
    colors[0, 5] = 1  # gray
    colors[1, 6], colors[2, 6] = 0.4, 1.8  # blurred
    colors[3, 7] = 1  # solarized
    ours = color_batch.apply_colors(torch.from_numpy(images).permute(0, 3, 1, 2), colors, AugmentParams(), "cpu")
    gray = np.asarray(Image.fromarray(images[0]).convert("L").convert("RGB"))
    blurred = [color.blur(np.ascontiguousarray(images[i]), 9, s) for i, s in ((1, 0.4), (2, 1.8))]
    solarized = np.asarray(ImageOps.solarize(Image.fromarray(images[3]), 128))
    worst, mean = gap(ours, [gray, *blurred, solarized])
    assert worst <= 2
    assert mean <= 0.15
    assert gap(ours[3:], [solarized])[0] == 0
    assert gap(ours[:1], [gray])[0] <= 1


@pytest.mark.parametrize("gray", [False, True])
def test_device_and_worker_make_the_same_views(gray: bool) -> None:
    """Equal generators: the same crops, the same draws, colours within the rounding of two implementations."""
    params = AugmentParams(global_size=96, local_size=48, locals=3, gray=gray, rot90=0.3, vflip=0.3)
    image = np.ascontiguousarray(skimage.data.astronaut())
    worker, device = MultiCrop(params), MultiCrop(params, defer_color=True)
    pairs = [
        (worker(image, np.random.default_rng(seed)), device(image, np.random.default_rng(seed))) for seed in range(12)
    ]
    there = collate_bytes([a for a, _ in pairs])
    here = collate_bytes([b for _, b in pairs])
    assert isinstance(there, Crops)
    assert isinstance(here, Uncolored)
    for raw, colors, expected in (
        (here.globals, here.global_colors, there.globals),
        (here.locals, here.local_colors, there.locals),
    ):
        assert not torch.equal(raw, expected)  # there was something left to do
        difference = (color_batch.apply_colors(raw, colors, params, "cpu") - expected).abs()
        assert float(difference.mean()) <= 1.2
        assert float(difference.flatten().kthvalue(int(0.999 * difference.numel())).values) <= 16
    for a, b in zip(normalize_crops(here, params)[:2], normalize_crops(there, params)[:2], strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().mean()) <= 0.03


def test_nothing_to_do_leaves_the_levels() -> None:
    params = AugmentParams(jitter=JitterParams(probability=0.0))
    raw = torch.from_numpy(photos()).permute(0, 3, 1, 2)
    colors = torch.zeros(4, 8)
    colors[:, 0] = -1
    assert torch.equal(color_batch.apply_colors(raw, colors, params, "cpu"), raw.float())


def test_where_colours_run() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not colors_on_device(AugmentParams(), cpu)
    assert colors_on_device(AugmentParams(), cuda)
    assert colors_on_device(AugmentParams(color_on="device"), cpu)
    assert not colors_on_device(AugmentParams(color_on="worker"), cuda)


@pytest.mark.gpu
def test_on_the_device_as_on_the_cpu() -> None:
    params = AugmentParams(global_size=96, local_size=48, locals=3)
    image = np.ascontiguousarray(skimage.data.astronaut())
    crop = MultiCrop(params, defer_color=True)
    raw = collate_bytes([crop(image, np.random.default_rng(seed)) for seed in range(12)])
    for there, here in zip(normalize_crops(raw, params, "cuda"), normalize_crops(raw, params), strict=True):
        assert there.is_cuda
        assert float((there.cpu() - here).abs().mean()) <= 0.01


def test_the_widest_blur_that_the_parameters_allow_runs() -> None:
    params = AugmentParams(blur_kernel=2 * 8 - 1, blur=(0.0, 0.0, 1.0), local_size=8)
    view = photos()[0, :8, :8]
    raw = torch.from_numpy(view.copy()).permute(2, 0, 1)[None]
    ours = color_batch.apply_colors(raw, torch.tensor([[-1.0, 1, 1, 1, 0, 0, 2.0, 0]]), params, "cpu")
    theirs = color.blur(np.ascontiguousarray(view), params.blur_kernel, 2.0)
    assert gap(ours, [theirs])[0] <= 1
