"""Filters of the user's own: each is one function or class, and one line in ``params/curate.yaml``.

``filters: [{name: dark, call: my_package.dark:make, threshold: 0.5}]`` drops images as ``filter:dark``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from components.errors import VitrailError
from components.images.decode import RGB
from components.input_paths import PluginName
from components.params import Strict
from components.plugins import load_plugin

PREFIX = "filter:"  # of the reasons


class FilterParams(Strict):
    """What scores images, and the score that drops one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)  # in the reason, filter:NAME
    call: PluginName  # package.module:maker; the maker takes this section, returns an ImageFilter
    threshold: float = Field(0.5, ge=-1e6, le=1e6)  # a higher score drops the image
    settings: dict[str, Any] = {}  # whatever the maker wants to know

    @property
    def reason(self) -> str:
        """Why its images are dropped, as in the index."""
        return PREFIX + self.name


class ImageFilter(Protocol):
    """A plug-in. It takes a batch of images and returns a score for each."""

    def __call__(self, images: Sequence[RGB]) -> Sequence[float]:
        """Scores of images, each uint8 ``[H, W, 3]``, in order. A score above the threshold drops its image."""


def filter_scores(images: Sequence[RGB], params: FilterParams) -> list[float]:
    """The filter's score of each image.

    Raises:
        VitrailError: there is no such plug-in, or it does not return a number for each image.
    """
    if not images:
        return []
    scores = [float(score) for score in _made(params.model_dump_json())(images)]
    if len(scores) != len(images) or not all(math.isfinite(score) for score in scores):
        raise VitrailError(
            f"filters: {params.call} returned {len(scores)} scores for {len(images)} images; "
            "it must return a finite number for each"
        )
    return scores


@functools.lru_cache(maxsize=8)
def _made(params: str) -> ImageFilter:
    given = FilterParams.model_validate_json(params)
    made: ImageFilter = load_plugin(given.call, f"filters: {given.name}")(given)
    return made
