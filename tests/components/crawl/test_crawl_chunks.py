"""Chunked bodies as servers send them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.crawl.chunks import MAX_LINE, MAX_TRAILERS, Chunks


def body(anew: bytes) -> bytes:
    """An independent, strict reading of what :class:`Chunks` wrote."""
    found, rest = b"", anew
    while (size := re.match(rb"([0-9a-f]+)\r\n", rest)) and (length := int(size.group(1), 16)):
        start = size.end()
        assert rest[start + length :].startswith(b"\r\n")
        found, rest = found + rest[start : start + length], rest[start + length + 2 :]
    assert rest in (b"", b"0\r\n\r\n")
    return found


ACCEPTED = {
    "as written": b"5\r\nhello\r\n3\r\n me\r\n0\r\n\r\n",
    "bare line feeds": b"5\nhello\n3\n me\n0\n\n",
    "mixed": b"5\nhello\r\n3\r\n me\n0\r\n\n",
    "gaps and zeros": b" 0005 \r\nhello\r\n3\t\r\n me\r\n000\r\n\r\n",
    "extensions": b'5;a=b\r\nhello\r\n3; c="d"\n me\r\n0;e\r\n\r\n',
    "trailers": b"5\r\nhello\r\n3\r\n me\r\n0\r\nX: y\r\nZ: z\n\r\n",
    "CR CR LF": b"5\r\r\nhello\r\r\n3\r\r\n me\r\r\n0\r\r\n\r\r\n",
    "more behind": b"5\r\nhello\r\n3\r\n me\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n",
}


@pytest.mark.parametrize("sent", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_what_browsers_accept_is_read_however_it_arrives(sent: bytes, piece: int) -> None:
    chunks = Chunks()
    anew = b"".join(chunks.feed(sent[at : at + piece]) for at in range(0, len(sent), piece))
    assert body(anew) == b"hello me"
    assert chunks.done


@pytest.mark.parametrize(
    "sent", [b"zz\r\n", b"\r\n", b"-5\r\nhello", b"5\r\nhello you\r\n", b"f" * 16 + b"\r\n", b"+5\r\nhello\r\n"]
)
def test_what_is_no_chunk_is_refused(sent: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        Chunks().feed(sent)


def test_a_line_or_trailers_without_end_are_refused() -> None:
    chunks = Chunks()
    with pytest.raises(ValueError, match="line of more"):
        [chunks.feed(b"1" * 1000) for _ in range(MAX_LINE // 1000 + 2)]
    chunks = Chunks()
    chunks.feed(b"0\r\n")
    with pytest.raises(ValueError, match="trailers of more"):
        [chunks.feed(b"X: y\r\n" * 1000) for _ in range(MAX_TRAILERS // 6000 + 2)]


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.lists(st.integers(1, 40), max_size=8))
def test_any_body_cut_anywhere_comes_out_whole(parts: list[bytes], cuts: list[int]) -> None:
    sent = b"".join(b"%X\n%b\n" % (len(part), part) for part in parts) + b"0\n\n"
    chunks, anew, at = Chunks(), b"", 0
    for length in [*cuts, len(sent)]:
        anew += chunks.feed(sent[at : at + length])
        at += length
    assert body(anew) == b"".join(parts)
    assert chunks.done
