"""Data Docs that need no internet: nothing on a page is loaded from another host, and the first page lists every rule.

Great Expectations takes scripts and styles of its pages from content delivery networks. Without them its first page, a
table that a script fills, is empty. Its other pages hold their content as HTML and lose only decoration.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.modal, [data-toggle=modal], .navbar-toggler { display: none; }
.broken { color: #c0392b; font-weight: bold; }
"""
_REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
_REMOTE_URL = re.compile(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)", re.IGNORECASE)


def make_offline(site: Path, summary: Mapping[str, Any]) -> None:
    """Change the pages below ``site`` in place, and write ``site/index.html`` from ``validate``'s ``summary``."""
    for sheet in site.rglob("*.css"):
        sheet.write_text(_REMOTE_URL.sub("none", sheet.read_text(encoding="utf-8")), encoding="utf-8")
    for page in site.rglob("*.html"):
        page.write_text(without_remote(page.read_text(encoding="utf-8")), encoding="utf-8")
    below = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.parent != site)
    (site / "index.html").write_text(first_page(summary, below), encoding="utf-8")


def without_remote(page: str) -> str:
    """``page`` without scripts and without anything that a browser would load from another host; links stay."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    for node in tree.css("script, base, iframe, object, embed"):
        node.decompose()
    for name in ("src", "href", "srcset", "poster", "data"):
        for node in tree.css(f"[{name}]"):
            if node.tag != "a" and _REMOTE.match(node.attributes.get(name) or ""):
                node.decompose()
    text = _REMOTE_URL.sub("none", tree.html or "")
    return text.replace("</head>", f"<style>{_STYLE}</style></head>", 1)


def first_page(summary: Mapping[str, Any], pages: list[str]) -> str:
    """Every rule of the table with its outcome, and links to the other ``pages``."""
    rules = summary["rules"]
    broken = sum(not rule["success"] for rule in rules)
    verdict = f"{broken} of {len(rules)} rules are broken" if broken else f"all {len(rules)} rules hold"
    rows = "".join(
        f"<tr><td{'' if rule['success'] else ' class=broken'}>{'holds' if rule['success'] else 'broken'}</td>"
        f"<td>{_text(rule['rule'])}</td><td>{_text(rule.get('where') or 'every row')}</td>"
        f"<td>{rule['broken']:,} of {rule['of']:,}</td>"
        f"<td>{_text(', '.join(rule['keys']))} {_text(rule.get('problem') or '')}</td></tr>"
        for rule in rules
    )
    links = "".join(f'<li><a href="{_text(page)}">{_text(page.split("/")[0])}</a></li>' for page in pages)
    table = _text(summary["table"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{table}: {verdict}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{table}: {verdict}</h1><p>{summary['rows']:,} rows were checked.</p>"
        "<table><thead><tr><th>outcome</th><th>rule</th><th>of which rows</th><th>broken rows</th><th>the first of "
        f"them</th></tr></thead><tbody>{rows}</tbody></table><h2>Pages of Great Expectations</h2><ul>{links}</ul>"
        "</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
