"""The 52 heads of the linear grid against one head, and the logistic grid's warm starts against independent fits.

Processor time, so that other work on the machine does not count. Features are drawn around class centres; a head's time
does not depend on what they mean. One pass of ViT-S/14 over the training images at 224 px, which both grids need once,
is timed on a few images and multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from components.evaluation.image_level.linear_grid import HeadsOfOneInput, LinearGridParams, train_heads
from components.evaluation.image_level.logistic import LogisticParams, logistic_path
from components.learning.vit import VisionTransformer, ViTConfig

TRAIN, TEST, WIDTH, CLASSES, STEPS = 4000, 500, 384, 10, 300
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
FITTED = 1500  # images of the logistic grid


def main() -> dict[str, object]:
    """Seconds of each, and ratios."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, 5 * WIDTH))
    labels = generator.integers(0, CLASSES, TRAIN + TEST)
    rows = (centres[labels] + 4 * generator.normal(size=(TRAIN + TEST, 5 * WIDTH))).astype(np.float32)
    widths = {"1": WIDTH, "1, pooled": 2 * WIDTH, "4": 4 * WIDTH, "4, pooled": 5 * WIDTH}
    train = {name: rows[:TRAIN, :width] for name, width in widths.items()}
    test = {name: rows[TRAIN:, :width] for name, width in widths.items()}
    grid = LinearGridParams(rates=RATES, steps=STEPS, batch=1024)
    one = grid.model_copy(update={"rates": [1e-2]})
    all_heads = seconds(lambda: train_heads(train, labels[:TRAIN], test, grid))
    single = seconds(lambda: train_heads({"1": train["1"]}, labels[:TRAIN], {"1": test["1"]}, one))
    forward = forward_seconds() * TRAIN
    step, products = paper_step()
    costs = np.logspace(-6, 5, 45).tolist()
    few, known, held = rows[:FITTED, :WIDTH], labels[:FITTED], rows[TRAIN:, :WIDTH]
    params = LogisticParams(costs=costs)
    logistic_path(few[:50], known[:50], [held], LogisticParams(costs=[1.0]))  # imports, which count for neither
    found = {}
    times = {
        warm: seconds(lambda warm=warm: found.update({warm: logistic_path(few, known, [held], params, warm)[0]}))
        for warm in (True, False)
    }
    return {
        "52 heads": f"{TRAIN} images, {CLASSES} classes, {STEPS} steps of 1024",
        "one_head_seconds": round(single, 2),
        "52_heads_seconds": round(all_heads, 2),
        "forward_pass_seconds": round(forward, 1),
        "ratio_on_kept_features": round(all_heads / single, 2),
        "paper": "13 heads of 1,000 classes on 1,024 x 1,536 features: a step, and its two matrix products alone",
        "paper_step_seconds": round(step, 3),
        "paper_step_over_its_products": round(step / products, 2),
        "ratio_with_the_forward_pass": round((all_heads + forward) / (single + forward), 2),
        "logistic": f"{FITTED} x {WIDTH}, {CLASSES} classes, {len(costs)} strengths",
        "warm_seconds": round(times[True], 1),
        "independent_seconds": round(times[False], 1),
        "warm_ratio": round(times[True] / times[False], 2),
        "equal_predictions": round(float((found[True] == found[False]).mean()), 4),
    }


def paper_step(width: int = 1536, classes: int = 1000, batch: int = 1024) -> tuple[float, float]:
    """Processor seconds of a step of the heads of one input, and of nothing but its two matrix products."""
    heads = HeadsOfOneInput(width, classes, torch.tensor(RATES), LinearGridParams(rates=RATES), "cpu")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, width, generator=generator)
    truth = torch.randint(0, classes, (batch,), generator=generator)
    weights = torch.randn(width, classes * len(RATES), generator=generator)
    slope = torch.randn(batch, classes * len(RATES), generator=generator)
    sides = (lambda: heads.step(rows, truth, 0.5)), (lambda: (rows @ weights, rows.T @ slope))
    step, products = (min(seconds(side) for _ in range(3)) for side in sides)
    return step, products


def forward_seconds(images: int = 8) -> float:
    """Processor seconds of an image at 224 px through ViT-S/14."""
    model = VisionTransformer(ViTConfig(image_size=224, patch_size=14, embed_dim=WIDTH, depth=12, heads=6)).eval()
    pixels = torch.zeros(images, 3, 224, 224)
    with torch.inference_mode():
        model(pixels)
        return seconds(lambda: model(pixels)) / images


def seconds(work: Callable[[], object]) -> float:
    """Processor time of ``work``, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start
