"""The table of all commands: what each does, and which ``main(argv)`` carries it out.

A command is one line here. Its own options stay beside the code that reads them, in the room's ``run.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.command_name import called
from components.errors import VitrailError

CHECKOUT = Path(__file__).resolve().parents[2]  # the one that `vitrail` was installed from
DATA, USE, MACHINE = "Data to model", "Images and models", "Workspace and platform"
_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """One command of ``vitrail``."""

    name: str
    help: str
    group: str  # its heading in `vitrail --help`
    module: str  # holds main(argv)
    prefix: tuple[str, ...] = ()  # goes before the user's arguments: the room's own name of the command
    actions: bool = False  # it has commands of its own, such as `run`; without one, they are listed
    here: bool = True  # it reads params/ of the current folder

    def __call__(self, argv: Sequence[str]) -> int:
        """Carry out the command with ``argv``; returns the exit code.

        Raises:
            VitrailError: the current folder is not a checkout, and the command needs one.
        """
        if self.actions and not argv:
            argv = _HELP[1:]
        if self.here and not any(word in _HELP for word in argv) and not Path("params/pipeline.yaml").is_file():
            raise VitrailError(
                f"{Path.cwd()}: there is no params/pipeline.yaml here; run vitrail in a checkout: cd {CHECKOUT}"
            )
        main: Callable[[Sequence[str]], Any] = importlib.import_module(self.module).main
        with called("vitrail" if self.prefix else f"vitrail {self.name}"):
            return main([*self.prefix, *argv]) or 0


_TABLE = (
    Command("init", "Set up this checkout for your own folder of images.", DATA, "components.cli.init"),
    Command("run", "Bring every stage up to date, from source to benchmark, and print the results.", DATA,
            "infra.local.demo"),
    Command("report", "Write one page about this run, with pictures, and open it.", DATA, "infra.local.report"),
    Command("crawl", "Crawl web sites, or register the WARC files or images at your source.", DATA,
            "components.crawl.run", actions=True),
    Command("curate", "Filter, decode and shard images; every dropped image gets a reason.", DATA,
            "components.curate.run", actions=True),
    Command("dedup", "Remove copies, remove held-out images, and choose the training images.", DATA,
            "components.dedup.run", actions=True),
    Command("pretrain", "Train a vision transformer with DINO, iBOT and KoLeo.", DATA,
            "components.pretrain.run", actions=True),
    Command("distill", "Train a smaller student from a frozen teacher.", DATA,
            "components.distill.run", actions=True),
    Command("benchmark", "Score every checkpoint on the same labelled images.", DATA,
            "components.benchmark.run", actions=True),
    Command("import", "Take a released model or a checkpoint in.", USE,
            "components.release.run", ("import",), here=False),
    Command("export", "Write a model for others: safetensors, Hugging Face, Meta's layout, ONNX, torch.export.", USE,
            "components.release.run", ("export",), here=False),
    Command("embed", "Compute the features of images, as a table, arrays or JSON.", USE,
            "components.release.run", ("embed",), here=False),
    Command("pca", "Show patch features as colours.", USE,
            "components.release.run", ("pca",), here=False),
    Command("attention", "Show where the class token and the registers attend to.", USE,
            "components.release.run", ("attention",), here=False),
    Command("classify", "Fit a classifier on frozen features, and ask it: fit, predict.", USE,
            "components.release.run", ("classify",), here=False),
    Command("retrieve", "Find the nearest images of a set: index, query.", USE,
            "components.release.run", ("retrieve",), here=False),
    Command("explore", "Show images on a map of their features, in the browser.", USE,
            "components.release.run", ("explore",), here=False),
    Command("register", "Put a model into MLflow's registry, as candidate.", USE,
            "components.release.run", ("register",), here=False),
    Command("serve", "Answer HTTP requests with features.", USE,
            "components.release.run", ("serve",), here=False),
    Command("promote", "Make a model's candidate its champion, if its scores pass the gate.", USE,
            "components.release.run", ("promote",), here=False),
    Command("rollback", "Make the champion before this one the champion again.", USE,
            "components.release.run", ("rollback",), here=False),
    Command("search", "Find an image's copies and neighbours in the pool.", USE,
            "components.dedup.run", ("search",)),
    Command("trace", "Tell an image's whole story: where it came from, and which models saw it.", USE,
            "components.provenance.run", ("trace",)),
    Command("forget", "Take images down, and list the models that saw them.", USE,
            "components.provenance.run", ("forget",)),
    Command("plan", "Say what a stage needs (GPUs, hours, bytes) before it runs.", MACHINE,
            "components.planning.run", actions=True),
    Command("advise", "Write a preset for your images, machine and minutes, with a reason for each value.", MACHINE,
            "components.planning.run", ("advise",)),
    Command("diagnose", "Say why a training run does not learn, with the evidence and the value to change.", MACHINE,
            "components.planning.run", ("diagnose",)),
    Command("status", "Show what is running in this checkout, and how far it is.", MACHINE, "components.status.run"),
    Command("doctor", "Check this machine and checkout, and say what to do.", MACHINE, "components.doctor.run"),
    Command("platform", "Start, end or check the local Prefect and MLflow servers: up, down, status.", MACHINE,
            "infra.local.stack", actions=True),
    Command("sync", "Send what runs recorded while MLflow was away.", MACHINE,
            "components.tracking.command", ("sync",)),
)  # fmt: skip
COMMANDS = {command.name: command for command in _TABLE}
