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

from components.curate.links import resolve
from components.curate.sources import IMAGE_SUFFIXES

_BLOCK = 512
_MAX_NAME = 65_536  # bytes of a pax or GNU long-name header
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
    at, long_name = 0, ""
    while at + _BLOCK <= size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            return  # the end mark
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            counts["tar-corrupt"] += 1
            return
        start = at + _BLOCK
        if info.size < 0 or start + info.size > size:
            counts["tar-truncated"] += 1
            return
        at = start + -(-info.size // _BLOCK) * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if info.size > _MAX_NAME:
                counts["tar-corrupt"] += 1
                return
            data = file.read(info.size)
            found = _pax_path(data) if info.type != tarfile.GNUTYPE_LONGNAME else data.rstrip(b"\0")
            long_name = found.decode("utf-8", "surrogateescape") if found else long_name
            continue
        name, long_name = long_name or info.name, ""
        if info.isdir() or info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not _is_safe(name):
            counts["tar-unsafe-member"] += 1
            continue
        yield Member(name, start, info.size)
    if at < size:
        counts["tar-truncated"] += 1


def _pax_path(data: bytes) -> bytes:
    """The ``path`` record of a pax header ("length keyword=value\\n" records), or nothing."""
    at, found = 0, b""
    while at < len(data):
        length, space, _ = data[at : at + 20].partition(b" ")
        if not space or not length.isdigit() or int(length) <= len(length) + 1:
            break
        record = data[at + len(length) + 1 : at + int(length) - 1]
        if record.startswith(b"path="):
            found = record[5:]
        at += int(length)
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
    return {k: v for k, v in content.items() if isinstance(v, str)} if isinstance(content, dict) else {}
