"""The whole augmentation: shapes, probabilities, determinism, decoding shortcuts, batches."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import simplejpeg
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import VitrailError
from components.images.decode import DecodeError, DecodeLimits, encode_jpeg
from components.learning import color
from components.learning.augment import AugmentParams, JitterParams, MultiCrop, draw_view, recolor, turn
from components.learning.collate import collate, collate_bytes, normalize, normalize_crops
from components.learning.crops import Draws
from components.learning.crops import Image as Pixels
from components.params import parse_params

PLAIN = AugmentParams(
    hflip=0, jitter=JitterParams(probability=0), grayscale=0, blur=(0, 0, 0), solarize=(0, 0, 0), locals=2
)
SMALL = AugmentParams(global_size=32, local_size=16, locals=4)


def photo() -> np.ndarray:
    return np.array(skimage.data.chelsea())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def augment(view: Pixels, kind: int, params: AugmentParams, draws: Draws) -> Pixels:
    drawn = draw_view(kind, params, draws)
    return recolor(turn(view, drawn), drawn, params)


def test_shapes_and_types() -> None:
    sample = MultiCrop(AugmentParams())(encode_jpeg(photo(), 90), rng())
    assert sample.globals.shape == (2, 3, 224, 224)
    assert sample.locals.shape == (8, 3, 98, 98)
    assert sample.globals.dtype == sample.locals.dtype == np.uint8


def test_equal_generators_give_equal_views() -> None:
    crop, data = MultiCrop(SMALL), encode_jpeg(photo(), 90)
    one, same, other = crop(data, rng(1)), crop(data, rng(1)), crop(data, rng(2))
    assert all((a == b).all() for a, b in zip(one[:2], same[:2], strict=True))
    assert not (one.globals == other.globals).all()


def test_bytes_and_pixels_give_the_same_views() -> None:
    data = encode_jpeg(photo(), 90)
    crop = MultiCrop(SMALL.model_copy(update={"global_size": 224, "local_size": 98}))
    for seed in range(3):
        a, b = crop(data, rng(seed)), crop(simplejpeg.decode_jpeg(data), rng(seed))
        assert (a.globals == b.globals).all()
        assert (a.locals == b.locals).all()


def test_png_and_exif_go_through_the_general_decoder() -> None:
    image = Image.fromarray(photo())
    png, turned, upright = io.BytesIO(), io.BytesIO(), io.BytesIO()
    image.save(png, "png")
    assert (MultiCrop(SMALL)(png.getvalue(), rng()).locals == MultiCrop(SMALL)(photo(), rng()).locals).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    image.save(turned, "jpeg", quality=95, exif=exif)
    image.save(upright, "jpeg", quality=95)
    shown = np.rot90(simplejpeg.decode_jpeg(upright.getvalue()), -1)
    found = MultiCrop(PLAIN)(turned.getvalue(), rng())
    assert (found.globals == MultiCrop(PLAIN)(np.ascontiguousarray(shown), rng()).globals).all()


def test_decoding_small_is_close_to_decoding_whole() -> None:
    """The retina's 1,411 pixels leave a reduction of 2 or more to crops of 64 and 32."""
    image = np.ascontiguousarray(skimage.data.retina())
    params = PLAIN.model_copy(update={"global_size": 64, "local_size": 32})
    data = encode_jpeg(image, 95)
    whole = simplejpeg.decode_jpeg(data)
    for seed in range(4):
        small, full = MultiCrop(params)(data, rng(seed)), MultiCrop(params)(whole, rng(seed))
        for a, b in zip(small[:2], full[:2], strict=True):
            assert 0 < np.abs(a.astype(int) - b.astype(int)).mean() < 2.5


def test_gray_jpeg_equals_its_three_channels() -> None:
    gray = color.grayscale(np.ascontiguousarray(photo()))
    data = simplejpeg.encode_jpeg(gray[..., None], quality=95, colorspace="GRAY", colorsubsampling="Gray")
    full = np.repeat(simplejpeg.decode_jpeg(data, colorspace="GRAY"), 3, axis=2)
    params = SMALL.model_copy(update={"jitter": JitterParams(probability=1.0), "global_size": 224, "local_size": 98})
    for seed in range(5):
        a, b = MultiCrop(params)(data, rng(seed)), MultiCrop(params)(full, rng(seed))
        difference = np.abs(a.globals.astype(int) - b.globals)
        assert difference.max() <= 2  # one level where a blend lands on a whole number, stretched by the next one
        assert difference.mean() <= 0.1
        single = MultiCrop(params.model_copy(update={"gray": True}))(data, rng(seed))
        assert single.globals.shape == (2, 1, 224, 224)
        assert (single.globals == a.globals[:, :1]).all()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("blur", [(0.0, 0.9, 0.5), (1.0, 0.1, 0.5)])
