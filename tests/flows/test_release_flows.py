"""What the flows ``release`` launch is a command that ``python -m components.release`` takes, whatever the values."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from components.release.run import app
from components.release.weights.export import save_model
from flows.release import (
    embed,
    embed_arguments,
    export_arguments,
    import_arguments,
    import_model,
    promote,
    promote_arguments,
)
from tests.components.release.small_models import small_model

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.e2e
def test_each_flow_runs_its_command_and_says_how_it_ended(
    prefect_api: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params/platform.yaml").write_text((ROOT / "params/platform.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "components").symlink_to(ROOT / "components")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    save_model(small_model(), tmp_path / "m")
    Image.new("RGB", (60, 60)).save(tmp_path / "one.png")
    state = import_model("m", "taken", return_state=True)
    assert (state.is_completed(), (tmp_path / "taken/model.json").is_file()) == (True, True), state.message
    state = embed("taken", "one.png", "features", ["mean"], return_state=True)
    assert (state.is_completed(), (tmp_path / "features/features.json").is_file()) == (True, True), state.message
    state = promote("vits", return_state=True)
    assert state.is_failed()
    assert "no such store, so no registered models" in state.message
