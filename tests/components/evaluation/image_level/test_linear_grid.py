"""All heads in one pass equal heads trained alone by torch's own SGD, and choices say which side made them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from components.errors import VitrailError
from components.evaluation.image_level.linear_grid import LinearGridParams, _batches, train_heads
from components.evaluation.statistics.selection import choices, divide

PARAMS = LinearGridParams(rates=[0.01, 0.1, 1.0], blocks=[1], pooling=[False], steps=30, batch=32)


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    centres = np.random.default_rng(9).normal(size=(3, 8))
    return (centres[labels] + generator.normal(size=(count, 8))).astype(np.float32), labels


def alone(train: np.ndarray, labels: np.ndarray, test: np.ndarray, rate: float) -> np.ndarray:
    """One head by torch's autograd and SGD."""
    head = torch.nn.Linear(train.shape[1], 3)
    generator = torch.Generator().manual_seed(PARAMS.seed)
    with torch.no_grad():
        head.weight.copy_((torch.randn(train.shape[1], 3, generator=generator) * 0.01).T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), rate * PARAMS.batch / 256, momentum=0.9)
    for step, rows in enumerate(_batches(len(labels), PARAMS)):
        for group in optimizer.param_groups:
            group["lr"] = rate * PARAMS.batch / 256 * 0.5 * (1 + math.cos(math.pi * step / PARAMS.steps))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(torch.from_numpy(train[rows])), torch.from_numpy(labels[rows]))
        loss.backward()
        optimizer.step()
    return head(torch.from_numpy(test)).argmax(1).numpy()


def test_every_head_is_what_it_would_be_alone() -> None:
    (train, labels), (test, truth) = blobs(100, 0), blobs(80, 1)
    wide = np.concatenate([train, train[:, :2]], 1)
    both = train_heads(
        {"a": train, "b": wide}, labels, {"a": test, "b": np.concatenate([test, test[:, :2]], 1)}, PARAMS
    )
    assert both.names == [f"{name}, rate {rate:g}" for name in "ab" for rate in PARAMS.rates]
    for number, rate in enumerate(PARAMS.rates):
        assert (both.predicted[number] == alone(train, labels, test, rate)).mean() > 0.98
    assert both.right(truth)[2].mean() > 0.8


def test_a_pass_draws_every_row_once_and_a_large_batch_all_rows() -> None:
    rows = list(_batches(10, PARAMS.model_copy(update={"batch": 5, "steps": 4})))
    assert sorted(torch.cat(rows[:2]).tolist()) == sorted(torch.cat(rows[2:]).tolist()) == list(range(10))
    (whole,) = _batches(10, PARAMS.model_copy(update={"batch": 99, "steps": 1}))
    assert sorted(whole.tolist()) == list(range(10))


def test_the_papers_rule_is_never_below_the_held_out_choice() -> None:
    right = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    validation = np.array([[1, 1], [1, 0]], bool)
    found = choices(right, validation, ["x", "y"])
    assert (found.on_test.setting, found.on_test.right.mean()) == ("y", 1.0)
    assert (found.held_out.setting, found.held_out.right.mean()) == ("x", 0.75)


def test_held_out_images_leave_each_class_one_to_fit_on() -> None:
    labels = np.array([0] * 20 + [1] * 10 + [2])
    held = divide(labels, 0.1, 0)
    assert [int(held[labels == label].sum()) for label in range(3)] == [2, 1, 0]
    groups = np.repeat(np.arange(10), 5)
    held = divide(np.tile([0, 1], 25), 0.2, 0, groups)
    assert all(len(np.unique(held[groups == group])) == 1 for group in range(10))
    assert held.sum() == 10
    with pytest.raises(VitrailError, match="0 of 3 training images would be held out"):
        divide(np.arange(3), 0.1, 0)


def test_faults_are_named() -> None:
    train, labels = blobs(20, 0)
    with pytest.raises(VitrailError, match="fewer than two classes"):
        train_heads({"a": train}, np.zeros(20, int), {"a": train}, PARAMS)
    with pytest.raises(VitrailError, match="NaN or infinity"):
        train_heads({"a": train}, labels, {"a": train * np.nan}, PARAMS)
