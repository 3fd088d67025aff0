"""What an image is, found out in a process of its own: its facts and thumbnail, or its pixels."""

from __future__ import annotations

import functools
import json
import struct
from typing import Any

import numpy as np

from components.curate.duplicates.pca_hash import SIDE, thumbnail
from components.images.decode import RGB, DecodeLimits, decode_probed, prepare
from components.images.sandbox import Sandbox, SandboxParams, kept

_HEAD = struct.Struct(">II8s")  # before pixels: width, height, format
_FACTS, _PIXELS = b"f", b"p"  # what is asked for: the first byte


class SandboxedDecoder:
    """Decodes within ``limits`` in this process's sandbox under ``params``."""

    def __init__(self, limits: DecodeLimits, params: SandboxParams) -> None:
        self._sandbox: Sandbox = kept(functools.partial(_look, limits), params, _prepare)

    def facts(self, data: bytes) -> dict[str, Any]:
        """``format``, ``width``, ``height`` and ``thumbnail`` (bytes, for the PCA hash).

        Raises:
            DecodeError: not an image within the limits.
        """
        facts: dict[str, Any] = json.loads(self._sandbox(_FACTS + data))
        return facts | {"thumbnail": bytes.fromhex(facts["thumbnail"])}

    def pixels(self, data: bytes) -> tuple[RGB, str]:
        """The image as uint8 RGB ``[H, W, 3]``, and its format.

        Raises:
            DecodeError: not an image within the limits.
        """
        answer = self._sandbox(_PIXELS + data)
        width, height, kind = _HEAD.unpack_from(answer)
        return np.frombuffer(answer, np.uint8, offset=_HEAD.size).reshape(height, width, 3), kind.rstrip(b"\0").decode()


def _prepare() -> None:
    """Load everything that looking takes."""
    prepare()
    thumbnail(np.zeros((SIDE, SIDE, 3), np.uint8))


def _look(limits: DecodeLimits, request: bytes) -> bytes:
    """The answer to one request: this runs where hostile data may end the process."""
    rgb, facts = decode_probed(request[1:], limits)
    if request[:1] == _PIXELS:
        return b"".join([_HEAD.pack(facts.width, facts.height, facts.format.encode()), rgb.data])
    found = {"format": facts.format, "width": facts.width, "height": facts.height}
    return json.dumps(found | {"thumbnail": thumbnail(rgb).tobytes().hex()}).encode()
