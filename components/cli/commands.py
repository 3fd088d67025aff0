"""The table of all commands: what each does, in which group help shows it, and where its code is.

A command is one line here. Its options are beside the code that reads them, in the room's ``run.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]  # the one that `vitrail` was installed from
CHAIN, USE, OPERATE = "Images to model", "Use a model, ask about an image", "Plan and operate"


@dataclass(frozen=True)
class Command:
    """One command of ``vitrail``."""

    name: str
    help: str
    group: str  # its heading in `vitrail --help`
    target: str  # module:name of its application or function, imported when the command is run
    here: bool = True  # it reads params/ of the current folder

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.target.partition(":")[0]


_TABLE = (
    Command("init", "Set up this checkout for your own folder of images.", CHAIN, "components.cli.init:app"),
    Command("run", "Bring every stage up to date, from source to benchmark, and print the results.", CHAIN,
            "infra.local.demo:app"),
    Command("report", "Write one page about this run, with pictures, and open it.", CHAIN, "infra.local.report:app"),
    Command("crawl", "Crawl web sites, or register the WARC files or images at your source.", CHAIN,
            "components.crawl.run:app"),
    Command("curate", "Filter, decode and shard images; every dropped image gets a reason.", CHAIN,
            "components.curate.run:app"),
    Command("dedup", "Remove copies, remove held-out images, and choose the training images.", CHAIN,
            "components.dedup.run:app"),
    Command("pretrain", "Train a vision transformer with DINO, iBOT and KoLeo.", CHAIN,
            "components.pretrain.run:app"),
    Command("distill", "Train a smaller student from a frozen teacher.", CHAIN,
            "components.distill.run:app"),
    Command("benchmark", "Score every checkpoint on the same labelled images.", CHAIN,
            "components.benchmark.run:app"),
    Command("import", "Take a released model or a checkpoint in.", USE,
            "components.release.run:import_", here=False),
    Command("export", "Write a model for others: safetensors, Hugging Face, Meta's layout, ONNX, torch.export.", USE,
            "components.release.run:export", here=False),
    Command("embed", "Compute the features of images, as a table, arrays or JSON.", USE,
            "components.release.run:embed", here=False),
    Command("pca", "Show patch features as colours.", USE,
            "components.release.use.commands:pca", here=False),
    Command("attention", "Show where the class token and the registers attend to.", USE,
            "components.release.use.commands:attention", here=False),
    Command("classify", "Fit a classifier on frozen features, and ask it: fit, predict.", USE,
            "components.release.use.commands:classify", here=False),
    Command("retrieve", "Find the nearest images of a set: index, query.", USE,
            "components.release.use.commands:retrieve", here=False),
    Command("explore", "Show images on a map of their features, in the browser.", USE,
            "components.release.serve.commands:explore", here=False),
    Command("register", "Put a model into MLflow's registry, as candidate.", USE,
            "components.release.serve.commands:register", here=False),
    Command("serve", "Answer HTTP requests with features.", USE,
            "components.release.serve.commands:serve", here=False),
    Command("promote", "Make a model's candidate its champion, if its scores pass the gate.", USE,
            "components.release.serve.commands:promote", here=False),
    Command("rollback", "Make the champion before this one the champion again.", USE,
            "components.release.serve.commands:rollback", here=False),
    Command("search", "Find an image's copies and neighbours in the pool.", USE,
            "components.dedup.run:search"),
    Command("trace", "Tell an image's whole story: where it came from, and which models saw it.", USE,
            "components.provenance.run:trace"),
    Command("forget", "Take images down, and list the models that saw them.", USE,
            "components.provenance.run:forget"),
    Command("reproduce", "Bring back exactly the code, parameters and data that a run of MLflow came from.", OPERATE,
            "components.provenance.run:reproduce"),
    Command("plan", "Say what a stage needs (GPUs, hours, bytes) before it runs.", OPERATE,
            "components.planning.run:app"),
    Command("advise", "Write a preset for your images, machine and minutes, with a reason for each value.", OPERATE,
            "components.planning.run:advise"),
    Command("diagnose", "Say why a training run does not learn, with the evidence and the value to change.", OPERATE,
            "components.planning.run:diagnose"),
    Command("status", "Show what is running in this checkout, and how far it is.", OPERATE,
            "components.status.run:app"),
    Command("doctor", "Check this machine and checkout, and say what to do.", OPERATE, "components.doctor.run:app"),
    Command("platform", "Start, end or check the local Prefect and MLflow servers: up, down, status.", OPERATE,
            "infra.local.stack:app"),
    Command("sync", "Send what runs recorded while MLflow was away.", OPERATE,
            "components.tracking.command:sync"),
)  # fmt: skip
COMMANDS = {command.name: command for command in _TABLE}
