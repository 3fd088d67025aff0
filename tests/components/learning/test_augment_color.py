"""Each colour operation against Pillow, or torchvision's documented formula, on real photographs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageEnhance, ImageOps

from components.learning import color

# Greatest mean difference and greatest bias (mean signed difference) of any photograph, in levels, by factor: what was
# measured, rounded up. Rounding where Pillow truncates would be a bias of half a level.
CONTRAST = {
    0.0: (1.0, 1.0), 0.6: (0.45, 0.45), 0.83: (0.17, 0.17), 1.0: (0.0, 0.0), 1.21: (0.17, 0.17), 1.4: (0.27, 0.27),
    2.0: (0.42, 0.42),
}  # fmt: skip
SATURATION = {
    0.0: (0.58, 0.58), 0.6: (0.17, 0.17), 0.83: (0.04, 0.02), 1.0: (0.0, 0.0), 1.21: (0.06, 0.05), 1.4: (0.13, 0.13),
    2.0: (0.53, 0.53),
}  # fmt: skip
GAPS = {0: dict.fromkeys(CONTRAST, (0.0, 0.0)), 1: CONTRAST, 2: SATURATION}


@pytest.fixture(scope="module", params=["astronaut", "chelsea", "coffee", "rocket"])
def photo(request: pytest.FixtureRequest) -> np.ndarray:
    image = getattr(skimage.data, request.param)()
    return np.ascontiguousarray(image[40:264, 60:284, :3])


def gap(ours: np.ndarray, theirs: object) -> tuple[int, float]:
    """Largest and mean difference in levels of 0 ... 255."""
    difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
    return int(difference.max()), float(difference.mean())


def bias(ours: np.ndarray, theirs: object) -> float:
    """Size of the mean signed difference in levels."""
    return abs(float((ours.astype(int) - np.asarray(theirs).astype(int)).mean()))


def pillow(image: np.ndarray, which: int, factor: float) -> np.ndarray:
    view = Image.fromarray(image)
    if which == 3:  # torchvision's adjust_hue: the 8-bit hue channel, plus factor * 255, wrapping
        h, s, v = view.convert("HSV").split()
        hue = (np.array(h).astype(int) + int(factor * 255)) % 256
        return np.asarray(Image.merge("HSV", (Image.fromarray(hue.astype(np.uint8)), s, v)).convert("RGB"))
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
    return np.asarray(enhance(view).enhance(factor))


@pytest.mark.parametrize("factor", list(CONTRAST))
@pytest.mark.parametrize("which", [0, 1, 2])
def test_blend_is_pillows_within_one_level(photo: np.ndarray, which: int, factor: float) -> None:
    """The whole level: Pillow rounds the gray it blends with, and its mean may round to the level beside ours."""
    ours, theirs = color.jitter(photo, [which], [factor] * 4), pillow(photo, which, factor)
    worst, mean = gap(ours, theirs)
    most, shift = GAPS[which][factor]
    assert worst <= (0 if which == 0 else 1)
    assert mean <= most
    assert bias(ours, theirs) <= shift


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.03, 0.0, 0.002, 0.05, 0.1, 0.4])
def test_hue_is_pillows(photo: np.ndarray, turn: float) -> None:
    """8-bit HSV rounds differently in the two; the coarse hue of dark pixels makes single ones differ by more."""
    ours, theirs = color.turn_hue(photo, turn), pillow(photo, 3, turn)
    worst, mean = gap(ours, theirs)
    assert mean <= 0.71
    assert worst <= 7
    assert bias(ours, theirs) <= 0.7
    if abs(turn) >= 0.05:  # and it is a turn that this compares, not two copies of the input
        assert gap(photo, theirs)[1] > 2 * mean


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_all_orders_of_jitter(photo: np.ndarray, order: tuple[int, ...]) -> None:
    """All four in sequence, with clipping in between, as Pillow does them one by one."""
    for factors in ([1.4, 1.4, 1.2, 0.1], [0.6, 0.7, 0.8, -0.1], [1.3, 0.6, 1.2, 0.05], [0.7, 1.4, 0.85, -0.06]):
        theirs = photo
        for which in order:
            theirs = pillow(theirs, which, factors[which])
        ours = color.jitter(photo, list(order), factors)
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() <= 1.57
        assert bias(ours, theirs) <= 1.24
        assert np.quantile(difference, 0.999) <= 13  # the hue of dark and gray pixels is coarse in 8 bits
        assert difference.max() <= 15


def test_blends_without_clipping_fuse_to_rounding(photo: np.ndarray) -> None:
    factors = [0.8, 0.7, 0.9, 0.0]
    one_by_one = photo
    for which in (2, 0, 1):
        one_by_one = pillow(one_by_one, which, factors[which])
    ours = color.jitter(photo, [2, 0, 1], factors)
    worst, mean = gap(ours, one_by_one)
    assert worst <= 1
    assert mean <= 0.32
    assert bias(ours, one_by_one) <= 0.28


@pytest.mark.parametrize("factor", np.linspace(0.0, 2.0, 41).tolist())
def test_saturation_leaves_grays_as_they_are(factor: float) -> None:
    """OpenCV's 10-bit weights, rounded one by one, would tint them."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert (color.apply_blend(ramp, color.saturation(factor)) == ramp).all()


