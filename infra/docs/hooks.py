"""MkDocs' hook: pages that are made from the code or lie beside docs/, and links that leave the site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra.docs.offline import make_offline, mermaid
from infra.docs.parameters import markdown

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# Modules whose public functions others call; each is on the page on using models or extending.
ENTRY_POINTS = (
    "components.release.weights.load",
    "components.release.use.features",
    "components.release.use.pictures",
    "components.release.use.classify",
    "components.release.use.retrieve",
    "components.training.checkpoints.checkpoint",
    "components.learning.vit",
    "components.evaluation.sets.benchmarks",
    "components.curate.pixels.safety",
    "components.params",
    "components.storage.interface",
    "components.storage.opening",
    "components.storage.atomic",
)
_BESIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    made = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in _BESIDE.items()}
    made |= {"parameters.md": markdown(ROOT), "reference.md": reference(), "commands.md": commands()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Links to other pages of the site, and to nothing else of the checkout: those become plain words."""
    return relinked(text, page.file.src_uri in _BESIDE)


def on_post_build(config: Any) -> None:
    """Make the site work without the internet."""
    make_offline(Path(config["site_dir"]), mermaid(ROOT / "scratch/docs"))


def relinked(text: str, at_the_top: bool) -> str:
    """``text`` with its links as the site needs them; ``at_the_top``: it lies beside docs/, not in it."""

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        place = os.path.normpath(path if at_the_top else os.path.join("docs", path))
        behind = f"#{anchor}" if anchor else ""
        if place.startswith("docs/"):
            return f"{mark}[{words}]({place.removeprefix('docs/')}{behind})"
        moved = next((page for page, source in _BESIDE.items() if source == place), None)
        return f"[{words}]({moved}{behind})" if moved else words

    return _LINK.sub(link, text)


def reference() -> str:
    """The page of public functions and classes, from their docstrings."""
    blocks = "\n".join(f"::: {module}\n" for module in ENTRY_POINTS)
    return f"# Python reference\n\nShapes, units, errors and sources are in the docstrings.\n\n{blocks}"


def commands() -> str:
    """The page of commands: each with its own help."""
    from components.cli.commands import COMMANDS

    parts = ["# Commands\n\n`python -m components.STAGE` is the same as `vitrail STAGE`.\n"]
    names = [*COMMANDS]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "components.cli", name, "--help"],
            cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    for name, process in zip(names, running, strict=True):
        out, _ = process.communicate(timeout=120)
        parts.append(f"## vitrail {name}\n\n{COMMANDS[name].help}\n\n```text\n{out.strip()}\n```\n")
    return "\n".join(parts)
