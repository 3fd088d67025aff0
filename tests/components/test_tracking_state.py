"""What a run keeps of the code and parameters that it comes from, and what it must not keep."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components.errors import VitrailError
from components.tracking import state


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    return subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "params").mkdir(parents=True)
    (root / "params/a.yaml").write_text("lr: 1\n")
    (root / "params/b.yaml").write_text("x: 1\n")
    (root / "code.py").write_text("pass\n")
    (root / ".gitignore").write_text("/runs/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_clean_checkout_is_its_commit_and_the_lock(checkout: Path, tmp_path: Path) -> None:
    (checkout / "dvc.lock").write_text("stages: {}\n")
    kept = state.keep_state(checkout, tmp_path / "kept")
    assert kept is not None
    assert kept.commit == git(checkout, "rev-parse", "HEAD")
    assert (list(kept.files), kept.removed, kept.left_out) == (["dvc.lock"], [], {})
    assert state.read_state(tmp_path / "kept") == kept


def test_what_differs_from_the_commit_is_kept_whether_edited_new_or_removed(checkout: Path, tmp_path: Path) -> None:
    (checkout / "params/a.yaml").write_text("lr: 2\n")
    (checkout / "params/new.yaml").write_text("z: 3\n")
    (checkout / "photo.jpg").write_bytes(b"a picture of somebody")
    (checkout / "code.py").unlink()
    kept = state.keep_state(checkout, tmp_path / "kept")
    assert kept is not None
    assert sorted(kept.files) == ["params/a.yaml", "params/new.yaml"]
    assert kept.removed == ["code.py"]
    assert (tmp_path / "kept/files/params/a.yaml").read_text() == "lr: 2\n"
    (checkout / "params/a.yaml").write_text("lr: 3\n")
    other = state.keep_state(checkout, tmp_path / "other")
    assert other is not None
    assert other.digest != kept.digest


def test_a_run_workspace_below_the_checkout_is_compared_with_the_commit_too(checkout: Path, tmp_path: Path) -> None:
    workspace = checkout / "runs/pretrain-x"
    (workspace / "params").mkdir(parents=True)
    for name in ("code.py", ".gitignore", "params/b.yaml"):
        (workspace / name).write_bytes((checkout / name).read_bytes())
    (workspace / "params/a.yaml").write_text("lr: 7\n")
    kept = state.keep_state(workspace, tmp_path / "kept")
    assert kept is not None
    assert (list(kept.files), kept.removed) == (["params/a.yaml"], [])
    assert (tmp_path / "kept/files/params/a.yaml").read_text() == "lr: 7\n"


def test_secrets_and_large_files_are_named_and_not_kept(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/secret+of/s3")
    (checkout / "params/a.yaml").write_text("key: planted/secret+of/s3\n")
    (checkout / "params/signed.yaml").write_text("source: https://b.test/k?X-Amz-Signature=planted123\n")
    (checkout / "params/large.txt").write_bytes(bytes(state.FILE_BYTES + 1))
    kept = state.keep_state(checkout, tmp_path / "kept")
    assert kept is not None
    assert kept.files == {}
    assert kept.left_out == {
        "params/a.yaml": "holds the value of AWS_SECRET_ACCESS_KEY",
        "params/large.txt": "1,000,001 bytes",
        "params/signed.yaml": "holds an address that gives access",
    }
    held = b"".join(path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert b"planted" not in held


def test_where_no_commit_is_nothing_is_kept(tmp_path: Path) -> None:
    assert state.keep_state(tmp_path, tmp_path / "kept") is None
    git(tmp_path, "init", "-q")
    assert state.keep_state(tmp_path, tmp_path / "kept") is None
    assert not (tmp_path / "kept").exists()


def test_a_kept_file_that_changed_is_noticed(checkout: Path, tmp_path: Path) -> None:
    (checkout / "params/a.yaml").write_text("lr: 2\n")
    state.keep_state(checkout, tmp_path / "kept")
    (tmp_path / "kept/files/params/a.yaml").write_text("lr: 9\n")
    with pytest.raises(VitrailError, match=r"damaged \(params/a.yaml is not what was kept\)"):
        state.read_state(tmp_path / "kept")
