"""What the flows ``release`` launch is a command that ``python -m components.release`` takes, whatever the values."""

from __future__ import annotations

import pytest

from components.release.run import parser
from flows.release import embed_arguments, export_arguments, import_arguments, promote_arguments

HOSTILE = "-x; $(touch a) b"


@pytest.mark.parametrize("value", ["data/m", HOSTILE, "models:/vits@champion"])
def test_each_flows_values_arrive_as_they_are(value: str) -> None:
    taken = parser().parse_args(import_arguments(value, "out"))
    assert (taken.source, str(taken.out)) == (value, "out")
    taken = parser().parse_args(embed_arguments(value, value, value, ["cls", "patches"], "npy"))
    assert (taken.model, taken.images, str(taken.out), taken.features) == (value, value, value, ["cls", "patches"])
    taken = parser().parse_args(export_arguments(value, "o", "onnx", value))
    assert (taken.model, taken.to, taken.licence) == (value, "onnx", value)
    taken = parser().parse_args(promote_arguments(value, "s", value))
    assert (taken.name, str(taken.scores), str(taken.gate)) == (value, "s", value)
