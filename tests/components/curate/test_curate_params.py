"""The parameter files name every knob of their models, so that nothing has to be found in the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.crawl.spider import CrawlParams
from components.curate.params import CurateParams
from components.executor import ExecutorParams

ROOT = Path(__file__).resolve().parents[3]


def unnamed(model: type[BaseModel], content: dict[str, Any], where: str = "") -> list[str]:
    missing = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if name not in content:
            missing.append(f"{where}{name}")
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not ExecutorParams:
            missing += unnamed(kind, content[name], f"{where}{name}.")
    return missing


@pytest.mark.parametrize(("file", "model"), [("crawl.yaml", CrawlParams), ("curate.yaml", CurateParams)])
def test_every_knob_is_named(file: str, model: type[BaseModel]) -> None:
    content = yaml.safe_load((ROOT / "params" / file).read_text())
    assert unnamed(model, content) == []
    assert content["sandbox"] == model.model_fields["sandbox"].get_default().model_dump()
