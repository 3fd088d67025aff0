"""What a classifier keeps on other pictures of its classes: it chooses among those that a set of them has.

The classifier is fitted on the training side of the benchmark that the set belongs to, as DINOv2 does for ImageNet-A
and -R.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.knn import knn_predict
from components.evaluation.image_level.linear import fit


def among(
    train: LabelledFeatures,
    test: npt.NDArray[np.floating],
    allowed: npt.NDArray[np.integer],
    k: int,
    temperature: float = 0.07,
) -> npt.NDArray[np.int64]:
    """The vote of the ``k`` nearest rows of ``train`` that have a class of ``allowed``, [M]."""
    return knn_predict(train[_known(train.labels, allowed)], test, k, temperature)


def among_linear(
    train: LabelledFeatures,
    test: npt.NDArray[np.floating],
    allowed: npt.NDArray[np.integer],
    cost: float,
    max_iterations: int,
) -> npt.NDArray[np.int64]:
    """The likeliest class of ``allowed`` by the linear probe of that ``cost``, [M]."""
    _known(train.labels, allowed)
    model = fit(train.features, train.labels, cost, max_iterations)
    columns = np.flatnonzero(np.isin(model.classes_, allowed))
    found: npt.NDArray[np.int64] = model.classes_[columns][model.predict_log_proba(test)[:, columns].argmax(1)]
    return found


def _known(labels: npt.NDArray[np.integer], allowed: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Which training images have a class of ``allowed``; none is an error."""
    known = np.isin(labels, allowed)
    if not known.any():
        raise VitrailError("robustness: no class of the set has a training image")
    return known
