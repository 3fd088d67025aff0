"""How the demo site's pages name their images: the ways that pages of the web do."""

from __future__ import annotations


def figure(url: str, host: str, number: int) -> str:
    """One cell's markup, in one of eight ways; each names exactly one image to take."""
    path = url.removeprefix(f"http://{host}/")  # relative to <base href="/"> or made so by based
    name = path.rpartition("/")[2].partition(".")[0]
    ways = (
        f'<img src="{path}" alt="{name}">',
        f'<img src="//{host}/{path}" alt="{name}">',
        f'<img src="thumbs/{name}.jpg" srcset="thumbs/{name}.jpg 150w, {path} 300w" alt="{name}">',
        f'<img src="{path}" srcset="thumbs/{name},s.jpg 0.5x" alt="{name}">',
        f'<picture><source type="image/avif" srcset="avif/{name}.avif 900w"><source srcset="{path} 300w,'
        f' thumbs/{name}.jpg 150w"><img src="thumbs/{name}.jpg" alt="{name}"></picture>',
        f'<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="{path}" alt="{name}">',
        f'<img src="img/spacer.gif" data-srcset="{path} 2x, thumbs/{name}.jpg 1x" alt="{name}">',
        f'<img class="lazy" alt="{name}"><noscript><img src="{path}" alt="{name}"></noscript>',
    )
    return f"<figure>{ways[number % len(ways)]}</figure>"


def base_tag(host: str, number: int) -> str:
    """The <base> of the gallery page ``number``: none, by path, or by address; all mean the site's root."""
    return ("", '<base href="/">', f'<base href="http://{host}/gallery/../">')[number % 3]


def based(body: str, number: int) -> str:
    """Without a <base>, relative addresses of a page in /gallery/ begin one folder up."""
    if number % 3:
        return body
    for folder in ("cells/", "thumbs/", "img/", "avif/"):
        body = body.replace(f'"{folder}', f'"../{folder}').replace(f", {folder}", f", ../{folder}")
    return body
