"""What a released version wrote opens for ever, and says what it said; what is written today has the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_codecs_repository import write_codecs_repository
from make_repository import history, unpack, write_repository

import rblstore
from rblstore.storage.codecs import DELTA, PLANES, RAW, ZSTD
from rblstore.storage.planes import DIFFERENCE, PLAIN, ROTATED, XOR

WRITERS = {"0.1.0": write_repository, "0.1.0-codecs": write_codecs_repository}
# The codecs of the content packs, and, of planes and differences, element widths and transforms.
PURPOSE: dict[str, tuple[set[int], set[int], set[int]]] = {
    "0.1.0": ({RAW, ZSTD}, set(), set()),
    "0.1.0-codecs": ({RAW, ZSTD, PLANES, DELTA}, {1, 2, 4, 8}, {PLAIN, ROTATED, XOR, DIFFERENCE}),
}
VERSIONS = sorted(path.parent for path in Path(__file__).parent.glob("*/repository.tar.gz"))
BYTES = 300_000


def expected(version: Path) -> Any:
    return json.loads((version / "expected.json").read_text("utf-8"))


def test_there_is_one_of_this_version() -> None:
    assert [path.name for path in VERSIONS] == sorted(WRITERS) == sorted(PURPOSE)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
class TestGolden:
    def test_it_says_what_it_said(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        assert history(store, tmp_path / "out", expected(version)["checkouts"]) == expected(version)

    def test_it_is_whole(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        with rblstore.open(store) as repo:
            result = repo.fsck(full=True)
            assert result.damages == ()
            assert (result.records, result.contents) == (
                len(expected(version)["records"]),
                len(expected(version)["contents"]),
            )

    def test_its_catalog_can_be_rebuilt(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        (store / ".rbl" / "catalog.db").unlink()
        assert rblstore.reindex(store).skipped == ()
        assert history(store, tmp_path / "out", expected(version)["checkouts"]) == expected(version)
        with rblstore.open(store) as repo:
            assert repo.fsck(full=True).damages == ()

    def test_history_goes_on(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        with rblstore.open(store) as repo:
            head = repo.head
            repo.commit("without", remove=["polite"])
            assert repo.log()[0].parents == (head,)
            repo.undo()
            assert repo.head == head
            assert repo.fsck(full=True).damages == ()

    def test_it_has_what_it_is_for(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        with rblstore.open(store) as repo:
            found: dict[str, set[int]] = {"C": set(), "R": set()}
            in_parts: set[int] = set()
            layouts: set[tuple[int, int]] = set()
            for name in repo._store.packs():
                pack = repo._store.pack(name)
                entries = pack.entries(0, pack.footer().entries)
                found[pack.kind()].update(entry.codec for entry in entries)
                in_parts.update(entry.codec for entry in entries if entry.raw_length < entry.size)
                layouts.update(tuple(entry.parameters[:2]) for entry in entries if entry.codec in (PLANES, DELTA))
        codecs, widths, transforms = PURPOSE[version.name]
        assert found["C"] == codecs
        assert found["R"] == ({RAW, ZSTD} if version.name == "0.1.0" else {RAW})
        assert {width for width, _ in layouts} == widths
        assert {transform for _, transform in layouts} == transforms
        assert in_parts >= (codecs - {RAW, ZSTD} or {ZSTD})
        assert sum(path.stat().st_size for path in version.iterdir()) < BYTES


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_the_same_input_has_the_same_ids_today(version: Path, tmp_path: Path) -> None:
    WRITERS[version.name](tmp_path / "store", tmp_path / "sources")
    checkouts = expected(version)["checkouts"]
    assert history(tmp_path / "store", tmp_path / "out", checkouts) == expected(version)
