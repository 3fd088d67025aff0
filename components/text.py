"""Text files of the user's, parameters and lists alike, are read here: UTF-8, a byte-order mark tolerated.

Anything else is refused in one line, for a word in another encoding would be misread without a sign of it: the first
domain of a list after a byte-order mark is not restricted.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from components.errors import VitrailError

MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip  # UTF-32 first: its mark begins with that of UTF-16
ADVICE = "save it as UTF-8"


def read_text(path: Path) -> str:
    """The text of ``path``, without a byte-order mark, its lines ended by ``\\n`` alone.

    Raises:
        FileNotFoundError: there is no such file; the caller knows what else there is.
        VitrailError: it is no file, may not be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise VitrailError(f"{path}: is a folder; name a text file") from None
    except OSError as fault:
        raise VitrailError(f"{path}: cannot be read ({fault.strerror})") from None
    return decode_text(data, str(path))


def decode_text(data: bytes, where: str) -> str:
    """As :func:`read_text`, of the bytes of a file that ``where`` names."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            raise VitrailError(f"{where}: is {encoding}; {ADVICE}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        found = f"byte 0x{data[fault.start]:02x} in line {line}"
        raise VitrailError(f"{where}: is not UTF-8 ({found}; Latin-1 perhaps); {ADVICE}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise VitrailError(f"{where}: holds a zero byte in line {line} (UTF-16 perhaps); {ADVICE}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines of :func:`read_text`. A line ends at a line feed alone, not at U+2028 or a form feed."""
    return read_text(path).split("\n")
