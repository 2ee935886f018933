"""What a released version wrote opens for ever, and says what it said; what is written today has the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_repository import history, unpack, write_repository

import rblstore
from rblstore.storage.codecs import RAW, ZSTD

VERSIONS = sorted(path.parent for path in Path(__file__).parent.glob("*/repository.tar.gz"))
BYTES = 300_000


def expected(version: Path) -> Any:
    return json.loads((version / "expected.json").read_text("utf-8"))


def test_there_is_one_of_this_version() -> None:
    assert [path.name for path in VERSIONS] == ["0.1.0"]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
class TestGolden:
    def test_it_says_what_it_said(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        assert history(store, tmp_path / "out") == expected(version)

    def test_it_is_whole(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        with rblstore.open(store) as repo:
            result = repo.fsck(full=True)
            assert result.damages == ()
            assert (result.records, result.contents - result.records) == (
                len(expected(version)["records"]),
                len(expected(version)["contents"]),
            )

    def test_its_catalog_can_be_rebuilt(self, version: Path, tmp_path: Path) -> None:
        store = unpack(version, tmp_path / "store")
        (store / ".rbl" / "catalog.db").unlink()
        assert rblstore.reindex(store).skipped == ()
        assert history(store, tmp_path / "out") == expected(version)
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
            most_frames = 0
            for name in repo._store.packs():
                pack = repo._store.pack(name)
                entries = pack.entries(0, pack.footer().entries)
                found[pack.kind()].update(entry.codec for entry in entries)
                most_frames = max(most_frames, *(location.entries for location in pack.summary().locations))
        assert found == {"C": {RAW, ZSTD}, "R": {RAW, ZSTD}}
        assert most_frames > 1
        assert sum(path.stat().st_size for path in version.iterdir()) < BYTES


def test_the_same_input_has_the_same_ids_today(tmp_path: Path) -> None:
    write_repository(tmp_path / "store", tmp_path / "sources")
    assert history(tmp_path / "store", tmp_path / "out") == expected(VERSIONS[-1])
