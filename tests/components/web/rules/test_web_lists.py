"""Lists that the user writes are read one way: a byte-order mark is nothing, another encoding is one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import VitrailError
from components.storage import StorageParams
from components.web.rules.block_list import entries, remember
from components.web.rules.policy import read_domains
from components.web.sources.sources_json import register

READERS: list[tuple[Callable[[Path], list[object]], str]] = [
    (lambda path: list(read_domains(path)), "example.org\nexample.com\n"),
    (lambda path: list(entries(path)), "domain example.org\ndomain example.com\n"),
]


@pytest.mark.parametrize(("read", "text"), READERS)
def test_a_mark_and_windows_lines_change_nothing(
    tmp_path: Path, read: Callable[[Path], list[object]], text: str
) -> None:
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_text(text)
    marked.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read(marked) == read(plain)
    assert len(read(plain)) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1", "utf-32"])
@pytest.mark.parametrize(("read", "text"), READERS)
def test_another_encoding_is_one_line(
    tmp_path: Path, read: Callable[[Path], list[object]], text: str, encoding: str
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(f"# gesperrt f\u00fcr alle\n{text}".encode(encoding))
    with pytest.raises(VitrailError, match=r"list\.txt: .*save it as UTF-8") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_what_is_remembered_is_added_below_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "forgotten.txt"
    path.write_bytes(b"\xef\xbb\xbfdomain example.org\n")
    assert remember(path, [("domain", "example.org"), ("domain", "example.net")], "note") == 1
    assert entries(path) == [("domain", "example.org"), ("domain", "example.net")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_list_of_files_is_read_alike(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    path = tmp_path / ("files.txt.gz" if packed else "files.txt")
    pack = gzip.compress if packed else bytes
    path.write_bytes(pack(b"\xef\xbb\xbfa.jpg\r\n"))
    assert [file.path for file in register(str(path), StorageParams(root="data")).files] == ["a.jpg"]
    path.write_bytes(pack("a.jpg\n".encode("utf-16")))
    with pytest.raises(VitrailError, match="write it as UTF-8"):
        register(str(path), StorageParams(root="data"))
