"""A classifier on frozen features: kNN or logistic regression, with calibrated scores and a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from components.errors import VitrailError
from components.evaluation.image_level.linear import LinearParams, choose_cost, fit
from components.params import Seed, Share, Strict
from components.storage import atomic_dir

FACTS, ARRAYS = "classifier.json", "arrays.npz"
Rows = npt.NDArray[np.float32]


class ClassifierParams(Strict):
    """How images are told apart."""

    method: Literal["knn", "logistic"] = "logistic"
    k: int = Field(10, ge=1, le=1_000_000)  # neighbours that vote
    temperature: float = Field(0.07, gt=0, le=1000)  # of kNN votes: exp(cosine / temperature), as DINO takes it
    costs: list[Annotated[float, Field(gt=0, le=1e9)]] = Field(
        [0.01, 0.1, 1.0, 10.0], min_length=1
    )  # inverse strengths of the L2 penalty to choose from
    folds: int = Field(5, ge=2, le=1000)  # of cross-validation; fewer where a class has fewer images
    seed: Seed = 0  # of the folds


class ClassifierFacts(Strict):
    """``classifier.json``."""

    model: str  # by value
    params: ClassifierParams
    classes: list[str]
    spec: dict[str, Any]  # of the features
    weights: dict[str, str] = {}  # SHA-256 of the model's, by file; none: not known
    scale: float = Field(
        gt=0, le=1e9
    )  # scores are softmax(logits / scale): fitted on predictions for images that were held out
    images: int = Field(ge=1, le=10**12)
    accuracy: Share  # of cross-validation
    log_loss: float = Field(ge=0, le=1e9)  # of its calibrated scores; nats
    confusion: list[
        list[Annotated[int, Field(ge=0, le=10**12)]]
    ]  # of cross-validation; row: true class, column: predicted


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier; :meth:`scores` gives probabilities."""

    facts: ClassifierFacts
    arrays: dict[str, Any]
    held_out: Rows | None = None  # [N, C] calibrated scores of cross-validation, right after the fit

    def scores(self, features: Rows) -> Rows:
        """Probabilities [N, C] of features [N, D]."""
        return _softmax(_logits(self.arrays, features, self.facts.params) / self.facts.scale)

    def save(self, out: Path) -> None:
        """Write the folder ``out``: JSON and arrays, no pickle."""
        with atomic_dir(out) as folder:
            np.savez(folder / ARRAYS, allow_pickle=False, **self.arrays)
            (folder / FACTS).write_text(self.facts.model_dump_json(indent=1) + "\n")


def fit_classifier(
    features: Rows,
    labels: Sequence[str],
    params: ClassifierParams,
    model: str = "",
    spec: dict[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
) -> Classifier:
    """Fit on features [N, D] and their labels.

    Cross-validation gives accuracy, confusion matrix and the scale of the scores; then all images are fitted.

    Raises:
        VitrailError: fewer than two classes, or a class with a single image.
    """
    classes = sorted(set(labels))
    numbers = np.array([classes.index(label) for label in labels], np.int64)
    counts = np.bincount(numbers, minlength=len(classes))
    if len(classes) < 2:
        raise VitrailError(f"classify: {len(classes)} class of images; at least two are needed")
    if counts.min() < 2:
        raise VitrailError(f"classify: class {classes[int(counts.argmin())]!r} has one image; two or more are needed")
    params = params.model_copy(update={"folds": min(params.folds, int(counts.min()))})
    held = _held_out_logits(features, numbers, params, len(classes))
    scale = _scale(held, numbers)
    scores = _softmax(held / scale)
    predicted = scores.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (numbers, predicted), 1)
    facts = ClassifierFacts(
        model=model,
        params=params,
        classes=classes,
        spec=spec or {},
        weights=dict(weights or {}),
        scale=scale,
        images=len(labels),
        accuracy=float((predicted == numbers).mean()),
        log_loss=float(-np.log(np.maximum(scores[np.arange(len(labels)), numbers], 1e-12)).mean()),
        confusion=confusion.tolist(),
    )
    return Classifier(facts, _fitted(features, numbers, params, len(classes)), scores)


def load_classifier(folder: Path) -> Classifier:
    """The classifier that :meth:`Classifier.save` wrote.

    Raises:
        VitrailError: not there, or damaged.
    """
    import zipfile

    try:
        facts = ClassifierFacts.model_validate_json((folder / FACTS).read_text())
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            return Classifier(facts, dict(arrays))
    except FileNotFoundError:
        raise VitrailError(f"{folder}: no classifier here; run `classify fit` first") from None
    except (ValidationError, ValueError, OSError, zipfile.BadZipFile) as fault:
        raise VitrailError(f"{folder}: a damaged classifier ({str(fault).splitlines()[0]}); fit it again") from None


