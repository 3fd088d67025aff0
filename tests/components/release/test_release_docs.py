"""Every command of docs/using.md runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.release.run import main
from tests.components.release.small_models import official_names, saved, small_vit

PAGE = Path(__file__).resolve().parents[3] / "docs/using.md"
COMMAND = "python -m components.release "


def commands() -> list[str]:
    """The commands in the page's console blocks; a backslash joins lines."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vit = small_vit(registers=4, interpolation="size")
    saved(official_names(dict(vit.state_dict())), tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    generator = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "photos" / ("cracked" if number % 2 else "whole")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    Image.fromarray(generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(tmp_path / "one.jpg")
    found = commands()
    assert found
    for line in found:
        assert line.startswith(COMMAND), line
        assert main(shlex.split(line.removeprefix(COMMAND))) == 0, line
