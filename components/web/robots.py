"""robots.txt as RFC 9309 has it: groups by product token, the longest matching rule, allow before disallow in a tie.

Python's own ``urllib.robotparser`` takes the first matching rule and knows no ``*`` or ``$`` inside paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_BYTES = 512_000  # RFC 9309 section 2.5: parse at least 500 KiB; what follows is ignored

_MAX_DELAY = 1e9  # seconds; a number of a thousand digits is not one
_MAX_SHOWN = 200  # characters of a rule that are quoted
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class Rules:
    """The rules of one group: (allow, pattern) pairs, and a crawl delay in seconds where one is asked for."""

    rules: tuple[tuple[bool, str], ...] = ()
    crawl_delay: float = 0.0

    def allows(self, url: str) -> bool:
        """Whether ``url`` (absolute, or a path) may be fetched."""
        return self.verdict(url)[0]

    def verdict(self, url: str) -> tuple[bool, str]:
        """Whether ``url`` may be fetched, and the rule that says so, in words."""
        parts = urlsplit(url)
        path = _normal((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        if path == "/robots.txt":
            return True, "always allowed"
        best_length, best_allow, best = -1, True, ""
        for allow, pattern in self.rules:
            if (len(pattern), allow) > (best_length, best_allow) and _matches(pattern, path):
                best_length, best_allow, best = len(pattern), allow, pattern
        if best_length < 0:
            return True, "no rule for it, so allowed"
        return best_allow, f"{'allow' if best_allow else 'disallow'}: {best[:_MAX_SHOWN]}"


ALLOW_ALL = Rules()
DISALLOW_ALL = Rules(((False, "/"),))


def rules_for(status: int, body: bytes, token: str) -> Rules:
    """The rules for ``token`` from an HTTP answer (RFC 9309 section 2.3.1): 4xx allows all, 5xx nothing.

    ``status`` 0 stands for a server that could not be reached, which allows nothing either.
    """
    if 200 <= status < 300:
        return parse(body, token)
    return ALLOW_ALL if 300 <= status < 500 else DISALLOW_ALL


def parse(body: bytes, token: str) -> Rules:
    """The group for the product token ``token`` (compared without case), merged; else the group ``*``; else none."""
    ours: list[tuple[bool, str]] = []
    others: list[tuple[bool, str]] = []
    delays = {"ours": 0.0, "others": 0.0}
    named = False
    agents: set[str] = set()
    in_rules = True
    for line in body[:MAX_BYTES].decode("utf-8", "replace").lstrip("\ufeff").splitlines():
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
            rule = (name == "allow", _normal(value))
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


def _normal(path: str) -> str:
    """Percent-encoding made comparable (RFC 9309 section 2.2.2): reserved as written, the rest one spelling."""

    def one(match: re.Match[str]) -> str:
        byte = int(match.group()[1:], 16)
        return chr(byte) if byte in _UNRESERVED else match.group().upper()

    path = _ESCAPE.sub(one, path)
    return "".join(c if ord(c) < 128 else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace")) for c in path)


def _matches(pattern: str, path: str) -> bool:
    """Whether ``pattern`` (``*`` any run, final ``$`` the end) matches ``path`` from its start.

    Greedy left-most search of the pieces between stars: linear, where a regular expression could be made to explode.
    """
    anchored = pattern.endswith("$")
    pieces = (pattern[:-1] if anchored else pattern).split("*")
    if not path.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    if len(pieces) == 1:
        return not anchored or at == len(path)
    for piece in pieces[1:-1]:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    last = pieces[-1]
    if anchored:
        return len(path) - len(last) >= at and path.endswith(last)
    return path.find(last, at) >= 0
