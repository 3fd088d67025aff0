"""Restricted domains by registrable domain, and the order of reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import VitrailError
from components.web.formats.urls import origin, resolve
from components.web.rules.policy import Policy, PolicyParams, read_domains, registrable_domain
from components.web.rules.robots import DISALLOW_ALL


@pytest.mark.parametrize(
    ("host", "expected"),
    [("a.b.example.co.uk", "example.co.uk"), ("EXAMPLE.org.", "example.org"), ("cells.demo.test", "demo.test"),
     ("localhost", "localhost"), ("192.0.2.1", "192.0.2.1"), ("[2001:db8::1]", "2001:db8::1"), ("co.uk", "co.uk")],
)  # fmt: skip
def test_registrable_domain(host: str, expected: str) -> None:
    assert registrable_domain(host) == expected


def policy(tmp_path: Path, **changes: object) -> Policy:
    listed = tmp_path / "list.txt"
    listed.write_text("# comment\nbad.test  # why\n\nevil.co.uk\n")
    return Policy(PolicyParams(token="vitrail", restricted=(listed,), **changes))


def test_reasons_in_their_order(tmp_path: Path) -> None:
    judge = policy(tmp_path)
    closed = {"http://ok.test": DISALLOW_ALL, "http://img.bad.test": DISALLOW_ALL}
    assert judge.decide("http://img.bad.test/x", "http://p.test/", True, closed) == "restricted-domain"
    assert judge.decide("http://free.test/x", "http://www.evil.co.uk/p", False, {}) == "restricted-domain"
    assert judge.decide("http://notbad.test/x", "http://p.test/", False, {}) == ""
    assert judge.decide("http://OK.test/x", "http://p.test/", True, closed) == "robots-disallowed"
    assert judge.decide("http://ok.test:81/x", "http://p.test/", True, closed) == "opt-out"
    lax = policy(tmp_path, respect_robots=False, respect_opt_out=False)
    assert lax.decide("http://ok.test/x", "http://p.test/", True, closed) == ""
    assert lax.decide("http://bad.test/x", "http://p.test/", True, closed) == "restricted-domain"


def test_origin() -> None:
    assert origin("HTTP://Host.test:8080/a?b") == "http://host.test:8080"


@pytest.mark.parametrize("line", ["http://a.test/", "a.b.example.org", "two words.test"])
def test_a_line_that_is_no_domain_names_file_and_line(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"ok.test\n{line}\n")
    with pytest.raises(VitrailError, match=r"list\.txt, line 2"):
        read_domains(listed)


def test_a_missing_list_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match=r"nothere\.txt: no such list"):
        read_domains(tmp_path / "nothere.txt")


def test_a_list_with_a_byte_order_mark_restricts_its_first_domain(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbfbad.test\r\nstra\xc3\x9fe.de\n")
    assert read_domains(listed) == ["bad.test", "xn--strae-oqa.de"]
    judge = Policy(PolicyParams(token="vitrail", restricted=(listed,)))
    assert judge.restricts("http://www.bad.test/")
    assert judge.restricts(resolve("", "http://straße.de/"))
    assert not judge.restricts("http://strasse.de/")
    kept = tmp_path / "forgotten.txt"
    kept.write_bytes(b"\xef\xbb\xbfdomain gone.test\n")
    assert Policy(PolicyParams(token="vitrail", forgotten=(kept,))).restricts("http://gone.test/")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_list_in_another_encoding_is_one_clear_line(tmp_path: Path, encoding: str) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes("bücher.de\n".encode(encoding))
    with pytest.raises(VitrailError, match="UTF-8"):
        read_domains(listed)
