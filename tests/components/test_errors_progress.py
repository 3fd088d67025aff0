from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from components.errors import VitrailError, disk_fault, nearest, run_cli
from components.lock import hold
from components.progress import Progress, duration, publish, published, share_done, track
from components.storage import atomic_dir


def raising(fault: BaseException) -> Callable[[Sequence[str]], int]:
    def main(argv: Sequence[str]) -> int:
        raise fault

    return main


def test_a_fault_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(raising(VitrailError("x.yaml: no such key")), []) == 1
    assert capsys.readouterr().err == "error: x.yaml: no such key\n"


def test_a_full_disk_is_one_line_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(raising(OSError(errno.ENOSPC, "No space left on device", "/data/x")), []) == 1
    shown = capsys.readouterr().err
    assert "the disk is full while writing /data/x" in shown
    assert shown.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()), [])


def test_exit_codes_pass_through() -> None:
    assert run_cli(lambda argv: None, []) == 0
    assert run_cli(lambda argv: len(argv), ["a", "b"]) == 2
    assert run_cli(raising(KeyboardInterrupt()), []) == 130


@pytest.mark.parametrize("lines", [1, 100_000])  # the last buffer, and within the command
@pytest.mark.parametrize("form", ["", "json"])
def test_output_that_nobody_reads_any_more_ends_a_command_without_a_word(lines: int, form: str) -> None:
    code = f"""
from components.errors import run_cli
def main(argv):
    for number in range({lines}): print("line", number)
raise SystemExit(run_cli(main))"""
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "VITRAIL_LOGS": form}
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_keeps_its_traceback() -> None:
    with pytest.raises(BrokenPipeError):
        run_cli(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), [])


@pytest.mark.parametrize("place", ["/proc/model", "/proc/a/model", "/dev/null/model"])
def test_an_output_where_no_file_can_be_made_is_one_line(capsys: pytest.CaptureFixture[str], place: str) -> None:
    def main(argv: Sequence[str]) -> None:
        with hold(Path(place)), atomic_dir(Path(place) / "below"):
            raise AssertionError

    assert run_cli(main, []) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: /")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("code", [errno.ELOOP, errno.EBUSY, errno.ENOTCONN, errno.EOPNOTSUPP, errno.EMFILE])
def test_any_fault_that_names_a_path_is_a_line_and_a_missing_file_is_a_bug(code: int) -> None:
    assert disk_fault(OSError(code, os.strerror(code), "/data/x")) is not None
    assert disk_fault(OSError(code, os.strerror(code))) is None
    assert disk_fault(FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/x")) is None


def test_nearest() -> None:
    assert nearest("learing_rate", ["learning_rate", "depth"]) == "; did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate"]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273600, "3 d 04 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_shows_rate_and_time_left() -> None:
    out = io.StringIO()
    progress = Progress("decode", 4, unit="images", every=0.0, out=out)
    progress.advance(2, "1 bad")
    progress.advance(2)
    progress.close()
    first, last = out.getvalue().splitlines()  # all that was counted is said once
    assert first.startswith("decode: 2/4 images, ")
    assert "left | 1 bad" in first
    assert last.startswith("decode: 4/4 images in ")
    assert list(track([1, 2], "x")) == [1, 2]


def test_what_a_resumed_run_had_done_counts_and_does_not_speed_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("components.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress("pretrain", 100, unit="steps", every=0.0, out=out, start=80)
    now[0] = 10.0
    progress.advance(10)
    assert out.getvalue() == "pretrain: 90/100 steps, 1/s, 10 s left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_a_bar_and_ends_in_one_line() -> None:
    out = Terminal()
    progress = Progress("decode", 4, unit="images", out=out, start=1)
    progress.advance(2, "1 bad")
    progress.done += 1  # as stages do that count by themselves
    progress.advance(0)
    progress.close("1 bad")
    shown = out.getvalue()
    assert "\n" not in shown.rstrip("\n")
    assert "decode: " in shown.split("\r")[1]
    assert "%|" in shown
    assert shown.endswith("decode: 4/4 images in 0 s | 1 bad\n")


def test_what_runs_is_published_for_other_terminals_and_taken_back_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / ".out.progress"
    with publish(file):
        assert published(file) is None
        progress = Progress("decode", 4, unit="images", every=0.0, out=io.StringIO())
        begun = published(file)
        assert begun is not None
        assert begun[0] == "decode: 0/4 images"
        progress.advance(2, "1 bad")
        found = published(file)
        assert found is not None
        assert found[0].startswith("decode: 2/4 images, ")
        assert found[1] >= begun[1]
        progress.close()
        assert (published(file) or ("", 0.0))[0] == "decode: 2/4 images in 0 s"
    assert list(tmp_path.iterdir()) == []
    Progress("unseen", 1, out=io.StringIO())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_work(tmp_path: Path) -> None:
    with publish(tmp_path / "gone/.out.progress"):
        progress = Progress("decode", 1, every=0.0, out=io.StringIO())
        progress.advance()
    assert progress.done == 1


@pytest.mark.parametrize(
    ("line", "share"),
    [("x: 1,200/2,400 images, 3/s", 0.5), ("x: 3 images, 1/s", None), ("ratio 1/2", None), ("x: 1/0 images", None)],
)
def test_the_share_of_a_line(line: str, share: float | None) -> None:
    assert share_done(line) == share


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EDQUOT, "the disk quota is used up while writing /data/x; free some space"),
        (errno.EROFS, "the file system is read-only while writing /data/x"),
        (errno.EACCES, "/data/x: not permitted"),
        (errno.EIO, "/data/x: the disk could not read or write it"),
        (errno.EISDIR, "/data/x: this is a folder; a file is wanted"),
        (errno.EEXIST, "/data/x: something else is here already; name another path"),
    ],
)
def test_other_faults_of_a_disk_are_a_line_each(capsys: pytest.CaptureFixture[str], code: int, words: str) -> None:
    assert run_cli(raising(OSError(code, os.strerror(code), "/data/x")), []) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_what_a_library_made_of_a_full_disk_is_told_alike() -> None:
    for fault in (RuntimeError("I/O error: No space left on device (os error 28)"), OSError("[Errno 122] Detail: "
                  + os.strerror(errno.EDQUOT))):  # fmt: skip
        line = disk_fault(fault, "/data/x")
        assert line is not None
        assert "while writing /data/x" in line


def test_of_a_copy_the_written_path_is_named() -> None:
    line = disk_fault(OSError(errno.ENOSPC, "No space left on device", "/from", None, "/to"))
    assert line is not None
    assert "while writing /to" in line


def test_a_signal_that_may_not_be_sent_is_no_fault_of_a_disk() -> None:
    assert disk_fault(PermissionError(errno.EPERM, "Operation not permitted")) is None
    assert disk_fault(ZeroDivisionError(), "/data/x") is None
