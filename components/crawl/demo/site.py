"""The demo's web site: real photographs in pages written the many ways that pages are, with known faults planted.

Photographs: solar cells of the ``elpv_dataset`` package (its own PNG bytes, under names that keep the row number) and
``skimage.data``. What was planted, and what curation should make of it, is returned as truth: address -> kind,
original, expected reason ("" where it should be kept, or where a later stage is to find it).
"""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from components.crawl.demo.markup import base_tag, based, figure
from components.crawl.demo.server import Resource
from components.errors import VitrailError
from components.images.decode import RGB, DecodeLimits, decode
from components.params import JpegQuality, PositiveShare, Seed, Strict

CELLS, PHOTOS, MIRROR = "cells.demo.test", "photos.demo.test", "mirror.demo.test"
RESTRICTED = "ads.restricted.test"
HOSTS = frozenset((CELLS, PHOTOS, MIRROR))
SEED = f"http://{CELLS}/"
DATE = "2026-01-01T00:00:00Z"  # of every record: the same site gives the same WARC
_CELL_COUNT = 2624
_FACES = ("astronaut.png", "camera.png")
_PHOTOS = (
    "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "ihc.png", "motorcycle_left.png",
    "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png", "clock_motion.png", "page.png",
)  # fmt: skip


class DemoSite(Strict):
    """``params/site/demo.yaml``."""

    kind: Literal["demo"]
    cells: int = Field(_CELL_COUNT, ge=1, le=_CELL_COUNT)  # evenly spread over the package's rows
    per_page: int = Field(32, ge=1, le=1000)
    exact: int = Field(60, ge=0, le=1_000_000)  # planted copies of each kind
    reencoded: int = Field(60, ge=0, le=1_000_000)
    resized: int = Field(60, ge=0, le=1_000_000)
    cropped: int = Field(60, ge=0, le=1_000_000)
    jpeg_quality: tuple[JpegQuality, JpegQuality] = (50, 90)  # drawn between, for the copies
    resize: tuple[PositiveShare, PositiveShare] = (0.5, 0.9)  # side of a resized copy, relative
    crop: tuple[PositiveShare, PositiveShare] = (0.8, 0.95)  # side that a cropped copy keeps, relative
    seed: Seed = 0


@dataclass
class Planted:
    """The site, and the truth about what was planted in it."""

    site: dict[tuple[str, str], Resource] = field(default_factory=dict)
    truth: dict[str, dict[str, str]] = field(default_factory=dict)

    def serve(self, host: str, path: str, resource: Resource) -> str:
        """Put ``resource`` at ``host``/``path``; its address."""
        self.site[host, path] = resource
        return f"http://{host}{path}"

    def plant(self, url: str, kind: str, expected: str = "", original: str = "") -> str:
        """Note what ``url`` is; returns it."""
        self.truth[url] = {"kind": kind, "original": original, "expected": expected}
        return url


def build(params: DemoSite) -> Planted:
    """The whole site of ``params``; near-copies are made here, originals are read when asked for."""
    planted = Planted()
    cells = [_cell(planted, row) for row in np.linspace(0, _CELL_COUNT - 1, params.cells).round().astype(int)]
    pages = [cells[i : i + params.per_page] for i in range(0, len(cells), params.per_page)]
    names = []
    for number, page in enumerate(pages):
        body = "\n".join(figure(url, CELLS, number + i) for i, url in enumerate(page))
        names.append(
            _page(planted, CELLS, f"/gallery/{number:03d}.html", based(body, number), head=base_tag(CELLS, number))
        )
    copies = _copies(planted, params, cells)
    for number in range(0, len(copies), params.per_page):
        body = "\n".join(f'<img src="{url}" alt="copy">' for url in copies[number : number + params.per_page])
        names.append(_page(planted, MIRROR, f"/copies-{number // params.per_page:02d}.html", body))
    names.append(_photo_page(planted))
    names.append(_hostile_page(planted))
    names.append(_opted_out_page(planted))
    names.append(_forbidden_page(planted))
    names.append(f"http://{RESTRICTED}/index.html")
    for host in (CELLS, MIRROR, PHOTOS):
        rules = "User-agent: *\nDisallow: /private/\nAllow: /private/*.html$\nDisallow: /forbidden\n"
        planted.serve(host, "/robots.txt", Resource(rules.encode(), "text/plain"))
    _page(planted, CELLS, "/", "<ul>" + "".join(f'<li><a href="{n}">{n}</a></li>' for n in names) + "</ul>")
    return planted


def _cell(planted: Planted, row: int) -> str:
    name = f"cell{row + 1:04d}.png"
    return planted.serve(
        CELLS, f"/cells/{name}", Resource(_package("elpv_dataset") / "data/images" / name, "image/png")
    )


def _copies(planted: Planted, params: DemoSite, cells: list[str]) -> list[str]:
    rng = np.random.default_rng(params.seed)
    wanted = {
        "exact": params.exact,
        "reencoded": params.reencoded,
        "resized": params.resized,
        "cropped": params.cropped,
    }
    if sum(wanted.values()) > len(cells):
        raise VitrailError(
            f"params/site: {sum(wanted.values())} planted copies asked of {len(cells)} cells; lower exact, reencoded,"
            " resized or cropped, or raise cells"
        )
    chosen = iter(rng.permutation(len(cells)))
    urls = []
    for kind, count in wanted.items():
        for number in range(count):
            original = cells[next(chosen)]
            path = planted.site[CELLS, original.removeprefix(f"http://{CELLS}")].content
            assert isinstance(path, Path)
            data = path.read_bytes()
            if kind == "exact":
                url = planted.serve(MIRROR, f"/exact/{number:04d}.png", Resource(data, "image/png"))
            else:
                jpeg = _jpeg(
                    _altered(decode(data, DecodeLimits()), kind, params, rng), int(rng.integers(*params.jpeg_quality))
                )
                url = planted.serve(MIRROR, f"/{kind}/{number:04d}.jpg", Resource(jpeg, "image/jpeg"))
            expected = "exact-duplicate" if kind == "exact" else ""
            urls.append(planted.plant(url, f"{kind}-copy", expected, original))
    return urls


