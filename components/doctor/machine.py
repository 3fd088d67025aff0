"""Checks of the machine: Python, packages, cores, memory, compiler, GPU, disk, clock."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.doctor.finding import CheckResult

_LEAST_MEMORY = 4e9  # bytes: what the demo and its tests were run with
_LEAST_DISK = 3 * 1024**3  # bytes that the demo's outputs, cache and checkpoints take at most
_CLOCK = 60.0  # seconds by which a file server's clock may differ: locks go by minutes
_INSTALL = "make install"


def python(root: Path) -> Iterator[CheckResult]:
    """The interpreter, against ``requires-python``."""
    first, last = ((3, int(minor)) for minor in _minors(root))
    here, name = sys.version_info[:2], f"{platform.python_implementation()} {platform.python_version()}"
    fits = platform.python_implementation() == "CPython" and first <= here < last
    do = "" if fits else f"install CPython 3.{first[1]} to 3.{last[1] - 1}, then make install PYTHON=its-name"
    yield CheckResult("ok" if fits else "bad", "python", f"{name} on {platform.system()} {platform.machine()}", do)


def _minors(root: Path) -> tuple[str, str]:
    asked = _project(root)["requires-python"]
    low, high = re.search(r">=3\.(\d+)", asked), re.search(r"<3\.(\d+)", asked)
    return (low[1] if low else "11", high[1] if high else "14")


def _project(root: Path) -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def locked(paths: Iterable[Path]) -> dict[str, str]:
    """Versions by plain name (small letters and dashes) in lock files."""
    pins = (re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text(encoding="utf-8"), re.M) for path in paths)
    return {_plain(name): version for found in pins for name, version in found}


def packages(root: Path) -> Iterator[CheckResult]:
    """The installed versions of what this project uses directly, against ``requirements.lock``."""
    pins = locked((root / "requirements.lock", root / "requirements/torch.txt"))
    missing, other = [], []
    for requirement in _project(root)["dependencies"]:
        name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
        pinned = pins.get(_plain(name))
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if pinned and here.split("+")[0] != pinned.split("+")[0]:
            other.append(f"{name} {here} (locked: {pinned})")
    if missing:
        yield CheckResult("bad", "packages", f"not installed: {', '.join(missing)}", _INSTALL)
    if other:
        yield CheckResult(
            "note", "packages", f"other versions than tested: {', '.join(other)}", f"rm .venv/.installed-*; {_INSTALL}"
        )
    if not missing and not other:
        yield CheckResult("ok", "packages", "the versions of requirements.lock")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def machine(root: Path) -> Iterator[CheckResult]:
    """Cores, memory and the compiler that DeepSpeed may need."""
    import psutil

    memory = psutil.virtual_memory()
    little = memory.available < _LEAST_MEMORY
    found = f"{os.cpu_count()} cores, {memory.total / 1e9:.0f} GB of memory, {memory.available / 1e9:.0f} GB free"
    yield CheckResult(
        "note" if little else "ok", "machine", found, "end other programs, or lower executor.workers" if little else ""
    )
    compiler = next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), "")
    if not compiler:
        yield CheckResult(
            "bad", "compiler", "no C++ compiler (g++, clang++ or $CXX)", "install one, such as apt-get install g++"
        )


def gpu(root: Path) -> Iterator[CheckResult]:
    """NVIDIA GPUs, and whether torch and FAISS are the builds that use them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        yield CheckResult(
            "note", "GPU", "none (no working nvidia-smi)", "the preset vitt trains on a CPU; larger ones need a GPU"
        )
        return
    if done.returncode or not done.stdout.strip():
        said = " ".join((done.stdout + done.stderr).split())[:120]
        yield CheckResult(
            "bad", "GPU", f"nvidia-smi fails: {said}", "mend the driver; until then everything runs on the CPU"
        )
        return
    for line in done.stdout.strip().splitlines():
        yield CheckResult("ok", "GPU", line.strip())
    if torch_build() == "cpu":
        yield CheckResult(
            "bad",
            "torch",
            "a build without CUDA on a machine with a GPU",
            f"unset PIP_EXTRA_INDEX_URL; rm -r .venv; {_INSTALL}",
        )
    if not _installed("faiss-gpu"):
        yield CheckResult("note", "FAISS", "the CPU build on a machine with a GPU", f"rm -r .venv; {_INSTALL}")


def torch_build() -> str:
    """``cpu``, or the CUDA version that torch was built for, from its files: importing it takes seconds."""
    try:
        text = Path(str(importlib.metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return "none"
    found = re.search(r"^cuda[^=]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return found[1] if found else "cpu"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def disk(root: Path) -> Iterator[CheckResult]:
    """Free space where outputs, caches and temporary files go."""
    seen = set()
    for name, place in (("this checkout", root), ("temporary files", Path(tempfile.gettempdir()))):
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(place).free
        little = free < _LEAST_DISK
        do = f"free some: dvc gc --workspace, or another disk; {_LEAST_DISK / 1e9:.1f} GB are needed" if little else ""
        yield CheckResult(
            "bad" if little else "ok", "disk", f"{free / 1e9:.1f} GB free for {name} ({place.resolve()})", do
        )
        if not os.access(place, os.W_OK):
            yield CheckResult("bad", "disk", f"{place.resolve()} cannot be written", "change its owner or mode")


def clock(root: Path) -> Iterator[CheckResult]:
    """This machine's clock against the one that files are stamped with, a server's where the disk is shared."""
    with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
        apart = os.fstat(file.fileno()).st_mtime - time.time()
    wrong = abs(apart) > _CLOCK
    do = "set both clocks by NTP: locks and S3 go by the time" if wrong else ""
    yield CheckResult("bad" if wrong else "ok", "clock", f"{abs(apart):.1f} s from that of the disk", do)
