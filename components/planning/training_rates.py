"""Kinds of GPUs, and how much of them training uses: ``params/rates/training.yaml``, or figures on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from components.errors import VitrailError, nearest
from components.params import Strict


class Gpu(Strict):
    """A kind of GPU."""

    gigabytes: float = Field(gt=0, le=1e15)  # of memory
    teraflops: float = Field(gt=0, le=1e15)  # a second, peak of dense 16-bit products
    link: float = Field(gt=0, le=1e15)  # GB a second, one way, within its machine
    network: float = Field(gt=0, le=1e15)  # GB a second, one way, to other machines
    utilisation: float = Field(gt=0, le=1)  # share of the peak that whole runs reach


class TrainingRates(Strict):
    """``params/rates/training.yaml``."""

    gpus_per_machine: int = Field(ge=1, le=4096)
    gpus: dict[str, Gpu]
    other: float = Field(gt=0, le=1)  # utilisation of a GPU given by its figures


def positive(name: str, value: float | None, most: float = math.inf) -> float | None:
    """``value`` of the argument ``--name``, if it is a finite number above 0 and at most ``most``.

    Raises:
        VitrailError: it is not.
    """
    if value is not None and not (math.isfinite(value) and 0 < value <= most):
        limit = "" if most == math.inf else f" and at most {most:g}"
        raise VitrailError(f"--{name} {value:g}: must be a number more than 0{limit}")
    return value


def pick_gpu(
    rates: TrainingRates, kind: str | None, figures: Mapping[str, float | None], utilisation: float | None
) -> tuple[str, Gpu]:
    """Name and figures of the GPU to plan for.

    Args:
        kind: one that ``rates`` knows; None: ``h100-80gb``, or one that ``figures`` describe.
        figures: ``memory`` in GB, ``tflops`` and ``bandwidth`` in GB/s, each None or in the place of the kind's.
        utilisation: in the place of the kind's.

    Raises:
        VitrailError: an unknown kind, a figure that is none, or too few for a GPU without a name.
    """
    for name, value in figures.items():
        positive(name, value)
    positive("utilisation", utilisation, 1.0)
    given = {name: value for name, value in figures.items() if value is not None}
    if kind is None and given:
        missing = [f"--{name}" for name in figures if name not in given]
        if missing:
            raise VitrailError(f"a GPU without a name needs {', '.join(missing)}, too; or name one by --gpu")
        chosen = Gpu(
            gigabytes=given["memory"],
            teraflops=given["tflops"],
            link=given["bandwidth"],
            network=given["bandwidth"],
            utilisation=utilisation or rates.other,
        )
        return f"GPU of {chosen.gigabytes:g} GB, {chosen.teraflops:g} TFLOP/s, {chosen.network:g} GB/s", chosen
    kind = kind or "h100-80gb"
    if kind not in rates.gpus:
        hint = nearest(kind, list(rates.gpus))
        raise VitrailError(
            f"--gpu {kind}: known are {', '.join(rates.gpus)}{hint}; or give --memory, --tflops and --bandwidth"
        )
    changed: dict[str, float] = {} if utilisation is None else {"utilisation": utilisation}
    if "memory" in given:
        changed["gigabytes"] = given["memory"]
    if "tflops" in given:
        changed["teraflops"] = given["tflops"]
    if "bandwidth" in given:
        changed |= {"link": given["bandwidth"], "network": given["bandwidth"]}
    return kind, rates.gpus[kind].model_copy(update=changed)
