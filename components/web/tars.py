"""Tar shards in WebDataset layout as a source: images by their place in the tar, texts and addresses beside them.

Headers only are read here, one block at a time; an image's bytes are read by range later, and nothing is unpacked, so
a member's name can lead nowhere. Names that try to (absolute, ``..``), links, devices and sparse files are counted and
left. A damaged header ends its tar: there is no way to tell where the next one stands.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from components.web.link_table import storable
from components.web.links import resolve
from components.web.sources import IMAGE_SUFFIXES

_BLOCK = 512
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_MAX_HEADER = 65_536  # bytes of a pax or GNU long-name header
_MAX_TEXT = 65_536  # bytes of a caption or JSON member


@dataclass(frozen=True)
class Member:
    """One regular file in a tar: where its bytes stand."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Sample:
    """One image of a shard, with what stands beside it."""

    member: Member
    url: str  # of the image, where its JSON says one; else ""
    alt: str
    licence: str


def samples(path: Path, counts: Counter[str]) -> Iterator[Sample]:
    """The images of the tar at ``path``, in order; what was wrong with it is counted in ``counts``.

    Members of one stem that follow each other are one sample, as WebDataset has it; so memory is a sample's.
    """
    with open(path, "rb") as file:
        stem, group = "", list[Member]()
        for member in members(file, path.stat().st_size, counts):
            name = PurePosixPath(member.name)
            base = str(name.with_name(name.name.partition(".")[0]))
            if base != stem:
                yield from _of_group(file, group)
                stem, group = base, []
            group.append(member)
        yield from _of_group(file, group)


def members(file: BinaryIO, size: int, counts: Counter[str]) -> Iterator[Member]:
    """Regular members of the tar ``file`` of ``size`` bytes, with safe names and all of their bytes there."""
    at = 0
    pax: dict[bytes, bytes] = {}  # what an extended header says of the member behind it
    while at + _BLOCK <= size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            return  # the end mark
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            length = info.size if info.type in _EXTENDED else int(pax.get(b"size", info.size))
        except (tarfile.HeaderError, ValueError):
            counts["tar-corrupt"] += 1
            return
        start = at + _BLOCK
        if length < 0 or start + length > size:
            counts["tar-truncated"] += 1
            return
        at = start + -(-length // _BLOCK) * _BLOCK
        if info.type in _EXTENDED:
            if length > _MAX_HEADER:
                counts["tar-corrupt"] += 1
                return
            data = file.read(length)
            pax |= {b"path": data.rstrip(b"\0")} if info.type == tarfile.GNUTYPE_LONGNAME else _pax(data)
            continue
        said, pax = pax, {}
        name = said[b"path"].decode("utf-8", "surrogateescape") if b"path" in said else info.name
        if info.isdir() or info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        sparse = any(key.startswith(b"GNU.sparse") for key in said)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or sparse or not _is_safe(name):
            counts["tar-unsafe-member"] += 1
            continue
        yield Member(name, start, length)
    if at < size:
        counts["tar-truncated"] += 1


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
    path = PurePosixPath(name)
    return (
        bool(path.name)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and name.isprintable()
    )


def _of_group(file: BinaryIO, group: list[Member]) -> Iterator[Sample]:
    images = [member for member in group if member.name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        return
    text = next((_read(file, member) for member in group if member.name.endswith((".txt", ".caption"))), b"")
    facts = next((_json(_read(file, member)) for member in group if member.name.endswith(".json")), {})
    alt = text.decode("utf-8", "replace").strip() or facts.get("caption", "")
    url = resolve("", facts.get("url", "")) if len(images) == 1 else ""
    for member in images:
        yield Sample(member, url, alt, facts.get("license", "") or facts.get("licence", ""))


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.length, _MAX_TEXT))


def _json(data: bytes) -> dict[str, str]:
    """The texts of a JSON object; nothing where ``data`` is not one."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {k: storable(v) for k, v in content.items() if isinstance(v, str)} if isinstance(content, dict) else {}