def test_both_blur_presets_are_what_they_say(kind: int, blur: tuple[float, float, float]) -> None:
    """Trap 1: the released code blurs with the complement of its parameter; here a probability is what happens."""
    params = PLAIN.model_copy(update={"blur": blur, "blur_sigma": (1.0, 2.0)})
    view, draws = np.ascontiguousarray(photo()[:32, :32]), Draws(rng(kind))
    share = np.mean([not (augment(view, kind, params, draws) == view).all() for _ in range(1500)])
    assert abs(share - blur[kind]) < 0.04
    assert blur[kind] not in (0.0, 1.0) or share == blur[kind]


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ({"hflip": 0.3}, lambda v: v[:, ::-1]),
        ({"vflip": 0.3}, lambda v: v[::-1]),
        ({"grayscale": 0.3}, lambda v: color.grayscale(v)),
        ({"solarize": (0.0, 0.0, 0.3)}, lambda v: np.where(v >= 128, 255 - v, v)),
    ],
)
def test_probability_and_effect(change: dict[str, object], undo: object) -> None:
    params = PLAIN.model_copy(update=change)
    view, draws = np.ascontiguousarray(photo()[:24, :24]), Draws(rng(7))
    changed = undo(view)  # type: ignore[operator]
    seen = [augment(view, 2, params, draws) for _ in range(1500)]
    hit = [s.shape == changed.shape and (s == changed).all() for s in seen]
    assert all(h or (s == view).all() for h, s in zip(hit, seen, strict=True))
    assert abs(np.mean(hit) - 0.3) < 0.04


def test_quarter_turns() -> None:
    view, draws = np.ascontiguousarray(photo()[:24, :24]), Draws(rng(8))
    params = PLAIN.model_copy(update={"rot90": 0.6})
    counts = np.zeros(4)
    for _ in range(1500):
        out = augment(view, 0, params, draws)
        counts[[(np.rot90(view, k) == out).all() for k in range(4)].index(True)] += 1
    assert np.abs(counts / 1500 - [0.4, 0.3, 0.0, 0.3]).max() < 0.04


def test_jitter_factors_follow_their_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import stats

    seen: list[list[float]] = []
    orders: dict[tuple[int, ...], int] = {}

    def record(image: Pixels, order: list[int], factors: list[float]) -> Pixels:
        orders[tuple(order)] = orders.get(tuple(order), 0) + 1
        seen.append(factors)
        return image

    monkeypatch.setattr(color, "jitter", record)
    params, view, draws = AugmentParams(), np.zeros((8, 8, 3), np.uint8), Draws(rng(9))
    for _ in range(2500):
        augment(view, 0, params, draws)
    assert abs(len(seen) / 2500 - 0.8) < 0.03
    assert sorted(orders) == list(itertools.permutations(range(4)))
    assert stats.chisquare(list(orders.values())).pvalue > 0.01
    for values, (low, width) in zip(np.array(seen).T, [(0.6, 0.8), (0.6, 0.8), (0.8, 0.4), (-0.1, 0.2)], strict=True):
        assert stats.kstest(values, stats.uniform(low, width).cdf).pvalue > 0.01


