"""What the flows ``release`` launch is a command that ``python -m components.release`` takes, whatever the values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.release.run import app
from flows.release import embed_arguments, export_arguments, import_arguments, promote_arguments


def taken(words: list[str]) -> SimpleNamespace:
    """What the command is given by ``words``, its options beside its arguments."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    options = bound.arguments.pop("options", None)
    return SimpleNamespace(**bound.arguments, **(vars(options) if options else {}))


HOSTILE = "-x; $(touch a) b"


@pytest.mark.parametrize("value", ["data/m", HOSTILE, "models:/vits@champion"])
def test_each_flows_values_arrive_as_they_are(value: str) -> None:
    given = taken(import_arguments(value, "out"))
    assert (given.source, str(given.out)) == (value, "out")
    given = taken(embed_arguments(value, value, value, ["cls", "patches"], "npy"))
    assert (given.model, given.images, str(given.out), given.features) == (value, value, value, ("cls", "patches"))
    given = taken(export_arguments(value, "o", "onnx", value))
    assert (given.model, given.to, given.licence) == (value, "onnx", value)
    given = taken(promote_arguments(value, "s", value))
    assert (given.name, str(given.scores), str(given.gate)) == (value, "s", value)
