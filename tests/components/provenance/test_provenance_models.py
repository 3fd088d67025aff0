"""Which models saw an image: those trained on it, those that went on from such a one, and their students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.provenance.holders import models


def test_a_model_holds_what_the_one_that_it_started_from_saw(tmp_path: Path) -> None:
    def card(name: str, **content: Any) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(json.dumps({"preset": name, "data_digest": "other"} | content))

    card("teacher", data_digest="seen")
    card("on", init={"source": "data/pretrain/teacher", "sha256": {}, "data_digests": ["older", "seen"]})
    card("student", teacher="on")
    card("released", init={"source": "dinov2.pth", "sha256": {}, "data_digests": []})
    card("alone", init=None)
    assert models([tmp_path], ["seen"]) == [
        (str(tmp_path / "on"), "the model that it started from was (data/pretrain/teacher)"),
        (str(tmp_path / "student"), "its teacher on was"),
        (str(tmp_path / "teacher"), "trained on it"),
    ]
