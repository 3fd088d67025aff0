"""robots.txt as RFC 9309 has it: groups by product token, the longest matching rule, allow before disallow in a tie.

Python's own ``urllib.robotparser`` takes the first matching rule and knows no ``*`` or ``$`` inside paths.
"""

from __future__ import annotations

import codecs
import functools
import re
from dataclasses import dataclass

from components.web.formats.urls import target
from components.web.formats.warc import Response
from components.web.rules.robots_match import RobotsRule, RuleMatcher, canonical

MAX_BYTES = 512_000  # RFC 9309 section 2.5: parse at least 500 KiB; what follows is ignored

_MAX_DELAY = 1e9  # seconds; a number of a thousand digits is not one
_MAX_SHOWN = 200  # characters of a rule that are quoted
_LINE_END = re.compile(rb"\r\n|\r|\n")  # RFC 9309 section 2.2, and no other: lines may contain U+2028 and form feeds
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True)
class Rules:
    """The rules of one group: (allow, pattern) pairs as written, and a crawl delay in seconds where one is asked for.

    Patterns are text in which a byte beyond ASCII is percent-encoded.
    """

    rules: tuple[RobotsRule, ...] = ()
    crawl_delay: float = 0.0

    def allows(self, url: str) -> bool:
        """Whether ``url`` (absolute and normal, or a path) may be fetched."""
        return self.verdict(url)[0]

    def verdict(self, url: str) -> tuple[bool, str]:
        """Whether ``url`` may be fetched, and the rule that says so, in words."""
        path = canonical(target(url).partition("#")[0] or "/")
        if path == "/robots.txt":
            return True, "always allowed"
        found = self._index.best(path)
        if found is None:
            return True, "no rule for it, so allowed"
        allow, pattern = found
        return allow, f"{'allow' if allow else 'disallow'}: {pattern[:_MAX_SHOWN]}"

    def ready(self) -> Rules:
        """Itself, the index built already: of the longest robots.txt, that takes a tenth of a second."""
        _ = self._index
        return self

    @functools.cached_property
    def _index(self) -> RuleMatcher:
        return RuleMatcher(self.rules)


ALLOW_ALL = Rules()
DISALLOW_ALL = Rules(((False, "/"),))


def rules_for(status: int, body: bytes, token: str) -> Rules:
    """The rules for ``token`` from an HTTP answer (RFC 9309 section 2.3.1): 4xx allows all, 5xx nothing.

    ``status`` 0 stands for a server that could not be reached or an answer that did not arrive whole, which allows
    nothing either.
    """
    if 200 <= status < 300:
        return parse(body, token)
    return ALLOW_ALL if 300 <= status < 500 else DISALLOW_ALL


def heard(answer: Response) -> tuple[int, bytes]:
    """Status and body of an answer for ``/robots.txt``, to be given to :func:`rules_for`.

    The status is 0 when the answer broke off or its coding could not be undone (RFC 9309, 2.3.1.4): what is missing
    may forbid. Rules beyond :data:`MAX_BYTES` are not missed.
    """
    whole = not answer.cut or len(answer.body) >= MAX_BYTES
    return answer.status if whole else 0, answer.body[:MAX_BYTES]


def parse(body: bytes, token: str) -> Rules:
    """The group for the product token ``token`` (compared without case), merged; else the group ``*``; else none."""
    ours: list[RobotsRule] = []
    others: list[RobotsRule] = []
    delays = {"ours": 0.0, "others": 0.0}
    named = False
    agents: set[str] = set()
    in_rules = True
    for line in _lines(body):
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            if in_rules:
                agents, in_rules = set(), False
            agent = re.match(r"[a-zA-Z_-]+|\*", value)
            agents.add(agent.group().lower() if agent else value.lower())
            named = named or token.lower() in agents
        elif name in ("allow", "disallow"):
            in_rules = True
            if not value.startswith(("/", "*")):
                continue  # an empty path matches nothing; another is no path
            rule = (name == "allow", value)
            if token.lower() in agents:
                ours.append(rule)
            if "*" in agents:
                others.append(rule)
        elif name == "crawl-delay" and re.fullmatch(r"\d+(\.\d*)?", value):
            # Not in the RFC: politeness. It does not end the list of user-agent lines either.
            if token.lower() in agents:
                delays["ours"] = min(float(value), _MAX_DELAY)
            if "*" in agents:
                delays["others"] = min(float(value), _MAX_DELAY)
    return Rules(tuple(ours), delays["ours"]) if named else Rules(tuple(others), delays["others"])


def _lines(body: bytes) -> list[str]:
    """The lines of ``body``, each byte beyond ASCII percent-encoded: raw UTF-8 and raw Latin-1 match their escapes."""
    if len(body) >= MAX_BYTES:  # a rule cut in two is another rule
        body = body[: max(body.rfind(b"\n", 0, MAX_BYTES), body.rfind(b"\r", 0, MAX_BYTES)) + 1]
    if (encoding := _UTF16.get(body[:2])) is not None:
        body = body[2:].decode(encoding, "replace").encode()
    lines = _LINE_END.split(body.removeprefix(codecs.BOM_UTF8))
    return [
        line.decode() if line.isascii() else "".join(chr(b) if b < 128 else f"%{b:02X}" for b in line)
        for line in lines
    ]  # fmt: skip
