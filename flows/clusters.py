"""Jobs of several nodes on Slurm or Kubernetes: submitted, followed line by line, and gone when the flow run ends.

The clusters' own commands are used (sbatch, scontrol, sacct, scancel; kubectl), so a user who may use them here may use
these. A job that its cluster puts back into the queue (preemption, a lost node) is waited for: it resumes by itself.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from components.errors import VitrailError

_PATIENCE = 120  # seconds that one command of the cluster may take
WAITING, RUNNING, DONE = "waiting", "running", "done"  # any other state of a job says how it failed


class Cluster(Protocol):
    """Where a job of several nodes runs."""

    def refuse_second(self) -> None:
        """Make sure that no job of a run that was killed is still at this work.

        Raises:
            VitrailError: one is; names it, and the command that ends it.
        """

    def submit(self) -> str:
        """Start the job; returns its name."""

    def state(self, job: str) -> str:
        """:data:`WAITING`, :data:`RUNNING`, :data:`DONE`, or in a few words how it failed."""

    def lines(self, job: str) -> list[str]:
        """What it has printed since the last call."""

    def cancel(self, job: str) -> None:
        """End it; no error when it has ended."""


def follow(cluster: Cluster, on_line: Callable[[str], None], every: float = 10.0, grace: float = 60.0) -> str:
    """Submit a job, hand on its lines until it ends, and return "" or how it failed.

    Whatever ends the call before that (cancellation, an error) ends the job, too: it is cancelled, and waited for up to
    ``grace`` seconds.
    """
    cluster.refuse_second()
    job, ended = cluster.submit(), False
    try:
        on_line(f"submitted {job}")
        while True:
            state = cluster.state(job)
            for line in cluster.lines(job):
                on_line(line)
            if state not in (WAITING, RUNNING):
                ended = True
                return "" if state == DONE else f"{job}: {state}"
            time.sleep(every)
    finally:
        if not ended:
            cluster.cancel(job)
            until = time.monotonic() + grace
            while cluster.state(job) in (WAITING, RUNNING) and time.monotonic() < until:
                time.sleep(min(every, 1.0))
            for line in cluster.lines(job):
                on_line(line)


@dataclass
class Slurm:
    """``sbatch`` of a script in the checkout ``root``, on a file system that all nodes see."""

    root: Path
    script: str
    nodes: int
    variables: Mapping[str, str]  # for the script, beside this process's own
    options: Sequence[str] = ()  # sbatch's own: --partition, --account
    _read: dict[str, int] = field(default_factory=dict)  # bytes of the output handed on, by job

    def submit(self) -> str:
        """See :class:`Cluster`."""
        (self.root / "scratch").mkdir(exist_ok=True)
        command = ["sbatch", "--parsable", f"--nodes={self.nodes}", f"--output={self._output('%j')}", *self.options]
        said = _run([*command, self.script], self.root, self.variables)
        job = said.strip().partition(";")[0]
        if not job.isdigit():
            raise VitrailError(f"sbatch {self.script}: printed no number of a job: {said.strip()[:200]}")
        self._note().write_text(job, encoding="utf-8")
        return job

    def refuse_second(self) -> None:
        """See :class:`Cluster`; a run that is killed leaves the number of its job in ``scratch/``."""
        if not self._note().is_file():
            return
        job = self._note().read_text(encoding="utf-8").strip()
        if job.isdigit() and self._controller(job) and self.state(job) in (WAITING, RUNNING):
            raise VitrailError(
                f"job {job} of an earlier run still works in {self.root}; wait for its end, or end it (scancel {job}), "
                "then run again: it goes on from the job's last checkpoint"
            )
        self._note().unlink(missing_ok=True)

    def state(self, job: str) -> str:
        """See :class:`Cluster`; from the controller while it remembers the job, then from accounting."""
        said = self._controller(job)
        if said:
            found = re.search(r"\bJobState=(\w+)", said)
            code = re.search(r"\bExitCode=(\d+:\d+)", said)
        else:
            words = ["sacct", "-X", "--noheader", "--parsable2", "--format=State,ExitCode", "--jobs", job]
            said = _run(words, self.root)
            found, code = re.search(r"^(\w+)", said, re.M), re.search(r"\|(\d+:\d+)", said)
        if found is None:
            return "its cluster knows nothing of it any more"
        if found[1] in ("PENDING", "REQUEUED", "REQUEUE_FED", "CONFIGURING", "SUSPENDED"):
            return WAITING
        if found[1] in ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"):
            return RUNNING
        self._note().unlink(missing_ok=True)
        return DONE if found[1] == "COMPLETED" else f"{found[1]}, exit code {code[1] if code else 'unknown'}"

    def _controller(self, job: str) -> str:
        """What the controller says of ``job``; "" when it has forgotten it."""
        try:
            return _run(["scontrol", "show", "job", "--oneliner", job], self.root)
        except VitrailError as fault:
            if "Invalid job id" not in str(fault):
                raise
            return ""

    def _note(self) -> Path:
        return self.root / f"scratch/slurm-{self.variables.get('PRESET', 'job')}.job"

    def lines(self, job: str) -> list[str]:
        """See :class:`Cluster`; whole lines, and the rest once nothing follows."""
        path = Path(self._output(job))
        if not path.is_file():
            return []
        with open(path, "rb") as file:
            file.seek(self._read.get(job, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[job] = self._read.get(job, 0) + len(whole)
        return whole.decode(errors="replace").splitlines()

    def cancel(self, job: str) -> None:
        """See :class:`Cluster`."""
        _run(["scancel", job], self.root)

    def _output(self, job: str) -> str:
        return str(self.root / f"scratch/slurm-{job}.log")


@dataclass
class Kubernetes:
    """A Job (and what it needs) of a kustomization in the checkout ``root``, by ``kubectl``."""

    root: Path
    folder: str  # of the kustomization
    preset: str
    nodes: int
    below: str = "."  # where ``root`` lies below the folder that the pods work in
    _seen: dict[str, str] = field(default_factory=dict)  # time of the last line handed on, by job

    def manifests(self) -> list[dict[str, Any]]:
        """What is applied: the kustomization's, for this preset and number of nodes, under names of its own."""
        said = _run(["kubectl", "kustomize", self.folder], self.root)
        name = f"vitrail-{re.sub(r'[^a-z0-9]+', '-', self.preset.lower()).strip('-')}"[:50]
        for old, new in (
            ("vitrail-pretrain-0.", f"{name}-0."),
            (".vitrail-pretrain:", f".{name}:"),
            ("vitg", self.preset),
        ):
            said = said.replace(old, new)
        found = [content for content in yaml.safe_load_all(said) if content]
        for content in found:
            content["metadata"]["name"] = name
            spec = content["spec"]
            if content["kind"] == "Service":
                spec["selector"] = {"job-name": name}
            if content["kind"] == "Job":
                spec["parallelism"] = spec["completions"] = self.nodes
                pod = spec["template"]["spec"]
                pod["subdomain"] = name
                [ranks] = pod["containers"]
                ranks["workingDir"] = posixpath.normpath(
                    posixpath.join(ranks.get("workingDir", "/vitrail"), self.below)
                )
                arguments = ranks["args"]
                for at, word in enumerate(arguments):
                    if word.startswith("--nnodes="):
                        arguments[at] = f"--nnodes={self.nodes}"
                    elif word.startswith("--rdzv-id="):
                        arguments[at] = f"--rdzv-id={name}"
        return found

    def submit(self) -> str:
        """See :class:`Cluster`; a Job of that name that has ended makes room for the new one."""
        contents = self.manifests()
        known = self._name(contents)
        if self._get(known) is not None:
            self._kubectl(known, "delete", "job", known.partition("/")[2], "--wait=true")
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": contents})
        _run(["kubectl", "apply", "--filename=-"], self.root, given=text)
        return known

    def refuse_second(self) -> None:
        """See :class:`Cluster`; the job of a preset has the preset's name."""
        job = self._name(self.manifests())
        if self._get(job) is not None and self.state(job) in (WAITING, RUNNING):
            namespace, _, name = job.partition("/")
            raise VitrailError(
                f"job {job} of an earlier run still works; wait for its end, or end it (kubectl --namespace "
                f"{namespace} delete job {name}), then run again: it goes on from the job's last checkpoint"
            )

    @staticmethod
    def _name(contents: Sequence[Mapping[str, Any]]) -> str:
        """``namespace/job`` of the manifests."""
        [job] = [content["metadata"]["name"] for content in contents if content["kind"] == "Job"]
        namespace = next(content["metadata"].get("namespace", "default") for content in contents)
        return f"{namespace}/{job}"

    def state(self, job: str) -> str:
        """See :class:`Cluster`."""
        found = self._get(job)
        if found is None:
            return "it was deleted"
        status = found.get("status", {})
        for condition in status.get("conditions", []):
            if condition.get("status") == "True" and condition["type"] == "Complete":
                return DONE
            if condition.get("status") == "True" and condition["type"] in ("Failed", "FailureTarget"):
                return f"{condition.get('reason', 'failed')}: {condition.get('message', '')}".strip(": ")
        return RUNNING if status.get("ready") else WAITING

    def lines(self, job: str) -> list[str]:
        """See :class:`Cluster`; of the first pod, whose ranks print the progress."""
        name = job.partition("/")[2]
        since = [f"--since-time={self._seen[job]}"] if job in self._seen else []
        try:
            selector = f"--selector=job-name={name},batch.kubernetes.io/job-completion-index=0"
            said = self._kubectl(job, "logs", selector, "--timestamps", "--tail=-1", *since)
        except VitrailError:
            return []  # a pod that is not there yet, or no longer
        found = []
        for line in said.splitlines():
            stamp, _, text = line.partition(" ")
            if stamp > self._seen.get(job, ""):
                found.append((stamp, text))
        if found:
            self._seen[job] = found[-1][0]
        return [text for _, text in found]

    def cancel(self, job: str) -> None:
        """See :class:`Cluster`; the pods get SIGTERM and their grace period to write a checkpoint."""
        self._kubectl(
            job, "delete", "job", job.partition("/")[2], "--ignore-not-found", "--cascade=foreground", "--wait=false"
        )

    def _get(self, job: str) -> dict[str, Any] | None:
        said = self._kubectl(job, "get", "job", job.partition("/")[2], "--ignore-not-found", "--output=json")
        return json.loads(said) if said.strip() else None

    def _kubectl(self, job: str, *words: str) -> str:
        return _run(["kubectl", f"--namespace={job.partition('/')[0]}", *words], self.root)


def _run(command: Sequence[str], root: Path, variables: Mapping[str, str] | None = None, given: str = "") -> str:
    """What ``command`` prints.

    Raises:
        VitrailError: it is not installed, or failed; with its own words.
    """
    env = {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(
            command, cwd=root, env=env, input=given, capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        raise VitrailError(
            f"{command[0]} is not installed here; start the worker where the cluster's commands are"
        ) from None
    except subprocess.TimeoutExpired:
        raise VitrailError(f"{command[0]}: no answer within {_PATIENCE} s; is the cluster's controller up?") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise VitrailError(f"{' '.join(command[:2])}: {said[-1].strip()}")
    return done.stdout
