"""Where ``vitrail`` starts: one cyclopts application over the table of commands.

A command's module is imported when the command is run or its own help is asked for. ``vitrail --help`` needs the table
alone. The completion script lists all commands and options, so the Tab key starts no Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cyclopts import App, Group

from components.cli.commands import CHECKOUT, COMMANDS
from components.command_line import INTERRUPTIBLE, dispatch, plain
from components.errors import VitrailError, nearest, run_cli

_SELF = "components/cli/__main__.py"
_HELP = ("-h", "--help")
Shell = Literal["bash", "zsh", "fish"]


def start() -> int:
    """Run ``vitrail`` with the process's arguments; returns the exit code."""
    _use_the_checkout_here()
    return run_cli(main)


def main(argv: Sequence[str]) -> int:
    """Run one command, or show help; returns the exit code.

    Raises:
        VitrailError: no such command (the message names the nearest), or the current folder is not a checkout and the
            command needs one.
    """
    words = list(argv) or ["--help"]
    name = words[0]
    if name not in COMMANDS and not name.startswith("-"):
        raise VitrailError(f"vitrail has no command {name!r}{nearest(name, [*COMMANDS])}; `vitrail --help` lists all")
    if name in COMMANDS and COMMANDS[name].here and not set(words) & {*_HELP}:
        _require_checkout()
    if "--stage" in words:
        from components.pipeline import with_stage

        words = with_stage(words)
    return dispatch(application(), words)


def application() -> App:
    """All commands as one cyclopts application."""
    app = App(
        name="vitrail",
        help="From a crawl of the web to a compared student model: every stage of DINOv2's way, as one command.\n\n"
        "Start with `vitrail init FOLDER`, then `vitrail run`. `vitrail COMMAND --help` explains one command.",
        version=_version,
        default_parameter=plain(),
        **INTERRUPTIBLE,
    )
    names = list(dict.fromkeys(each.group for each in COMMANDS.values()))
    groups = {name: Group(name, sort_key=position) for position, name in enumerate(names)}
    for position, command in enumerate(COMMANDS.values()):
        group = groups[command.group]
        app.command(command.target, name=command.name, help=command.help, group=group, sort_key=position)
    shell = Group("Shell", sort_key=len(groups))
    app.command(install_completion, name="--install-completion", group=shell)
    app.command(show_completion, name="--show-completion", group=shell)
    app["--help"].group = app["--version"].group = shell
    return app


def install_completion(shell: Shell | None = None, /) -> None:
    """Complete commands and their options on Tab, in bash, zsh or fish.

    Args:
        shell: Default: the shell of this terminal.
    """
    path = application().install_completion(shell=shell or _shell())
    print(f"{path}: written; completion works in every new terminal")


def show_completion(shell: Shell | None = None, /) -> None:
    """Print the completion script, to put it elsewhere.

    Args:
        shell: Default: the shell of this terminal.
    """
    print(application().generate_completion(shell=shell or _shell()))


def _shell() -> Shell:
    name = Path(os.environ.get("SHELL", "bash")).name
    if name not in ("bash", "zsh", "fish"):
        raise VitrailError(f"completion for {name} is not known; name bash, zsh or fish behind the option")
    return name  # type: ignore[return-value]  # checked above


def _require_checkout() -> None:
    if not Path("params/pipeline.yaml").is_file():
        raise VitrailError(
            f"{Path.cwd()}: there is no params/pipeline.yaml here; run vitrail in a checkout: cd {CHECKOUT}"
        )


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
