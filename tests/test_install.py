"""What the README promises about installing: the lock serves Python 3.11, 3.12 and 3.13, on x86-64 and arm64."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from components.doctor.machine import locked
from infra.local.interpreter import FIRST, LAST, complaint

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = [f"3.{minor}" for minor in range(FIRST[1], LAST[1] + 1)]
SOURCE_ONLY = {"antlr4-python3-runtime", "pdqhash"}  # no wheel of any kind; the first is pure, the second is of perf
GPU_ONLY = ("nvidia-", "triton", "cuda-", "faiss-gpu")  # pip's CUDA build of torch brings its own, exactly pinned


LOCKS = [ROOT / "requirements.lock", *sorted((ROOT / "requirements").glob("*.lock"))]


def pins_of(*names: str) -> dict[str, str]:
    return locked([ROOT / "requirements.lock", *(ROOT / f"requirements/{name}" for name in names)])


def needed(python: str, machine: str) -> Iterator[tuple[str, str]]:
    """Every (distribution, what asks for it) of an install on a Linux machine, from the metadata of what is here."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    extras = PROJECT["optional-dependencies"]
    first = [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"], *extras["ray"], *extras["docs"]]
    waiting, seen = [(Requirement(text), "pyproject.toml") for text in first], set()
    while waiting:
        wanted, by = waiting.pop()
        name = canonicalize_name(wanted.name)
        yield name, by
        for extra in ["", *wanted.extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                asks = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            for text in asks:
                one = Requirement(text)
                if (one.marker is None and extra == "") or (
                    one.marker is not None and one.marker.evaluate({**where, "extra": extra})
                ):
                    waiting.append((one, name))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", VERSIONS)
def test_the_lock_pins_all_that_an_install_takes(python: str, machine: str) -> None:
    pins = pins_of("torch.txt", "build.lock", "cpu.lock", "dev.lock", "ray.lock", "docs.lock")
    loose = {
        f"{name} (for {by})"
        for name, by in needed(python, machine)
        if name not in pins and not name.startswith(GPU_ONLY)
    }
    assert not loose


@pytest.mark.parametrize("python", VERSIONS)
def test_no_pinned_version_refuses_a_promised_python(python: str) -> None:
    from packaging.specifiers import SpecifierSet

    refusing = []
    for name, version in locked(LOCKS).items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        asked = found.metadata.get("Requires-Python")
        if found.version == version and asked and f"{python}.1" not in SpecifierSet(asked):
            refusing.append(f"{name} {version} wants {asked}")
    assert not refusing


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_has_a_version_and_hashes(path: Path) -> None:
    text = path.read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    assert entries
    for entry in entries:
        first, *hashes = entry.replace(" \\\n", "\n").split("\n")
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;]+( ; .+)?", first), first
        assert hashes, first
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


def test_one_version_of_a_package_over_all_locks() -> None:
    found: dict[str, set[str]] = {}
    for path in LOCKS:
        for name, version in locked([path]).items():
            found.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in found.items() if len(versions) > 1} == {}
    torch = locked([ROOT / "requirements/torch.txt"])
    assert f"torch=={torch.pop('torch')}" in PROJECT["dependencies"]
    assert not torch
    extras = {path.stem for path in LOCKS[1:]} - {"build", "security"}
    assert extras == set(PROJECT["optional-dependencies"])


def test_what_a_lock_file_names_and_nothing_else_is_installed() -> None:
    asked = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(["make", "-Bn", "install", "VENV=none"], cwd=ROOT, capture_output=True, text=True, env=asked)
    calls = [line for line in done.stdout.splitlines() if " pip install " in line]
    assert len(calls) == 4
    for call in calls:
        if "torch.txt" not in call and "-e ." not in call:
            assert "--require-hashes --no-deps --no-build-isolation" in call
    assert "--no-deps" in calls[-1]


def test_what_is_promised_is_said_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == f">={VERSIONS[0]},<3.{LAST[1] + 1}"
    assert f"Python {VERSIONS[0]}, {VERSIONS[1]} or {VERSIONS[2]}" in (ROOT / "README.md").read_text()
    assert "yuface" not in " ".join(PROJECT["dependencies"])  # wheels for one Python on one machine


def test_a_python_that_does_not_fit_is_named_with_what_does() -> None:
    for minor in range(FIRST[1], LAST[1] + 1):
        for machine in ("x86_64", "aarch64", "arm64", "AMD64"):
            assert complaint("CPython", (3, minor), machine, None) == ""
    for odd in (("CPython", (3, 10), "x86_64"), ("CPython", (3, 14), "x86_64"), ("CPython", (3, 12), "riscv64"),
                ("PyPy", (3, 11), "x86_64")):  # fmt: skip
        line = complaint(*odd, "python3.12")
        assert "\n" not in line
        assert "CPython 3.11 to 3.13" in line
        assert line.endswith("make install PYTHON=python3.12")


def test_make_install_says_it_before_anything_is_installed(tmp_path: Path) -> None:
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    old = tmp_path / "old"
    code = "import platform, sys, runpy; sys.version_info = (3, 10, 4); sys.argv = sys.argv[1:]"
    run = 'runpy.run_path(sys.argv[0], run_name="__main__")'
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}; {run}' \"$@\"\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: this is CPython 3.10")]
    assert not (tmp_path / ".venv").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("python", [version for version in VERSIONS if version != f"3.{sys.version_info.minor}"])
def test_another_python_finds_wheels_of_what_is_used_and_compiled(python: str) -> None:
    own = [str(path) for path in (Path.home() / ".pyenv/versions").glob(f"{python}.*/bin/python")]
    names = [name for name in [shutil.which(f"python{python}"), *own] if name]
    works = [n for n in names if subprocess.run([n, "-m", "pip", "--version"], capture_output=True).returncode == 0]
    if not works:
        pytest.skip(f"left out: no python{python} with pip here")
    pins = pins_of()
    compiled = []
    for package in sorted({canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} & set(pins)):
        try:
            wheel = importlib.metadata.distribution(package).read_text("WHEEL") or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        if "-none-" not in wheel and "-abi3-" not in wheel:  # which serve every later Python
            compiled.append(f"{package}=={pins[package]}")
    assert len(compiled) >= 10
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run([works[0], "-m", "pip", "install", *options, *compiled], capture_output=True, text=True)
    if "NewConnectionError" in done.stderr or "Name or service not known" in done.stderr:
        pytest.skip("left out: no package index within reach")
    assert done.returncode == 0, done.stderr[-2000:]
