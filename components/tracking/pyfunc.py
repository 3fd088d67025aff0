"""MLflow models of the flavour pyfunc whose code is a file (models-from-code), so that nothing is pickled."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import VitrailError
from components.log_level import at_level

Answer = Callable[[Any, Mapping[str, Any]], Any]  # a pandas DataFrame and the request's params -> a DataFrame
Opener = Callable[[Path, Mapping[str, Any]], Answer]  # the model's folder and the model config


class SignatureColumn(NamedTuple):
    """Of a request or an answer."""

    name: str
    kind: str  # an MLflow type (binary, string, integer), "floats" (a list of them) or "any" (JSON)
    required: bool = False


class Interface(NamedTuple):
    """The signature of a served model."""

    inputs: Sequence[SignatureColumn]
    outputs: Sequence[SignatureColumn]
    params: Mapping[str, str]  # names with their defaults, text


def publish(opener: Opener) -> None:
    """Name ``opener`` as what makes this file's model: the last call of a models-from-code file."""
    # MLflow advises to write type hints, which would change what a request holds, and input examples.
    with at_level("mlflow", logging.ERROR), warnings.catch_warnings(action="ignore"):
        from mlflow.models import set_model
        from mlflow.pyfunc.model import PythonModel

        set_model(_served(opener, PythonModel))


def _served(opener: Opener, base: Any) -> Any:
    class Served(base):  # type: ignore[misc,unused-ignore]
        """Opens the weights once and answers requests."""

        def load_context(self, context: Any) -> None:
            """Load the weights."""
            self._answer = opener(Path(context.artifacts["model"]), dict(context.model_config or {}))

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # hints change the input
            """Answer a request."""
            from mlflow.exceptions import MlflowException

            try:
                return self._answer(model_input, params or {})
            except VitrailError as fault:
                raise MlflowException.invalid_parameter_value(str(fault)) from None

    return Served()


class Code(NamedTuple):
    """The code of a model."""

    file: Path  # calls :func:`publish`
    package: Path  # the Python package that the file imports; copied, so that the model needs no checkout
    requirements: Sequence[str]  # names of Python packages; the versions are those installed here


def save(out: Path, code: Code, weights: Path, interface: Interface, config: Mapping[str, Any]) -> None:
    """Write the folder ``out`` that ``mlflow models serve`` takes.

    Args:
        out: must not exist.
        code: the model's.
        weights: a folder named ``model``; copied to :data:`components.tracking.registry.WEIGHTS`.
        interface: names and types of columns.
        config: JSON, given to the opener.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow advises to write type hints, which would change what a request holds, and input examples.
    with at_level("mlflow", logging.ERROR), warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            str(out), python_model=str(code.file), artifacts={"model": str(weights)}, code_paths=[str(code.package)],
            signature=_signature(interface), model_config=dict(config),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in code.requirements],
        )  # fmt: skip


def _signature(interface: Interface) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    def schema(columns: Sequence[SignatureColumn]) -> Any:
        kinds: dict[str, Any] = {"floats": Array(DataType.double), "any": AnyType()}
        return Schema([
            ColSpec(kinds.get(one.kind) or DataType[one.kind], one.name, required=one.required) for one in columns
        ])  # fmt: skip

    params = ParamSchema([ParamSpec(name, DataType.string, value) for name, value in interface.params.items()])
    return ModelSignature(schema(interface.inputs), schema(interface.outputs), params)
