"""Which rule of a robots.txt decides on a path, in a time that no robots.txt can stretch.

Rules and paths are compared in one spelling (:func:`canonical`). Rules without a star are found by their text, those
with stars by four characters of their longest piece that the path must contain; so a path meets few of the rules, and
never more than :data:`MAX_WORK` allows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

RobotsRule = tuple[bool, str]  # allow, pattern as written

MAX_WORK = 1_500_000  # characters searched for one path, plus _EACH a piece; honest files need some thousands
_EACH = 256
_TOO_COSTLY: RobotsRule = (False, "(too many rules with stars may fit it, so it is left alone)")
_GRAMS = (4, 2, 1)  # characters by which rules with stars are found, the most that their piece has
_FEW = 64  # grams that are searched for one by one; of more, each place of the path is looked up
_ATOM = re.compile(r"%[0-9a-fA-F]{2}|.", re.S)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]*")
_RESERVED = re.compile(r"%(?:2[1346-9A-CF]|3[ABDF]|40|5[BD])")  # RFC 3986, section 2.2; percent-encoded


def canonical(path: str, pattern: bool = False) -> str:
    """``path`` with one spelling for each octet (RFC 9309 section 2.2.2).

    Unreserved characters stand for themselves, all others are percent-encoded, so ``*`` and ``%2A`` are one, and what
    browsers encode (space, quotes, bars) equals what robots.txt leaves as it is. An encoded slash or question mark in
    the path is not a slash; in the query, where none divides anything, both spellings are one. In a ``pattern``, stars
    and a final dollar keep their meaning.
    """
    if _PLAIN.fullmatch(path):
        return path
    anchored = pattern and path.endswith("$")
    found, query = [], False
    for atom in _ATOM.findall(path[:-1] if anchored else path):
        if pattern and atom == "*":
            found.append(atom)
            continue
        if atom in "/?":
            query = query or atom == "?"
            found.append(atom)
            continue
        octets = bytes([int(atom[1:], 16)]) if len(atom) == 3 else atom.encode("utf-8", "replace")
        for octet in octets:
            char = chr(octet)
            plain = char in _UNRESERVED or (query and char in "/?")
            found.append(char if plain else f"%{octet:02X}")
    return "".join(found) + ("$" if anchored else "")


def matches(pattern: str, path: str) -> bool:
    """Whether ``pattern`` (``*`` any run, final ``$`` the end) matches ``path`` from its start; both canonical.

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


def _octets(pattern: str) -> int:
    """How specific ``pattern`` is: its octets, those beyond ASCII and of gaps counted as escapes, others as one."""
    return len(_RESERVED.sub("x", pattern) if "%" in pattern else pattern)


class RuleMatcher:
    """The rules of one group, ready to be asked."""

    def __init__(self, rules: Iterable[RobotsRule]) -> None:
        self._prefixes: dict[str, RobotsRule] = {}
        self._whole: dict[str, RobotsRule] = {}
        self._starred: dict[str, list[tuple[int, bool, str, RobotsRule]]] = defaultdict(list)
        for rule in dict.fromkeys(rules):  # one written a thousand times costs once
            pattern = re.sub(r"\*+", "*", canonical(rule[1], pattern=True))
            if "*" not in pattern:
                kept = self._whole if pattern.endswith("$") else self._prefixes
                text = pattern.removesuffix("$")
                if text not in kept or rule[0]:
                    kept[text] = rule
                continue
            longest = max(pattern.removesuffix("$").split("*"), key=len)
            size = next((size for size in _GRAMS if len(longest) >= size), 0)
            self._starred[longest[:size]].append((_octets(pattern), rule[0], pattern, rule))
        for entries in self._starred.values():
            entries.sort(key=lambda entry: entry[:2], reverse=True)
        self._lengths = sorted({len(text) for text in self._prefixes}, reverse=True)
        self._sizes = sorted({len(gram) for gram in self._starred})

    def best(self, path: str) -> RobotsRule | None:
        """The most specific rule that matches the canonical ``path``; None when none does."""
        best: tuple[int, bool] = (-1, True)
        found: RobotsRule | None = None
        if (whole := self._whole.get(path)) is not None:
            best, found = (_octets(path) + 1, whole[0]), whole
        for length in self._lengths:
            if length <= len(path) and (rule := self._prefixes.get(path[:length])) is not None:
                key = (_octets(path[:length]), rule[0])
                if key > best:
                    best, found = key, rule
                break  # a shorter one is less specific
        work = 0
        for gram in self._grams(path):
            for octets, allow, pattern, rule in self._starred[gram]:
                if (octets, allow) <= best:
                    break  # the rest is less specific still
                work += (pattern.count("*") + 1) * (_EACH + len(path))
                if work > MAX_WORK:
                    return _TOO_COSTLY
                if matches(pattern, path):
                    best, found = (octets, allow), rule
                    break
        return found

    def _grams(self, path: str) -> list[str]:
        """The grams of rules with stars that ``path`` contains."""
        if len(self._starred) <= _FEW:
            return [gram for gram in self._starred if gram in path]
        found = {path[at : at + size] for size in self._sizes for at in range(len(path) - size + 1)}
        return [gram for gram in found if gram in self._starred]
