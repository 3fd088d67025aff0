"""Tar shards in WebDataset layout as a source: images by their place in the tar, texts and addresses beside them.

Headers and first bytes only are read here; an image's bytes are read by range later, and nothing is unpacked, so a
member's name can lead nowhere. Names that try to (absolute, ``..``), links out of the tar, devices and sparse files are
counted and left. A damaged header ends its tar: there is no way to tell where the next one begins.
"""

from __future__ import annotations

import posixpath
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from components.web.sources.kinds import HEAD, IMAGE_SUFFIXES, KINDS, TEXT_SUFFIXES, what_is
from components.web.sources.sidecars import MAX_TEXT, beside, said_of

_BLOCK = 512
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_MAX_HEADER = 65_536  # bytes of a pax or GNU long-name header


@dataclass(frozen=True)
class Member:
    """One regular file in a tar: where its bytes are."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class TarSample:
    """One image of a shard, with its text files."""

    member: Member
    url: str  # of the image, where its JSON says one; else ""
    alt: str
    licence: str


def samples(path: Path, counts: Counter[str]) -> Iterator[TarSample]:
    """The images of the tar at ``path``, in order; what was wrong with it is counted in ``counts``.

    Members of one key are one sample, as WebDataset has it, wherever in the tar they are: without its JSON an image
    has no address, and policy is not asked. So the names of one tar are in memory. Of members of one name the last
    counts, as when a tar is unpacked.
    """
    with open(path, "rb") as file:
        known: dict[str, Member] = {}
        for member in members(file, path.stat().st_size, counts):
            if known.pop(member.name, None) is not None:
                counts["tar-repeated-name"] += 1
            known[member.name] = member
        images = [name for name, member in known.items() if _is_image(file, member, counts)]
        speaking = beside(images, known)
        for name in images:
            said = said_of({}, False)
            if (texts := speaking.get(name)) is not None:
                said = said_of({text: _read(file, known[text], MAX_TEXT) for text in texts.texts}, texts.shared)
            yield TarSample(known[name], said.url, said.alt, said.licence)


def _is_image(file: BinaryIO, member: Member, counts: Counter[str]) -> bool:
    """Whether the member is an image by its bytes, or by its name where they are no other thing that is known."""
    low = member.name.lower()
    if low.endswith(TEXT_SUFFIXES) and not low.endswith(IMAGE_SUFFIXES):
        return False
    what = what_is(member.name, _read(file, member, HEAD))
    if what != "images" and what != "text":
        counts["left-other" if what in KINDS else f"left-{what}"] += 1
    return what == "images"


def members(file: BinaryIO, size: int, counts: Counter[str]) -> Iterator[Member]:
    """Regular members of the tar ``file`` of ``size`` bytes, with safe names and all of their bytes there.

    Links to other members are members too, with those bytes: hard ones in their place, symbolic ones at the end.
    Zeros between members are passed over, so tars that were put together by ``cat`` are read whole.
    """
    at = 0
    pax: dict[bytes, bytes] = {}  # what an extended header says of the member behind it
    known: dict[str, Member] = {}
    links: dict[str, str] = {}
    while at + _BLOCK <= size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            at = _after_zeros(file, at, size)
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            length = info.size if info.type in _EXTENDED else int(pax.get(b"size", info.size))
        except (tarfile.HeaderError, ValueError):
            counts["tar-corrupt"] += 1
            break
        if info.type in tarfile.SUPPORTED_TYPES and info.type not in _EXTENDED and not info.isreg():
            length = 0  # links, folders, devices: no bytes follow, whatever the header says
        start = at + _BLOCK
        if info.type == tarfile.GNUTYPE_SPARSE:
            start = _after_sparse(file, block, start)
        if length < 0 or start + length > size:
            counts["tar-truncated"] += 1
            break
        at = start + -(-length // _BLOCK) * _BLOCK
        if info.type in _EXTENDED:
            if length > _MAX_HEADER:
                counts["tar-corrupt"] += 1
                break
            data = file.read(length)
            pax |= {_LONG[info.type]: data.rstrip(b"\0")} if info.type in _LONG else _pax(data)
            continue
        said, pax = pax, {}
        if info.isdir() or info.type == tarfile.XGLTYPE:
            continue
        name = _text(said.get(b"path"), info.name)
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse") for key in said):
            counts["tar-sparse-member"] += 1
        elif not _is_safe(name):
            counts["tar-unsafe-member"] += 1
        elif info.type in _FILES:
            known[name] = Member(name, start, length)
            yield known[name]
        elif info.type == tarfile.LNKTYPE and (there := known.get(_text(said.get(b"linkpath"), info.linkname))):
            known[name] = Member(name, there.offset, there.length)
            yield known[name]
        elif info.type == tarfile.SYMTYPE:
            links[name] = _text(said.get(b"linkpath"), info.linkname)
        else:
            counts["tar-unsafe-member"] += 1
    else:
        if at < size:
            counts["tar-truncated"] += 1
    for name in links:
        target = _target(name, links)
        if target in known and name not in known:
            yield Member(name, known[target].offset, known[target].length)
        else:
            counts["tar-unsafe-member"] += 1


def _after_sparse(file: BinaryIO, header: bytes, start: int) -> int:
    """Where the bytes of a GNU sparse member start: its map can go on in blocks behind the header."""
    more = header[482]
    while more and len(block := file.read(_BLOCK)) == _BLOCK:
        start, more = start + _BLOCK, block[504]
    return start


def _after_zeros(file: BinaryIO, at: int, size: int) -> int:
    """Where the next header can be behind the zero block at ``at``."""
    file.seek(at)
    while at < size:
        data = file.read(1 << 20)
        if not data:
            return size
        zeros = len(data) - len(data.lstrip(b"\0"))
        if zeros < len(data):
            return at + zeros // _BLOCK * _BLOCK
        at += len(data)
    return size


def _target(name: str, links: dict[str, str]) -> str:
    """The member that a symbolic link of the tar leads to, over other links of it; "" where they go in a circle."""
    for _ in range(len(links)):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), links[name]))
        if name not in links:
            return name
    return ""


def _text(said: bytes | None, else_name: str) -> str:
    return else_name if said is None else said.decode("utf-8", "surrogateescape")


def _pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, each "length keyword=value\\n"; what follows a bad one is left."""
    at, found = 0, dict[bytes, bytes]()
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            break
        keyword, _, value = data[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        found[keyword] = value
        at += int(digits)
    return found


def _is_safe(name: str) -> bool:
    """Whether ``name`` stays below its folder and holds no control character; names need not be UTF-8."""
    path = PurePosixPath(name)
    return (
        bool(path.name)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and not any(unicodedata.category(c) == "Cc" for c in name)
    )


def _read(file: BinaryIO, member: Member, most: int) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.length, most))
