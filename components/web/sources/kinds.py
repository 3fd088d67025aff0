"""What a file is, by its first bytes; by its name only where the bytes do not tell."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from typing import Literal, get_args

from components.images.decode import looks_like_image
from components.images.headers import is_raw_tiff
from components.images.heif import BRANDS
from components.web.formats.warc import is_warc, is_wat

SourceKind = Literal["warc", "images", "tars", "links", "text"]  # "text": captions and addresses beside images
Left = Literal[
    "hidden",
    "appledouble",
    "empty",
    "dangling-link",
    "looping-link",
    "linked-twice",
    "special",
    "unreadable",
    "unreadable-folder",
    "missing",
    "listed-twice",
    "unsafe-name",
    "archived",
    "compressed-tar",
    "archive",
    "camera-raw",
    "svg",
    "other-image",
    "video",
    "table",
    "image-table",
    "addresses",
    "unasked",
    "other",
]
LEFT: Mapping[Left, str] = {
    "hidden": "names that begin with a dot are not read",
    "appledouble": "macOS keeps a file's attributes in them, no picture",
    "empty": "no bytes; copy them again from where they came",
    "dangling-link": "symbolic links to nothing",
    "looping-link": "symbolic links that lead to themselves",
    "linked-twice": "folders met before, or above the source: read once",
    "special": "pipes, sockets and devices are not opened",
    "unreadable": "no permission, or a read error; mend it and run again",
    "unreadable-folder": "no permission, or a read error; what is in them is not counted",
    "missing": "named by the list, and not there",
    "listed-twice": "read once",
    "unsafe-name": "object names with '..' or a leading '/'",
    "archived": "objects in an archive class of the store; restore them first",
    "compressed-tar": "images in them have no place of their own; decompress them to .tar",
    "archive": "unpack them first",
    "camera-raw": "not decoded; develop them to JPEG or TIFF",
    "svg": "drawings, no pixels of their own",
    "other-image": "formats that are not decoded here; convert them to PNG",
    "video": "not decoded; extract frames first",
    "table": "beside files that hold images; addresses and captions are read from JSON, texts and metadata tables",
    "image-table": "tables that hold images' bytes; write those out as files or tar shards",
    "addresses": "name images and hold none; to fetch them write a .yaml with `kind: fetch` (docs/curation.md)",
    "unasked": "hold images; only files that name images are read for `kind: fetch`",
    "other": "no images",
}  # why a file is left out, and what to do about it
KINDS: tuple[SourceKind, ...] = get_args(SourceKind)

HEAD = 1024  # bytes of a file that are enough here
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
TEXT_SUFFIXES = (".json", ".txt", ".caption")
_RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
_MAGIC: tuple[tuple[bytes, Left], ...] = (
    (b"\x00\x05\x16\x07", "appledouble"),
    (b"\x00\x05\x16\x00", "appledouble"),
    (b"FUJIFILMCCD-RAW", "camera-raw"),
    (b"FOVb", "camera-raw"),
    (b"\0MRM", "camera-raw"),
    (b"IIRO", "camera-raw"),
    (b"IIRS", "camera-raw"),
    (b"MMOR", "camera-raw"),
    (b"IIU\0", "camera-raw"),
    (b"8BPS", "other-image"),  # Photoshop
    (b"\xff\x0a", "other-image"),  # JPEG XL
    (b"\0\0\0\x0cJXL \r\n\x87\n", "other-image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "other-image"),  # JPEG 2000
    (b"\xff\x4f\xff\x51", "other-image"),
    (b"v/1\x01", "other-image"),  # OpenEXR
    (b"#?RADIANCE", "other-image"),
    (b"DDS ", "other-image"),
    (b"qoif", "other-image"),
    (b"\0\0\x01\0", "other-image"),  # Windows icon
    (b"SIMPLE  =", "other-image"),  # FITS
    (b"II+\0", "other-image"),  # BigTIFF
    (b"MM\0+", "other-image"),
    (b"II\xbc\x01", "other-image"),  # JPEG XR
    (b"gimp xcf", "other-image"),
    (b"PK\x03\x04", "archive"),
    (b"PK\x05\x06", "archive"),
    (b"7z\xbc\xaf\x27\x1c", "archive"),
    (b"Rar!\x1a\x07", "archive"),
    (b"\x1aE\xdf\xa3", "video"),  # Matroska, WebM
    (b"\0\0\x01\xba", "video"),
    (b"FLV\x01", "video"),
)
_ZSTD = (b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18")  # the second: a dictionary before it, as some WARC files have
_TIFF = (b"II*\0", b"MM\0*")


def what_is(name: str, head: bytes) -> SourceKind | Left:
    """What the file ``name`` is that begins with ``head`` (:data:`HEAD` bytes of it, or all).

    A kind that can be read, or why it cannot. Bytes decide; the name where they say nothing (a damaged file of a known
    suffix is then counted where it is read), and between formats that begin alike (WARC and WAT).
    """
    low = name.lower()
    if not head:
        return "empty"
    if (found := _by_magic(low, head)) is not None:
        return found
    if is_warc(low):
        return "warc"
    if is_wat(low) or low.endswith(".parquet"):
        return "links"
    if low.endswith(".tar"):
        return "tars"
    if low.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        return "compressed-tar"
    if low.endswith(IMAGE_SUFFIXES):
        return "images"
    if low.endswith(_RAW_SUFFIXES):
        return "camera-raw"
    return "text" if low.endswith((*TEXT_SUFFIXES, ".csv", ".jsonl")) else "other"


def by_name(name: str) -> SourceKind | None:
    """What a file's suffix promises; None where it promises nothing that is read here."""
    found = what_is(name, b"?")
    return next((kind for kind in KINDS if kind == found), None)


def _by_magic(name: str, head: bytes) -> SourceKind | Left | None:
    for magic, left in _MAGIC:
        if head.startswith(magic):
            return left
    if head[4:8] == b"ftyp":
        return _iso_media(head)
    if is_raw_tiff(head) or (head.startswith(_TIFF) and name.endswith(_RAW_SUFFIXES)):
        return "camera-raw"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "video"
    if looks_like_image(head) and not (head.startswith(b"BM") and head[6:10] != b"\0\0\0\0"):
        return "images"
    if head.startswith(b"PAR1"):
        return "links"
    if head.startswith(b"WARC/"):
        return "links" if is_wat(name) else "warc"
    if head.startswith(b"\x1f\x8b"):
        return _in_gzip(name, head)
    if head.startswith(_ZSTD):
        return "compressed-tar" if name.endswith(".tar.zst") else None if is_warc(name) or is_wat(name) else "other"
    if is_tar(head):
        return "tars"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "svg" if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text) else None


def _iso_media(head: bytes) -> SourceKind | Left:
    """A file in boxes (ISO 14496-12), by its brands."""
    size = int.from_bytes(head[:4], "big")
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, min(size, len(head)), 4))}
    if head[8:12] == b"crx ":
        return "camera-raw"
    return "images" if brands & {b"avif", b"avis", *BRANDS, b"mif1", b"msf1"} else "video"


def _in_gzip(name: str, head: bytes) -> SourceKind | Left | None:
    try:
        inner = zlib.decompressobj(31).decompress(head, 2 * 512)
    except zlib.error:
        return None
    if inner.startswith(b"WARC/"):
        return "links" if is_wat(name) else "warc"
    return "compressed-tar" if is_tar(inner) else None


def is_tar(head: bytes) -> bool:
    """Whether ``head`` begins with a tar header of any kind (its checksum is right)."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True