def test_blur_sigma_follows_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy import stats

    seen: list[float] = []

    def record(image: Pixels, kernel: int, sigma: float) -> Pixels:
        seen.append(sigma)
        return image

    monkeypatch.setattr(color, "blur", record)
    draws, view = Draws(rng(10)), np.zeros((8, 8, 3), np.uint8)
    for _ in range(2000):
        augment(view, 1, AugmentParams(), draws)
    assert stats.kstest(seen, stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


def test_collate_orders_views_first_and_normalises() -> None:
    crop = MultiCrop(SMALL)
    samples = [crop(photo(), rng(s)) for s in range(3)]
    crops = collate(samples, SMALL)
    assert crops.globals.shape == (6, 3, 32, 32)
    assert crops.locals.shape == (12, 3, 16, 16)
    mean, std = np.array(SMALL.mean)[:, None, None], np.array(SMALL.std)[:, None, None]
    for view, image in ((0, 0), (1, 2), (1, 0)):
        expected = (samples[image].globals[view] / 255 - mean) / std
        np.testing.assert_allclose(crops.globals[view * 3 + image].numpy(), expected, atol=2e-6)
    expected = (samples[1].locals[3] / 255 - mean) / std
    np.testing.assert_allclose(crops.locals[3 * 3 + 1].numpy(), expected, atol=2e-6)
    for a, b in zip(crops[:2], normalize_crops(collate_bytes(samples), SMALL)[:2], strict=True):
        assert torch.equal(a, b)


def test_collate_gray_and_no_locals() -> None:
    params = SMALL.model_copy(update={"gray": True, "locals": 0})
    samples = [MultiCrop(params)(photo(), rng(s)) for s in range(2)]
    raw = collate_bytes(samples)
    assert raw.globals.shape == (4, 1, 32, 32)
    assert raw.locals.shape == (0, 1, 16, 16)
    crops = collate(samples, params)
    assert crops.globals.shape == (4, 3, 32, 32)
    assert crops.locals.shape == (0, 3, 16, 16)
    for a, b in zip(crops[:2], normalize_crops(raw, params)[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_normalize_on_the_device() -> None:
    raw = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    params = AugmentParams()
    there = normalize(raw, params.mean, params.std, "cuda")
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), normalize(raw, params.mean, params.std), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0nothing", b"GIF89a"])
def test_damaged_bytes_are_decode_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        MultiCrop(SMALL)(data, rng())


def test_truncated_jpeg_is_a_decode_error() -> None:
    data = encode_jpeg(photo(), 90)
    with pytest.raises(DecodeError):
        MultiCrop(SMALL)(data[: len(data) // 2], rng())


def test_an_orientation_behind_a_long_profile_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo()).save(turned, "jpeg", quality=95, exif=exif)
    Image.fromarray(photo()).save(plain, "jpeg", quality=95)
    profile = b"ICC_PROFILE\0\1\1" + bytes(6000)
    data = turned.getvalue()
    data = data[:2] + b"\xff\xe2" + (len(profile) + 2).to_bytes(2, "big") + profile + data[2:]
    shown = np.ascontiguousarray(np.rot90(simplejpeg.decode_jpeg(plain.getvalue()), -1))
    assert (MultiCrop(PLAIN)(data, rng()).globals == MultiCrop(PLAIN)(shown, rng()).globals).all()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_bytes": 5000}, "too-many-bytes"), ({"max_pixels": 9999}, "too-many-pixels"), ({"min_side": 301}, "small")],
)
def test_every_limit_holds_for_jpegs_too(limits: dict[str, int], reason: str) -> None:
    data = encode_jpeg(photo(), 90)  # 451 x 300
    with pytest.raises(DecodeError, match=reason):
        MultiCrop(SMALL, DecodeLimits(**limits))(data, rng())
    assert MultiCrop(SMALL, DecodeLimits(max_bytes=len(data), max_pixels=451 * 300, min_side=300))(data, rng())


def test_a_wide_blur_is_no_fault_where_nothing_small_is_blurred() -> None:
    AugmentParams(blur_kernel=49, local_size=24, blur=(0.5, 0.5, 0.0))
    AugmentParams(blur_kernel=49, local_size=24, locals=0)


def fuzzed() -> list[bytes]:
    """JPEGs of all kinds: colour, gray, progressive, with a profile."""
    small = np.ascontiguousarray(photo()[:40, :48])
    found = [simplejpeg.encode_jpeg(small[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray")]
    for options in ({}, {"progressive": True}, {"quality": 30}, {"icc_profile": bytes(500)}):
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, "jpeg", **options)
        found.append(buffer.getvalue())
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_jpeg_is_a_sample_or_a_decode_error(data: st.DataObject) -> None:
    """The loader replaces and reports what raises DecodeError; anything else would end the run."""
    content = bytearray(data.draw(st.sampled_from(fuzzed())))
    for _ in range(data.draw(st.integers(1, 5))):
        last = data.draw(st.sampled_from([250, 700, len(content) - 1]))  # headers are where damage tells
        at = data.draw(st.integers(2, min(last, len(content) - 1)))
        kept = data.draw(st.integers(0, 3))  # bytes that go where one byte or none comes in
        content[at : at + kept] = data.draw(st.binary(min_size=1, max_size=2))
    try:
        sample = MultiCrop(SMALL, DecodeLimits(max_pixels=200_000))(bytes(content), rng())
    except DecodeError:
        return
    assert sample.globals.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"blur_kernel": 49, "local_size": 24}, "blur_kernel: 49 taps reach beyond a crop of 24 px"),
        ({"blurr": [0, 0, 0]}, "unknown key 'blurr'; did you mean 'blur'"),
        ({"blur": [0.0, 1.2, 0.5]}, "blur.1: Input should be less than or equal to 1"),
        ({"blur_kernel": 8}, "blur_kernel: must be odd"),
        ({"local_scale": [0.5, 0.1]}, "local_scale: expected 0 < low <= high"),
        ({"global_scale": [0.5, 1.1]}, "global_scale.1: Input should be less than or equal to 1"),
        ({"jitter": {"hue": 0.7}}, "jitter.hue"),
        ({"std": [0.0, 1.0, 1.0]}, "std.0: Input should be greater than 0"),
    ],
)
def test_bad_parameters_are_explained(content: dict[str, object], expected: str) -> None:
    with pytest.raises(VitrailError, match=expected.replace(".", r"\.")):
        parse_params(content, AugmentParams, "params/x.yaml")
