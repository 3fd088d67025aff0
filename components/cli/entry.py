"""Where ``vitrail`` starts: a command of the table runs at once, anything else is a question about the commands.

Only the questions (``--help``, ``completion``) import cyclopts, so a command starts as fast as its own module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.cli.commands import CHECKOUT, COMMANDS, Command
from components.errors import VitrailError, nearest, run_cli

if TYPE_CHECKING:
    from cyclopts import App

_SELF = "components/cli/__main__.py"
_ALSO = ("completion",)


def start() -> int:
    """Run ``vitrail`` with the process's arguments; returns the exit code."""
    _use_the_checkout_here()
    return run_cli(main)


def main(argv: Sequence[str]) -> int:
    """Run one command, or answer ``--help``, ``--version`` and ``completion``.

    Raises:
        VitrailError: no such command; the message names the nearest.
    """
    name, *rest = argv or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name](rest)
    if not name.startswith("-") and name not in _ALSO:
        known = nearest(name, [*COMMANDS, *_ALSO])
        raise VitrailError(f"vitrail has no command {name!r}{known}; `vitrail --help` lists all")
    application()([name, *rest], result_action="return_value")
    return 0


def application() -> App:
    """The commands as a cyclopts application, which writes the help page and the completion scripts."""
    from cyclopts import App, Group, Parameter

    app = App(
        name="vitrail",
        help="From a crawl of the web to a compared student model: every stage of DINOv2's way, as one command.",
        help_epilogue="`vitrail COMMAND --help` explains one command. "
        "Start with `vitrail init FOLDER`, then `vitrail run`.",
        version=_version,
        default_parameter=Parameter(negative=()),
    )
    groups = {each.group: None for each in COMMANDS.values()}
    panels = {name: Group(name, sort_key=position) for position, name in enumerate(groups)}
    for position, command in enumerate(COMMANDS.values()):
        panel = panels[command.group]
        app.command(_function(command), name=command.name, help=command.help, group=panel, sort_key=position)
    app.command(completion, group=Group("Shell", sort_key=len(panels)))
    return app


def completion(shell: str = "") -> None:
    """Print the script that completes commands on Tab, for bash, zsh or fish.

    For bash: `vitrail completion bash >> ~/.bashrc`. Without SHELL, the shell of this terminal is used.
    """
    known = ("bash", "zsh", "fish")
    shell = shell or Path(os.environ.get("SHELL", "bash")).name
    if shell not in known:
        raise VitrailError(f"vitrail completion {shell}: choose one of {', '.join(known)}{nearest(shell, known)}")
    print(application().generate_completion(shell=shell))  # type: ignore[arg-type]  # checked above


def _function(command: Command) -> Callable[[], int]:
    def carry_out() -> int:
        return command(())

    return carry_out


def _version() -> str:
    import importlib.metadata
    import tomllib

    try:
        return importlib.metadata.version("vitrail")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])


def _use_the_checkout_here() -> None:
    """Start again with the code of the current folder, where that is another checkout than the installed one.

    Ranks and workers of a stage run as ``python -m`` and so take the code of the current folder. The command that
    starts them must be of the same code.
    """
    here = Path.cwd()
    if here != CHECKOUT and (here / _SELF).is_file():
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "components.cli", *sys.argv[1:]])
