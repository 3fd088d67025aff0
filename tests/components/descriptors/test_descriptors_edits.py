from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from components.descriptors.edits import edited, mix, turned
from components.descriptors.overlays import FONTS, GLYPHS, LETTERS, emoji_masks, overlay, paste, text_mask
from components.descriptors.train_params import EditParams, MixParams, OverlayParams
from components.errors import VitrailError
from components.params import parse_params

NOTHING = {
    "flip": 0,
    "quarter_turn": 0,
    "overlays": {"text": 0, "emoji": 0},
    "turn": 0,
    "crop_scale": [1, 1],
    "crop_ratio": [1, 1],
    "jitter": 0,
    "gray": 0,
    "blur": 0,
    "jpeg": 0,
}


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def only(**changes: object) -> EditParams:
    return parse_params(NOTHING | changes, EditParams, "test")


def test_every_glyph_is_in_the_fonts() -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for font in FONTS:
        known = FT2Font(str(folder / f"{font}.ttf")).get_charmap()
        assert not [letter for letter in LETTERS if ord(letter) not in known], font
    known = FT2Font(str(folder / "DejaVuSans.ttf")).get_charmap()
    assert not [glyph for glyph in GLYPHS if ord(glyph) not in known]


def test_an_emoji_is_filled_and_has_lines() -> None:
    for glyph in GLYPHS:
        fill, lines = emoji_masks(glyph)
        assert fill.shape == lines.shape
        assert (fill >= lines).all()
        assert fill.max() == 255
    face, lines = emoji_masks("\U0001f600")
    assert face[len(face) // 2, face.shape[1] // 2] == 255  # inside the outline
    assert (face > 0).sum() > 1.5 * (lines > 0).sum()


def test_text_is_tightly_cut_and_a_blank_is_a_bar() -> None:
    mask = text_mask("Ag", "DejaVuSans")
    assert mask[0].any()
    assert mask[-1].any()
    assert mask[:, 0].any()
    assert mask[:, -1].any()
    assert (text_mask(" ", "DejaVuSans") == 255).all()


@pytest.mark.parametrize("size", [(8, 6), (200, 10), (10, 200), (1, 1)])
def test_paste_blends_inside_and_leaves_the_rest(size: tuple[int, int]) -> None:
    rgb = picture(0)
    mask = np.full((*size, 1), 255, np.uint8)
    out = paste(rgb, mask, np.array([200, 0, 100]), 0.25, np.random.default_rng(0))
    changed = (out != rgb).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert len(rows) <= size[0]
    assert len(columns) <= size[1]
    inside = np.ix_(rows, columns)
    np.testing.assert_allclose(out[inside], 0.75 * rgb[inside] + [50, 0, 25], atol=0.51)


def test_each_edit_does_what_it_says() -> None:
    rgb = picture(1, 64, 64)
    draw = np.random.default_rng
    assert (edited(rgb, 64, only(), draw(0)) == rgb).all()
    assert (edited(rgb, 64, only(flip=1), draw(0)) == rgb[:, ::-1]).all()
    turns = {
        k
        for seed in range(9)
        for k in (1, 2, 3)
        if (edited(rgb, 64, only(quarter_turn=1), draw(seed)) == np.rot90(rgb, k)).all()
    }
    assert turns == {1, 2, 3}
    gray = edited(rgb, 64, only(gray=1), draw(0))
    assert (gray[..., 0] == gray[..., 1]).all()
    assert (gray[..., 0] == gray[..., 2]).all()
    assert edited(rgb, 64, only(blur=1), draw(0)).std() < 0.8 * rgb.std()
    calm = np.repeat(np.repeat(picture(1, 8, 8), 8, 0), 8, 1)
    rough = edited(calm, 64, only(jpeg=1, jpeg_quality=[0, 0]), draw(0)).astype(int)
    fine = edited(calm, 64, only(jpeg=1, jpeg_quality=[100, 100]), draw(0)).astype(int)
    assert abs(rough - calm).mean() > 2 * abs(fine - calm).mean() > 0
    still = edited(rgb, 64, only(jitter=1, brightness=0, contrast=0, saturation=0, hue=0), draw(0))
    np.testing.assert_allclose(still.astype(int), rgb, atol=1)
    assert (edited(rgb, 64, only(jitter=1), draw(0)) != rgb).mean() > 0.5
    assert (edited(rgb, 64, only(overlays={"text": 1, "emoji": 0}), draw(0)) != rgb).any()
    smooth = np.repeat(np.repeat(np.arange(64, dtype=np.uint8)[:, None], 64, 1)[..., None], 3, 2)
    part = edited(smooth, 32, only(crop_scale=[0.25, 0.25]), draw(0))  # half of each side
    assert int(part.max()) - int(part.min()) == 31
    assert edited(rgb[:, :1], 32, EditParams(), draw(0)).shape == (32, 32, 3)  # a picture one pixel wide


def test_a_turn_keeps_the_middle_and_grays_the_corners() -> None:
    rgb = picture(2, 33, 33)
    assert (turned(rgb, 0.0) == rgb).all()
    assert (turned(rgb, 180.0) == rgb[::-1, ::-1]).all()
    tilted = turned(rgb, 45.0)
    assert (tilted[0, 0] == 128).all()
    assert (tilted[16, 16] == rgb[16, 16]).all()


def test_edits_follow_from_the_generator_alone() -> None:
    rgb, params = picture(3), EditParams(overlays=OverlayParams(text=1, emoji=1))
    first = [edited(rgb, 32, params, np.random.default_rng(seed)) for seed in range(8)]
    again = [edited(rgb, 32, params, np.random.default_rng(seed)) for seed in range(8)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) == 8
    assert overlay(rgb, params.overlays, np.random.default_rng(0)).shape == rgb.shape


def test_mixtures_name_the_images_in_them() -> None:
    flat = np.stack([np.full((8, 8, 3), 10 * level, np.uint8) for level in range(20)] * 2)
    sources = np.tile(np.arange(20), 2)
    for cutmix in (0.0, 1.0):
        views = flat.copy()
        both = mix(views, sources, MixParams(share=0.5, cutmix=cutmix), np.random.default_rng(0))
        assert (both[:, 0] == sources).all()
        mixed = both[:, 1] != sources
        assert 8 <= mixed.sum() <= 30
        assert (views[~mixed] == flat[~mixed]).all()
        for row in np.flatnonzero(mixed):
            low, high = sorted(10 * both[row])
            levels = set(np.unique(views[row]).tolist())
            if cutmix:
                assert levels <= {low, high}
                assert 10 * both[row, 1] in levels
            else:
                assert len(levels) == 1
                assert low <= min(levels) <= high
    unmixed = mix(flat.copy(), sources, MixParams(share=0.0), np.random.default_rng(0))
    assert (unmixed == sources[:, None]).all()


@pytest.mark.parametrize("change", [{"crop_scale": [0.5, 0.2]}, {"crop_scale": [0, 1]}, {"jpeg_quality": [90, 10]}])
def test_a_range_the_wrong_way_round_is_one_line(change: dict[str, object]) -> None:
    with pytest.raises(VitrailError, match=f"{next(iter(change))} must be a range from low to high"):
        only(**change)


def test_a_crop_larger_than_its_picture_is_one_line() -> None:
    with pytest.raises(VitrailError, match=r"crop_scale\.1: Input should be less than or equal to 1"):
        only(crop_scale=[1, 2])
