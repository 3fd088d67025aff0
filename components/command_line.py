"""The command lines of all rooms, on cyclopts: a command is a typed function, and its options are a dataclass.

A room's ``run.py`` makes its :func:`application`, adds commands with ``@app.command``, and has
``main = commands_of(app)``. ``vitrail`` shows the same commands under its own name. An option's help is the docstring
below its field. Commands import what is heavy when they run, so that help pages stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError, MissingArgumentError

from components.unedited import running_stage, unedited

T = TypeVar("T")
Options = Annotated[T, Parameter(name="*")]  # a dataclass whose fields are the command's options
Many = Annotated[tuple[T, ...], Parameter(consume_multiple=True)]  # an option with several values: --checkpoints A B
Overrides = Annotated[tuple[str, ...], Parameter(metavar="KEY=VALUE")]  # of --set, once for each value
MISUSED = 2  # exit code of a command line that is wrong
# cyclopts would end the process without a word at Ctrl-C; run_cli says how to carry on.
INTERRUPTIBLE: dict[str, Any] = {"suppress_keyboard_interrupt": False}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def as_options(cls: type[T]) -> type[T]:
    """Make ``cls`` the frozen dataclass of a command's options; all are given by name.

    Another module can inherit from it without the imports that its fields' types need.
    """
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__init__.__annotations__ = get_type_hints(made, include_extras=True)
    return made


@as_options
class ExecutorOptions:
    """Options of a stage's command that say where its work runs."""

    executor: Literal["pool", "ray"] | None = None
    """Where work runs: processes of this machine, or a Ray cluster."""
    address: str | None = None
    """The Ray cluster: HOST:PORT, ray://HOST:PORT, or auto."""

    def overrides(self) -> tuple[str, ...]:
        """What was given, as ``KEY=VALUE`` over the stage's parameters."""
        given = {"executor.kind": self.executor, "executor.address": self.address}
        return tuple(f"{key}={value}" for key, value in given.items() if value is not None)


@as_options
class ParamsOptions:
    """Options of a command that reads a parameter file."""

    params: Path
    """Parameter file."""
    set: Overrides = ()
    """Override a value of --params."""


def application(name: str, about: str, module: str = "") -> App:
    """The commands of a room: ``vitrail name``, and ``python -m module`` where ``module`` is given."""
    names = [name, module] if module else [name]
    return App(name=names, help=about, version_flags=(), default_parameter=plain(), **INTERRUPTIBLE)


def plain() -> Parameter:
    """How every option is read and shown.

    A flag has no ``--no-`` form. A default that says "none" is not shown. Of an option given twice, the last counts.
    """
    return Parameter(negative=(), show_default=_default, allow_repeating=True)


def commands_of(
    app: App, rewrite: Callable[[Sequence[str]], Sequence[str]] | None = None
) -> Callable[[Sequence[str]], int]:
    """``main(argv)`` of ``python -m``: runs the command that ``argv`` names, and returns the exit code.

    ``rewrite`` writes abbreviations out before ``argv`` is read.
    """

    def main(argv: Sequence[str]) -> int:
        top = App(name="python -m", version_flags=(), **INTERRUPTIBLE)
        top.command(app)
        with unedited(running_stage()):
            code = dispatch(top, [app.name[-1], *(rewrite(argv) if rewrite else argv)])
        return MISUSED if not argv and app.default_command is None else code

    return main


def words(given: Any) -> list[str]:
    """The command line that gives ``given``, a command's options; for a process that runs the same command."""
    found = []
    for each in fields(given):
        value, name = getattr(given, each.name), "--" + each.name.replace("_", "-")
        if value is True:
            found.append(name)
        elif value is not None and value is not False:
            found += [f"{name}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    return found


def dispatch(app: App, words: Sequence[str]) -> int:
    """Run the command of ``app`` that ``words`` name; returns its exit code.

    A wrong command line is one line on stderr and the code 2. Faults of the command itself pass through.
    """
    try:
        code = app(list(words), result_action="return_value", exit_on_error=False, print_error=False)
    except CycloptsError as fault:
        print(f"error: {_told(fault, app.name[0])}", file=sys.stderr, flush=True)
        return MISUSED
    return code if isinstance(code, int) else 0


def _told(fault: CycloptsError, program: str) -> str:
    what = " ".join(str(fault).split()).rstrip(".?").replace(". Did you mean", "; did you mean")
    if isinstance(fault, MissingArgumentError) and fault.argument is not None and fault.keyword is None:
        names = " or ".join(fault.argument.names) or "an argument"
        what = f"{names} is missing{what.partition('requires an argument')[2].lstrip('.')}"
    command = " ".join([program, *(fault.command_chain or ())])
    return f"{command}: {what}; `{command} --help` explains"


def _default(value: Any) -> str | None:
    """A default as help pages show it: nothing where it is "off" or "none"."""
    if value is None or value is False or value == () or value == "":
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
