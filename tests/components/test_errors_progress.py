from __future__ import annotations

import errno
import io
from collections.abc import Callable, Sequence

import pytest

from components.errors import VitrailError, nearest, run_cli
from components.progress import Progress, duration, track


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
    first, second, last = out.getvalue().splitlines()
    assert first.startswith("decode: 2/4 images, ")
    assert "left | 1 bad" in first
    assert "4/4 images" in second
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
