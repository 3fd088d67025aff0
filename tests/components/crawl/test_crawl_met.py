"""Addresses that a crawl has met are kept on disk, and behave as a dictionary in memory would."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.crawl.met import MetAddresses
from components.errors import VitrailError

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["a", "b", "é", "\ud800", ""]), st.integers(0, 1)),
        st.tuples(st.just("set"), st.sampled_from(["a", "b", "é", "\ud800", ""]), st.integers(0, 1)),
        st.tuples(st.just("cut"), st.just(""), st.integers(0, 3)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_table_is_a_dictionary_in_the_order_of_adding(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("met") / "met"
    plain: dict[str, int] = {}
    with MetAddresses(path) as met:
        table = met.table("pages")
        for step, url, value in steps:
            if step == "add":
                assert table.add(url, value) == (url not in plain)
                plain.setdefault(url, value)
            elif step == "set":
                table.set(url, value)
                plain[url] = value
            else:
                table.cut(value)
                plain = dict(list(plain.items())[:value])
            assert len(table) == len(plain)
            assert list(table.between()) == list(plain.items())
            assert list(table.between(1, 3)) == list(plain.items())[1:3]
            assert [table.get(one) for one in "ab"] == [plain.get(one) for one in "ab"]
            assert [table.valued(one) for one in (0, 1)] == [list(plain.values()).count(one) for one in (0, 1)]
    assert not path.exists()


def test_addresses_are_added_while_others_are_read(tmp_path: Path) -> None:
    with MetAddresses(tmp_path / "met") as met:
        table = met.table("pages")
        table.add_all(str(number) for number in range(2500))
        seen = []
        for url, _ in table.between():
            seen.append(url)
            table.add(f"from {url}")
        assert seen == [str(number) for number in range(2500)]
        assert len(table) == 5000


def test_memory_does_not_grow_with_the_addresses(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        with MetAddresses(tmp_path / "met") as met:
            table = met.table("pages")
            tracemalloc.start()
            try:
                table.add_all(f"http://host.test/a/path/of/some/length/{number}" for number in range(count))
                assert sum(1 for _ in table.between()) == count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    peak(2000)  # what is made once
    assert peak(40_000) < peak(2000) + 100_000  # a dictionary would take 6 MB more


def fill(path: Path, pages: int) -> None:
    with MetAddresses(path) as met:
        table = met.table("pages")
        table._do(f"PRAGMA max_page_count = {pages}")
        table.add_all("x" * 50 + str(number) for number in range(5000))


def test_a_full_disk_is_one_line_and_an_old_file_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "met").write_bytes(b"what a killed run left")
    with pytest.raises(VitrailError, match=r"met: the addresses that were met could not be kept .*full"):
        fill(tmp_path / "met", 20)
    assert not (tmp_path / "met").exists()
    fill(tmp_path / "met", 1_000_000)