def _altered(rgb: RGB, kind: str, params: DemoSite, rng: np.random.Generator) -> RGB:
    from PIL import Image

    side = rgb.shape[0]
    if kind == "resized":
        new = round(side * rng.uniform(*params.resize))
        return np.asarray(Image.fromarray(rgb).resize((new, new), Image.Resampling.BICUBIC))
    if kind == "cropped":
        keep = round(side * rng.uniform(*params.crop))
        top, left = rng.integers(0, side - keep + 1, 2)
        return rgb[top : top + keep, left : left + keep]
    return rgb


def _photo_page(planted: Planted) -> str:
    folder = _package("skimage") / "data"
    lines = []
    for name in _FACES + _PHOTOS:
        kind = "image/jpeg" if name.endswith("jpg") else "image/png"
        url = planted.serve(PHOTOS, f"/img/{name}", Resource(folder / name, kind))
        planted.plant(url, "face" if name in _FACES else "photo")
        lines.append(f'<img src="img/{name}" alt="{name.partition(".")[0]}">')
    return _page(planted, PHOTOS, "/index.html", "\n".join(lines))


def _hostile_page(planted: Planted) -> str:
    coffee = (_package("skimage") / "data/coffee.png").read_bytes()
    jpeg = _jpeg(decode(coffee, DecodeLimits()), 90)
    pixel = _gif()
    cases: list[tuple[str, bytes, str, str, str]] = [
        ("/bad/cut.jpg", jpeg[: len(jpeg) // 2], "image/jpeg", "truncated", "truncated"),
        ("/bad/bomb.png", _bomb(), "image/png", "bomb", "too-many-pixels"),
        ("/bad/text.jpg", b"This is a text file, whatever its name says.\n" * 8, "image/jpeg", "text", "not-an-image"),
        ("/bad/dot.gif", pixel, "image/gif", "tracker", "too-small"),
        ("/bad/empty.png", b"", "image/png", "empty", "not-an-image"),
    ]
    lines = []
    for path, data, content_type, kind, expected in cases:
        planted.plant(planted.serve(PHOTOS, path, Resource(data, content_type)), kind, expected)
        lines.append(f'<img src="{path}">')
    beacon = planted.plant(
        planted.serve(PHOTOS, "/beacon?id=1", Resource(pixel, "image/gif")), "tracker", "declared-tracker"
    )
    gone = planted.plant(f"http://{PHOTOS}/bad/gone.jpg", "gone", "http-error")
    ad = planted.plant(f"http://{RESTRICTED}/banner.jpg", "restricted", "restricted-domain")
    private = planted.plant(
        planted.serve(PHOTOS, "/private/a.jpg", Resource(jpeg, "image/jpeg")), "robots", "robots-disallowed"
    )
    drawing = planted.plant(
        planted.serve(PHOTOS, "/logo.svg", Resource(b"<svg/>", "image/svg+xml")), "vector", "vector"
    )
    refused = Resource(
        _jpeg(decode(coffee, DecodeLimits())[::-1], 80), "image/jpeg", headers=(("X-Robots-Tag", "noai"),)
    )
    header = planted.plant(planted.serve(PHOTOS, "/noai.jpg", refused), "opt-out-header", "opt-out")
    lines += [
        f'<img src="{beacon}" width="1" height="1">',
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
        *(f'<img src="{url}">' for url in (gone, ad, private, drawing, header)),
    ]
    return _page(planted, PHOTOS, "/hostile.html", "\n".join(lines))


def _opted_out_page(planted: Planted) -> str:
    photo = decode((_package("skimage") / "data/chelsea.png").read_bytes(), DecodeLimits())
    url = planted.serve(PHOTOS, "/img/mine.jpg", Resource(_jpeg(photo[:, ::-1], 90), "image/jpeg"))
    planted.plant(url, "opt-out-page", "opt-out")
    return _page(
        planted, PHOTOS, "/mine.html", f'<img src="{url}">', head='<meta name="robots" content="noai, noimageai">'
    )


def _forbidden_page(planted: Planted) -> str:
    # Nothing may ask for this page: its picture must not even be known of.
    url = planted.serve(PHOTOS, "/img/secret.png", Resource(_package("skimage") / "data/horse.png", "image/png"))
    planted.plant(url, "behind-forbidden-page", "never-seen")
    page = _page(planted, PHOTOS, "/forbidden/index.html", f'<img src="{url}">')
    planted.plant(page, "forbidden-page", "never-fetched")
    return page


def _page(planted: Planted, host: str, path: str, body: str, head: str = "") -> str:
    html = (
        f'<!doctype html><html><head><meta charset="utf-8">{head}<title>{path}</title></head><body>{body}</body></html>'
    )
    return planted.serve(host, path, Resource(html.encode(), "text/html; charset=utf-8"))


def _jpeg(rgb: RGB, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of a few kilobytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def _gif() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "GIF")
    return buffer.getvalue()


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec: Any = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise VitrailError(
            f"the demo's photographs are in the package {name!r}, which is not installed: run make install"
        )
    return Path(spec.origin).parent
