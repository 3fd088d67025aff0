"""HTML of the report: small functions that escape what they are given, and one style for light, dark and phones."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

WIDEST = 1400  # pixels of an embedded picture's longer side
STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6475; --paper: #fff; --panel: #f4f6f9; --line: #d9dee6;
  --accent: #1f6feb; --good: #1a7f37; --bad: #c0392b; --s0: #1f6feb; --s1: #d1570b; --s2: #1a7f37; --s3: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --paper: #14171d; --panel: #1d222b;
  --line: #353c49; --accent: #6cb0ff; --good: #56d364; --bad: #ff7b72; --s0: #6cb0ff; --s1: #ff9d5c; --s2: #56d364;
  --s3: #c297ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 68rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: .5rem 0; } h2 { margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.4rem 0 .4rem; } a { color: var(--accent); } .soft { color: var(--soft); }
nav { margin: 1rem 0; } nav a { margin-right: 1rem; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
.card { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: break-word; }
td.number, th.number { text-align: right; white-space: nowrap; }
.bar { background: var(--accent); height: .6rem; border-radius: .3rem; min-width: 2px; margin-top: .5rem; }
@media (max-width: 40rem) { td:has(.bar), th.bars { display: none; } }
figure { margin: .8rem 0; } figure img, svg { max-width: 100%; height: auto; border-radius: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
"""


def text(value: object) -> str:
    """``value`` as it is shown: escaped, numbers with separators, at most four figures after the point."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], plain: Iterable[int] = ()) -> str:
    """A table; cells are escaped, except those of the columns ``plain``, which are HTML already. Bars have no head."""
    html_columns = set(plain)

    def cell(tag: str, column: int, value: object) -> str:
        number = " class=number" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        return f"<{tag}{number}>{value if column in html_columns else text(value)}</{tag}>"

    top = "".join(f"<th{'' if word else ' class=bars'}>{html.escape(word)}</th>" for word in head)
    body = "".join("<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def bar(share: float) -> str:
    """A bar that fills ``share`` (0 ... 1) of its cell."""
    return (
        f'<div style="min-width:6rem"><div class=bar style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></div></div>'
    )


def cards(values: Mapping[str, object]) -> str:
    """Figures that say at once how the run went."""
    return (
        "<div class=cards>"
        + "".join(f"<div class=card><b>{text(value)}</b>{html.escape(name)}</div>" for name, value in values.items())
        + "</div>"
    )


def picture(path: Path, caption: str) -> str:
    """The picture at ``path`` inside the page, as a JPEG of at most :data:`WIDEST`; nothing if it is not there."""
    if not path.is_file():
        return ""
    from PIL import Image

    from components.images.decode import DecodeLimits, decode

    image = Image.fromarray(decode(path.read_bytes(), DecodeLimits()))
    image.thumbnail((WIDEST, 4 * WIDEST))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    data = base64.b64encode(out.getvalue()).decode()
    words = html.escape(caption)
    size = f'width="{image.width}" height="{image.height}"'
    shown = f'<img src="data:image/jpeg;base64,{data}" alt="{words}" {size}>'
    return f"<figure>{shown}<figcaption>{words}</figcaption></figure>"


def link(address: str, words: str) -> str:
    """A link."""
    return f'<a href="{html.escape(address, quote=True)}">{html.escape(words)}</a>'


def page(title: str, intro: str, sections: Mapping[str, str]) -> str:
    """The whole file: ``sections`` are HTML by heading."""
    places = {name: f"part-{number}" for number, name in enumerate(sections)}
    menu = "".join(f'<a href="#{place}">{html.escape(name)}</a>' for name, place in places.items())
    body = "".join(f"<h2 id={places[name]}>{html.escape(name)}</h2>{content}" for name, content in sections.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{intro}<nav>{menu}</nav>{body}</body></html>\n"
    )
