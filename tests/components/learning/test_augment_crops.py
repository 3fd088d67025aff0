"""The crop law, its distribution, and resizing against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from components.learning.crops import (
    CropBox,
    Draws,
    central_box,
    reduction,
    resize,
    resize_opencv,
    sample_box,
    shrink_box,
)

RATIO = (3 / 4, 4 / 3)


def draws(seed: int = 0) -> Draws:
    return Draws(np.random.default_rng(seed))


@pytest.mark.parametrize("scale", [(0.32, 0.5), (0.05, 0.32)])
def test_area_and_aspect_follow_their_laws(scale: tuple[float, float]) -> None:
    """On a large square image (where nearly every try fits) area is uniform, log aspect uniform, position uniform."""
    rng, side, count = draws(3), 4000, 4000
    boxes = np.array([sample_box(side, side, scale, RATIO, rng) for _ in range(count)], float)
    left, top, width, height = boxes.T
    area = width * height / side**2
    assert stats.kstest(area, stats.uniform(scale[0], scale[1] - scale[0]).cdf).pvalue > 0.01
    low, high = np.log(RATIO)
    assert stats.kstest(np.log(width / height), stats.uniform(low, high - low).cdf).pvalue > 0.01
    for start, size in ((left, width), (top, height)):
        assert stats.kstest((start + 0.5) / (side - size + 1), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(area, np.log(width / height))[0, 1]) < 0.05


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.floats(0.01, 1), st.integers(0, 2**32))
def test_box_lies_in_the_image(width: int, height: int, low: float, seed: int) -> None:
    box = sample_box(width, height, (low, 1.0), RATIO, draws(seed))
    assert box.left >= 0
    assert box.top >= 0
    assert 1 <= box.width <= width - box.left
    assert 1 <= box.height <= height - box.top


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 100), (433, 0, 133, 100)), ((100, 1000), (0, 433, 100, 133)), ((50, 50), (0, 0, 50, 50))],
)
def test_fallback_is_the_largest_allowed_centre(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert central_box(*size, RATIO) == expected
    if size[0] != size[1]:  # no try can fit 90 % of so long an image in so round a box
        assert sample_box(*size, (0.9, 1.0), RATIO, draws()) == expected


def test_draws_are_the_generators_uniforms() -> None:
    one = draws(5)
    numbers = [one.unit() for _ in range(600)]
    rng = np.random.default_rng(5)
    assert numbers[:256] == rng.random(256).tolist()
    assert numbers[256:512] == rng.random(256).tolist()
    assert stats.kstest(numbers, "uniform").pvalue > 0.01


def test_below_and_chance() -> None:
    rng = draws(2)
    assert stats.chisquare(np.bincount([rng.below(7) for _ in range(7000)], minlength=7)).pvalue > 0.01
    assert all(int((1 - 2.0**-53) * count) == count - 1 for count in range(1, 50_000))
    assert abs(np.mean([rng.chance(0.3) for _ in range(8000)]) - 0.3) < 0.02
    assert not any(rng.chance(0.0) for _ in range(100))
    assert all(rng.chance(1.0) for _ in range(100))


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
@pytest.mark.parametrize(("box", "side"), [((150, 190), 224), ((200, 230), 224), ((290, 280), 98), ((70, 90), 98)])
def test_resize_is_pillows_antialiased_bicubic(name: str, box: tuple[int, int], side: int) -> None:
    image = getattr(skimage.data, name)()[5 : 5 + box[0], 9 : 9 + box[1], :3]
    for view in (image, image[..., 1]):
        theirs = np.asarray(Image.fromarray(view).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        ours = resize(view, side)
        assert ours.dtype == np.uint8
        assert ours.flags.c_contiguous
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 2
        assert difference.mean() <= 0.02


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
@pytest.mark.parametrize(("size", "mean", "worst"), [(60, 0.6, 8), (80, 0.6, 8), (98, 0.0, 0), (157, 3.0, 64)])
def test_opencv_resize_is_near_where_crops_grow(name: str, size: int, mean: float, worst: int) -> None:
    image = np.array(getattr(skimage.data, name)())[20 : 20 + size, 30 : 30 + size, :3]
    difference = np.abs(resize_opencv(image, 98).astype(int) - resize(image, 98))
    assert difference.mean() <= mean
    assert difference.max() <= worst


def test_resize_of_the_size_it_has_is_a_copy() -> None:
    image = skimage.data.chelsea()[:98, :98]
    assert (resize(image, 98) == image).all()


@pytest.mark.parametrize(("smallest", "expected"), [(100, 1), (195, 1), (196, 2), (391, 2), (392, 4), (783, 4)])
def test_reduction_keeps_every_output_pixel_covered(smallest: int, expected: int) -> None:
    assert reduction([(CropBox(0, 0, 4000, 4000), 224), (CropBox(3, 4, smallest, 900), 98)]) == expected
    assert reduction([(CropBox(0, 0, 4000, 4000), 224)]) == 8


@settings(max_examples=200, deadline=None)
@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([2, 4, 8]), st.integers(0, 2**32))
def test_shrunk_box_stays_inside(width: int, height: int, factor: int, seed: int) -> None:
    small = (-(-width // factor), -(-height // factor))
    box = sample_box(width, height, (0.05, 1.0), RATIO, draws(seed))
    found = shrink_box(box, *small, width, height)
    assert 0 <= found.left <= found.left + found.width <= small[0]
    assert 0 <= found.top <= found.top + found.height <= small[1]
    assert abs(found.left - box.left * small[0] / width) <= 0.5
    assert abs(found.width - box.width * small[0] / width) <= 1.0
