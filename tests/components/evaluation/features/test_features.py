"""Features are those of one image at a time, in the order of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from components.evaluation.features.extract import (
    FeatureParams,
    Tokens,
    extract,
    network,
    raw_pixels,
    square,
    untrained,
    without_equal_channels,
)
from components.learning.vit import VisionTransformer, ViTConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CONFIG = ViTConfig(image_size=32, patch_size=8, embed_dim=24, depth=2, heads=2, registers=2)


class Noise:
    """Images of several sizes, made when asked for."""

    def __len__(self) -> int:
        return 7

    def bytes(self, row: int) -> bytes:
        raise AssertionError("features read pixels")

    def rgb(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, (40 + row, 50 - row, 3), dtype=np.uint8)


@pytest.mark.parametrize("tokens", ["cls", "patches", "cls+patches"])
def test_batches_equal_single_images(tokens: Tokens) -> None:
    model = VisionTransformer(CONFIG).eval()
    extractor = network(model, MEAN, STD, 32, FeatureParams(tokens=tokens))
    found = extract({"net": extractor, "raw": raw_pixels(16)}, Noise(), batch_size=3)
    assert found["raw"].shape == (7, 16 * 16 * 3)
    for row in (0, 6):
        pixels = square(Noise().rgb(row), 32).astype(np.float32) / 255
        image = torch.from_numpy((pixels - np.array(MEAN)) / np.array(STD)).float().permute(2, 0, 1)[None]
        with torch.inference_mode():
            out = model(image)
        halves = {"cls": out.cls[0], "patches": out.patches[0].mean(0)}
        wanted = torch.cat([halves[n] / (halves[n].norm() if "+" in tokens else 1) for n in tokens.split("+")])
        np.testing.assert_allclose(found["net"][row], wanted.numpy(), atol=2e-5)


class Divided(Noise):
    """The same, of which parts can be named: threads decode them."""

    def part(self, start: int, stop: int) -> Noise:
        raise AssertionError("features name no part")


@pytest.mark.parametrize("batch", [1, 3, 7, 50])
def test_threads_that_decode_ahead_change_no_bit(batch: int) -> None:
    extractors = {
        "net": network(VisionTransformer(CONFIG).eval(), MEAN, STD, 32, FeatureParams()),
        "raw": raw_pixels(16),
    }
    one, other = extract(extractors, Noise(), batch), extract(extractors, Divided(), batch)
    assert all(one[name].tobytes() == other[name].tobytes() for name in extractors)


def test_the_size_is_the_trained_one_or_the_asked_one_in_whole_patches() -> None:
    model = VisionTransformer(CONFIG).eval()
    assert network(model, MEAN, STD, 32, FeatureParams()).size == 32
    assert network(model, MEAN, STD, 32, FeatureParams(image_size=60)).size == 56


def test_a_square_is_pillows_centre_crop() -> None:
    rgb = Noise().rgb(3)  # 43 x 47
    theirs = Image.fromarray(rgb).crop((2, 0, 45, 43)).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(square(rgb, 20).astype(int) - np.asarray(theirs)).max() <= 2
    assert square(rgb, 20, crop=0.5).shape == (20, 20, 3)


def test_untrained_networks_are_fresh_and_repeatable() -> None:
    model = VisionTransformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    first, again, other = untrained(model, 1).state_dict(), untrained(model, 1).state_dict(), untrained(model, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other.state_dict()[name]) for name in first)
    assert model.norm.weight[0] == 0.5


def test_gray_pictures_need_one_channel() -> None:
    gray = np.repeat(np.random.default_rng(0).random((2, 9, 1), np.float32), 3, axis=2).reshape(2, 27)
    assert without_equal_channels(gray).shape == (2, 9)
    gray[1, 4] += 1
    assert without_equal_channels(gray).shape == (2, 27)