def confusion_table(facts: ClassifierFacts) -> str:
    """The confusion matrix and accuracy as text."""
    width = max(len(name) for name in facts.classes)
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>{max(5, len(name))}}" for name in facts.classes)]
    for name, row in zip(facts.classes, facts.confusion, strict=True):
        cells = "  ".join(f"{n:>{max(5, len(c))}}" for n, c in zip(row, facts.classes, strict=True))
        lines.append(f"{name:{width}}  {cells}")
    lines.append(
        f"cross-validated: {facts.accuracy:.1%} of {facts.images} images right, log loss {facts.log_loss:.3f}; "
        "rows are true classes, columns predictions"
    )
    return "\n".join(lines)


def worst_errors(classifier: Classifier, labels: Sequence[str], most: int) -> list[int]:
    """Places of the held-out images that were wrong with the highest score, the surest first."""
    assert classifier.held_out is not None
    numbers = np.array([classifier.facts.classes.index(label) for label in labels])
    scores = classifier.held_out
    wrong = np.flatnonzero(scores.argmax(1) != numbers)
    order = np.argsort(-scores[wrong].max(1), kind="stable")
    return [int(place) for place in wrong[order][:most]]


def _fitted(features: Rows, numbers: npt.NDArray[np.int64], params: ClassifierParams, classes: int) -> dict[str, Any]:
    if params.method == "knn":
        return {"bank": _unit(features), "labels": numbers, "classes": np.int64(classes)}
    costs = LinearParams(costs=params.costs, folds=params.folds, seed=params.seed)
    cost = params.costs[0] if len(params.costs) == 1 else choose_cost(features, numbers, costs)[0]
    model = fit(features, numbers, cost, costs.max_iterations)
    scaler, regression = model[0], model[1]
    weights = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, -1e9)  # of a class that this fold has not seen
    seen = regression.classes_
    if len(seen) == 2:  # scikit-learn keeps one row for two classes
        weights[seen[1]], bias[seen[0]], bias[seen[1]] = regression.coef_[0], 0.0, regression.intercept_[0]
    else:
        weights[seen], bias[seen] = regression.coef_, regression.intercept_
    return {"mean": scaler.mean_, "std": scaler.scale_, "weights": weights, "bias": bias, "cost": np.float64(cost)}


def _logits(arrays: dict[str, Any], features: Rows, params: ClassifierParams) -> Rows:
    if params.method == "knn":
        bank, labels, classes = arrays["bank"], arrays["labels"], int(arrays["classes"])
        k = min(params.k, len(bank))
        found = np.empty((len(features), classes), np.float32)
        for start in range(0, len(features), 1024):
            cosines = _unit(features[start : start + 1024]) @ bank.T
            nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
            near = np.take_along_axis(cosines, nearest, 1)
            votes = np.exp((near - near.max(1, keepdims=True)) / params.temperature)
            shares = np.zeros((len(near), classes))
            for number in range(classes):
                shares[:, number] = (votes * (labels[nearest] == number)).sum(1)
            # as if each class had a small vote from far away: a class without neighbours is unlikely, not impossible
            found[start : start + 1024] = np.log(shares / shares.sum(1, keepdims=True) + 1e-3)
        return found
    standard = (features - arrays["mean"]) / arrays["std"]
    return np.asarray(standard @ arrays["weights"].T + arrays["bias"], np.float32)


def _held_out_logits(features: Rows, numbers: npt.NDArray[np.int64], params: ClassifierParams, classes: int) -> Rows:
    from sklearn.model_selection import StratifiedKFold

    logits = np.empty((len(features), classes), np.float32)
    folds = StratifiedKFold(params.folds, shuffle=True, random_state=params.seed)
    smallest = int(np.bincount(numbers).min())
    for fitted, held in folds.split(features, numbers):
        inner = max(2, min(params.folds, smallest - smallest // params.folds - 1))
        enough = smallest >= 4
        own = params.model_copy(update={"folds": inner, "costs": params.costs if enough else [1.0]})
        logits[held] = _logits(_fitted(features[fitted], numbers[fitted], own, classes), features[held], own)
    return logits


def _scale(logits: Rows, numbers: npt.NDArray[np.int64]) -> float:
    """The divisor of the logits that makes held-out scores most likely (temperature scaling, arXiv 1706.04599)."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        scores = _softmax(logits / np.exp(log_scale))
        return float(-np.log(np.maximum(scores[np.arange(len(numbers)), numbers], 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x))


def _unit(features: Rows) -> Rows:
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)


def _softmax(logits: npt.NDArray[Any]) -> Rows:
    shifted = np.exp(np.asarray(logits, np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float32)
