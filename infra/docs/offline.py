"""Make the built site work without the internet: Mermaid lies beside the pages, and no page loads from another host.

The theme draws diagrams with Mermaid, which it loads from unpkg.com when a page has one. The build takes the same file
from the npm registry once, checks its digest, and puts it into the site.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import urllib.request
from pathlib import Path

from components.errors import VitrailError
from components.storage import atomic_file

MERMAID = "https://registry.npmjs.org/mermaid/-/mermaid-11.17.2.tgz"  # MIT
INTEGRITY = "V6K3C8EBdEsPFZXSKMJe6ppQOENxuHARr9GvHX4hh47lAbhMRD9qf4oEK7LoaRQxULMa80/qt5gHO73aCleBBg=="  # SHA-512
TIMEOUT = 60  # seconds without a byte
# What the theme's script asks other hosts for, and what it asks for instead. `__md_scope` is the site's own address.
INSTEAD = {
    '"https://unpkg.com/mermaid@11/dist/mermaid.min.js"': 'new URL("assets/mermaid.min.js",__md_scope).href',
    '"https://unpkg.com/resize-observer-polyfill"': '"data:text/javascript,"',  # every browser since 2020 has its own
}
# A script, style sheet, picture or font of another host. A link that a reader clicks is none.
_FOREIGN = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|url\(\s*[\"']?(?:https?:)?//[^)\s]+|@import\s+[\"'](?:https?:)?//[^\"']+"
    r"|https://(?:unpkg\.com|cdn\.jsdelivr\.net|cdnjs\.cloudflare\.com|fonts\.(?:googleapis|gstatic)\.com)[^\"'\s]*",
)


def mermaid(cache: Path) -> bytes:
    """Mermaid's script; from the folder ``cache``, or from the npm registry, with its digest checked.

    Raises:
        VitrailError: the registry cannot be reached, or the file is another one.
    """
    kept = cache / MERMAID.rpartition("/")[2]
    if not kept.is_file():
        try:
            with urllib.request.urlopen(MERMAID, timeout=TIMEOUT) as answer:
                content = answer.read()
        except OSError as fault:
            raise VitrailError(f"{MERMAID}: {fault}; the documents' site needs it once, put it at {kept}") from None
        with atomic_file(kept) as file:
            file.write(content)
    content = kept.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise VitrailError(f"{kept}: not the file that infra/docs/offline.py names; delete it and try again")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("package/dist/mermaid.min.js")
        assert member is not None  # the digest says which file it is
        return member.read()


def make_offline(site: Path, script: bytes) -> None:
    """Put ``script`` into the built ``site``, and have the theme load it from there.

    Raises:
        VitrailError: the theme has changed, or a page still loads something from another host.
    """
    scripts = site / "assets/javascripts"
    bundles = list(scripts.glob("bundle.*.min.js"))
    for bundle in bundles:
        text = bundle.read_text(encoding="utf-8")
        for address, own in INSTEAD.items():
            if address not in text:
                raise VitrailError(f"{bundle}: the theme does not name {address} any more; see infra/docs/offline.py")
            text = text.replace(address, own)
        bundle.write_text(text, encoding="utf-8")
    (site / "assets/mermaid.min.js").write_bytes(script)
    if found := foreign(site):
        raise VitrailError(f"{site}: pages load from other hosts: {'; '.join(found[:5])}")


def foreign(site: Path) -> list[str]:
    """What the files of ``site`` load from other hosts, as "file: what"."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css", ".js") and path.name != "mermaid.min.js":
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(site)}: {match[0][:120]}" for match in _FOREIGN.finditer(text)]
    return found
