"""Which image links may be used at all: restricted domains, robots.txt, and what pages and servers opted out of."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from components.errors import VitrailError
from components.input_paths import InputFile
from components.params import Strict
from components.text import read_lines
from components.web.formats.urls import normal_host, origin
from components.web.rules.block_list import Forgotten
from components.web.rules.keys import key_of
from components.web.rules.robots import Rules


class PolicyParams(Strict):
    """Who we say we are, and what we keep away from."""

    token: str = Field(pattern=r"^[a-zA-Z_-]+$")  # product token, as RFC 9309 matches it
    restricted: tuple[InputFile, ...] = ()  # files of registrable domains, one a line, # comments
    forgotten: tuple[InputFile, ...] = ()  # files of what was taken down (components/web/rules/block_list.py)
    respect_robots: bool = True
    respect_opt_out: bool = True


class Policy:
    """Decides on addresses; see :data:`components.curate.results.reasons.LINK_REASONS`."""

    def __init__(self, params: PolicyParams) -> None:
        self.params = params
        self.restricted = {domain: str(path) for path in params.restricted for domain in read_domains(path)}
        self.forgotten = Forgotten.read(params.forgotten)

    def restricts(self, url: str) -> bool:
        """Whether ``url`` is not even asked for: its registrable domain is on a list, or it was taken down."""
        return registrable_domain(urlsplit(url).hostname or "") in self.restricted or self.forgotten.holds(url)

    def decide(self, url: str, page: str, opt_out: bool, robots: Mapping[str, Rules]) -> str:
        """The reason to drop the image at ``url`` found on ``page``, or "".

        ``robots`` maps origins (``scheme://host[:port]``) to their rules; an origin whose robots.txt the crawl does
        not hold is taken to allow, as RFC 9309 takes a site without one.
        """
        return self.judge(url, page, opt_out, robots)[0]

    def judge(
        self, url: str, page: str, opt_out: bool, robots: Mapping[str, Rules], said: str = ""
    ) -> tuple[str, list[str]]:
        """:meth:`decide`'s reason, and what each source said ("source: finding"), up to the one that decided.

        ``said``: the words with which ``page`` itself opts out; another page may, too.
        """
        heard = []
        for what, address in (("image", url), ("page", page)):
            if domain := self.forgotten.domain_of(address):
                return "forgotten", [f"forgotten: {what} in {domain}"]
            name = registrable_domain(urlsplit(address).hostname or "") if address else ""
            if name in self.restricted:
                return "restricted-domain", [f"domain list {self.restricted[name]}: {what} in {name}"]
        if self.forgotten.keys and key_of(url) in self.forgotten.keys:
            return "forgotten", ["forgotten: by its key"]
        if self.restricted:
            heard.append("domain lists: not on them")
        if self.params.respect_robots:
            site = origin(url)
            rules = robots.get(site)
            allows, why = rules.verdict(url) if rules is not None else (True, "not in the crawl, so allowed")
            heard.append(f"{site}/robots.txt: {why}")
            if not allows:
                return "robots-disallowed", heard
        if opt_out:
            heard.append(f"page: {said}" if said else "page: another one that names it opts out")
            if self.params.respect_opt_out:
                return "opt-out", heard
        return "", heard


@functools.lru_cache(maxsize=65536)
def registrable_domain(host: str) -> str:
    """The domain one registers (``b.co.uk`` of ``a.b.co.uk``) by the public suffix list shipped with tldextract.

    An unknown top-level domain counts as a suffix of one label (the list's implicit rule ``*``); an address is itself.
    """
    host = host.rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        found = _extract(host)
        return found or ".".join(host.split(".")[-2:])


def _extract(host: str) -> str:
    extracted = _extractor()(host)
    return f"{extracted.domain}.{extracted.suffix}" if extracted.domain and extracted.suffix else ""


@functools.lru_cache(maxsize=1)
def _extractor():  # type: ignore[no-untyped-def]  # tldextract is imported here, for it reads its list from disk
    import tldextract

    # No address, no cache folder: the list inside the package, so the same everywhere and without a network.
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def read_domains(path: Path) -> list[str]:
    """Registrable domains listed in ``path``, as addresses spell them (``xn--strae-oqa.de`` for ``straße.de``).

    Raises:
        VitrailError: no such file, one that is not UTF-8, or a line that is no domain.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise VitrailError(
            f"{path}: no such list of restricted domains; name another under policy.restricted"
        ) from None
    domains = []
    for number, line in enumerate(lines, 1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        domain = normal_host(written)
        if not domain or any(c in domain for c in "/: ") or registrable_domain(domain) != domain:
            raise VitrailError(f"{path}, line {number}: {written!r} is not a registrable domain such as example.org")
        domains.append(domain)
    return domains