def test_grayscale_is_pillows(photo: np.ndarray) -> None:
    worst, mean = gap(color.grayscale(photo), Image.fromarray(photo).convert("L"))
    assert worst <= 1
    assert mean <= 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0])
def test_blur_is_the_convolution(photo: np.ndarray, sigma: float) -> None:
    """torchvision's gaussian_blur: 9 taps of exp(-x^2 / 2 sigma^2), normalised; reflect padding; rounded."""
    x = np.arange(-4, 5)
    taps = np.exp(-0.5 * (x / sigma) ** 2)
    taps /= taps.sum()
    planar = torch.from_numpy(photo).permute(2, 0, 1)[None].double()
    weight = torch.from_numpy(np.outer(taps, taps)).expand(3, 1, 9, 9)
    padded = torch.nn.functional.pad(planar, [4] * 4, mode="reflect")
    expected = torch.nn.functional.conv2d(padded, weight, groups=3)[0].round().permute(1, 2, 0).numpy()
    worst, mean = gap(color.blur(photo, 9, sigma), expected)
    assert worst <= 1
    assert mean <= 0.07
    assert gap(color.blur(photo[..., 0].copy(), 9, sigma), expected[..., 0])[0] <= 1


@pytest.mark.parametrize("threshold", [0, 64, 128, 200, 255])
def test_solarize_is_pillows(photo: np.ndarray, threshold: int) -> None:
    theirs = ImageOps.solarize(Image.fromarray(photo), threshold)
    assert gap(color.solarize(photo, threshold), theirs)[0] == 0


def test_gray_images_take_the_short_way_to_the_same_result(photo: np.ndarray) -> None:
    gray = color.grayscale(photo)
    full = np.repeat(gray[:, :, None], 3, axis=2)
    for order in itertools.permutations(range(4)):
        factors = [1.3, 0.7, 1.15, 0.08]
        short = color.jitter(gray, list(order), factors)
        assert gap(np.repeat(short[:, :, None], 3, axis=2), color.jitter(full, list(order), factors))[0] <= 2
    assert (color.solarize(gray, 128) == color.solarize(full, 128)[..., 0]).all()


def test_blend_algebra() -> None:
    first, second = color.Blend(0.7, 0.3, 4.0), color.Blend(1.2, -0.2, -9.0)
    luma = np.array(color.LUMA)

    def apply(blend: color.Blend, x: np.ndarray) -> np.ndarray:
        return np.asarray(blend.gain * x + blend.gray * (luma @ x) + blend.offset)

    x = np.array([10.0, 120.0, 77.0])
    np.testing.assert_allclose(apply(second.after(first), x), apply(second, apply(first, x)), rtol=1e-12)
