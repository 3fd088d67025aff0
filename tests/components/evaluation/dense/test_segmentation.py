"""Patch labels, mean IoU and the dense probe against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.evaluation.dense.patch_labels import (
    IGNORE,
    Patches,
    confusion,
    dense_probe,
    enlarge,
    mean_iou,
    patch_labels,
)
from components.evaluation.image_level.linear import LinearParams

PARAMS = LinearParams(costs=[0.01, 1.0], folds=2, max_iterations=100, seed=0)


@given(seed=st.integers(0, 10**6), grid=st.integers(1, 4), patch=st.integers(1, 4), classes=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_patch_has_the_label_of_its_largest_area(seed: int, grid: int, patch: int, classes: int) -> None:
    masks = np.random.default_rng(seed).integers(IGNORE, classes, (3, grid * patch, grid * patch))
    found = patch_labels(masks, grid, classes)
    for number, mask in enumerate(masks):
        for row in range(grid):
            for column in range(grid):
                cell = mask[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                areas = [int((cell == label).sum()) for label in range(classes)]
                expected = areas.index(max(areas)) if max(areas) else IGNORE
                assert found[number, row * grid + column] == expected


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), count=st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_mean_iou_is_scikit_learns_macro_jaccard(seed: int, classes: int, count: int) -> None:
    from sklearn.metrics import confusion_matrix, jaccard_score

    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(IGNORE, classes, count), generator.integers(0, classes, count)
    known = truth != IGNORE
    matrix = confusion(truth, predicted, classes)
    if not known.any():
        assert mean_iou(matrix) == 0.0
        return
    assert (matrix == confusion_matrix(truth[known], predicted[known], labels=range(classes))).all()
    present = np.union1d(truth[known], predicted[known])
    theirs = jaccard_score(truth[known], predicted[known], labels=present, average="macro")
    assert mean_iou(matrix) == pytest.approx(theirs, abs=1e-12)


def test_enlarging_keeps_patches_of_one_class_whole() -> None:
    levels = np.zeros((16, 2), np.float32)
    levels[:, 1] = 1.0
    assert (enlarge(levels, 4, 12).argmax(0) == 1).all()
    split = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)  # left column class 0, right class 1
    assert (enlarge(split, 2, 8).argmax(0) == (np.arange(8) >= 4)).all()


def planted(seed: int, pictures: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, 16, 6] and masks [n, 16, 16] of pictures whose left or right half is class 1."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((pictures, 16, 16), np.int16)
    for mask, flip in zip(masks, generator.random(pictures) < 0.5, strict=True):
        mask[:, slice(0, 8) if flip else slice(8, 16)] = 1
    tokens = generator.normal(size=(pictures, 16, 6))
    tokens[..., 2] += strength * (2 * patch_labels(masks, 4, 2) - 1)
    return tokens.astype(np.float32), masks


def run(strength: float) -> tuple[float, float]:
    (train, fitted), (held_out, masks) = planted(0, 20, strength), planted(1, 10, strength)
    labels = patch_labels(fitted, 4, 2)
    pictures = np.repeat(np.arange(20), 16)
    found = dense_probe(Patches(train.reshape(-1, 6), labels.reshape(-1), pictures), held_out, masks, 2, PARAMS)
    assert found.cost in PARAMS.costs
    return found.miou, found.accuracy


def test_the_dense_probe_finds_what_is_planted_and_nothing_in_noise() -> None:
    miou, accuracy = run(3.0)
    assert miou > 0.95
    assert accuracy > 0.97
    miou, accuracy = run(0.0)
    assert miou < 0.45
    assert 0.35 < accuracy < 0.65


def test_the_dense_probe_is_a_standardised_1x1_convolution_on_enlarged_logits() -> None:
    """The same map written as the protocol has it: batch normalisation, a 1 x 1 convolution, enlarged logits."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(3)
    tokens, classes = generator.normal(size=(12, 16, 5)).astype(np.float32), 3
    masks = generator.integers(0, classes, (12, 8, 8)).astype(np.int16)
    tokens[..., :3] += np.eye(3)[patch_labels(masks, 4, 3)]
    labels = patch_labels(masks, 4, 3)
    flat, params = tokens[:8].reshape(-1, 5), LinearParams(costs=[0.5], max_iterations=200)
    patches = Patches(flat, labels[:8].reshape(-1), np.repeat(np.arange(8), 16))
    ours = dense_probe(patches, tokens[8:], masks[8:], 3, params)
    mean, std = flat.mean(0), flat.std(0)
    theirs = LogisticRegression(C=0.5, max_iter=200).fit((flat - mean) / std, labels[:8].reshape(-1))
    norm = torch.nn.BatchNorm2d(5, eps=0.0, affine=False).eval()
    norm.running_mean, norm.running_var = torch.from_numpy(mean), torch.from_numpy(std**2)
    convolution = torch.nn.Conv2d(5, 3, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(theirs.coef_)[..., None, None])
        convolution.bias.copy_(torch.from_numpy(theirs.intercept_))
        maps = torch.from_numpy(tokens[8:]).transpose(1, 2).reshape(4, 5, 4, 4)
        logits = torch.nn.functional.interpolate(convolution(norm(maps)), (8, 8), mode="bilinear")
    matrix = confusion(masks[8:], logits.argmax(1).numpy(), 3)
    # Log-probabilities differ from logits by a constant a patch: enlarged, they may differ where two classes tie.
    assert ours.accuracy == pytest.approx(np.diag(matrix).sum() / matrix.sum(), abs=0.02)
    assert ours.miou == pytest.approx(mean_iou(matrix), abs=0.02)


def test_faults_are_named() -> None:
    tokens, masks = planted(0, 4, 1.0)
    flat, pictures = tokens.reshape(-1, 6), np.repeat(np.arange(4), 16)
    with pytest.raises(VitrailError, match="fewer than two classes"):
        dense_probe(Patches(flat, np.zeros(64, int), pictures), tokens, masks, 2, PARAMS)
    with pytest.raises(VitrailError, match="NaN"):
        dense_probe(Patches(flat * np.nan, np.arange(64) % 2, pictures), tokens, masks, 2, PARAMS)
