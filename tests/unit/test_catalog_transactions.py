"""Snapshots, locks, failed commits, damaged files, and many processes at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from catalog_samples import MAIN, TIME, commit, composition, copy_of, fresh_catalog, made, moved, pack, statement
from sqlalchemy import insert

from rblstore.catalog.database import Catalog
from rblstore.catalog.engine import (
    CatalogBusyError,
    CatalogDamagedError,
    CatalogFailedError,
    CommitOutcomeUnknownError,
    _CatalogConnection,
    open_engine,
    read_failure,
    translated,
)
from rblstore.catalog.operation_log import next_operation
from rblstore.catalog.tables import compositions
from rblstore.catalog.writer import OperationRaceError, RefMovedError
from rblstore.errors import LockedError, RblError
from rblstore.objects.history_records import RefChange
from rblstore.objects.ids import BehaviorId, CommitId


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with fresh_catalog(tmp_path / "catalog.db") as opened:
        yield opened


@pytest.fixture
def impatient(catalog: Catalog) -> Iterator[Catalog]:
    with Catalog.open(catalog.path, busy_timeout=0) as opened:
        yield opened


def count(catalog: Catalog) -> int:
    with catalog.read() as reader:
        return len(list(reader.records()))


def test_connections_are_set_up_for_durability(catalog: Catalog) -> None:
    engine = open_engine(catalog.path, 30)
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema")
        }
    assert settings == {
        "journal_mode": "delete", "synchronous": 3, "foreign_keys": 1, "busy_timeout": 30000, "trusted_schema": 0,
    }  # fmt: skip


def test_an_exception_takes_everything_back(catalog: Catalog) -> None:
    with pytest.raises(KeyboardInterrupt), catalog.write() as writer:  # noqa: PT012
        writer.add_pack(pack("one", 3))
        writer.add_record(*commit("root"))
        writer.apply(next_operation(writer, "test", moved(None, commit("root")[0]), "Ada", TIME))
        raise KeyboardInterrupt
    with catalog.read() as reader:
        assert (reader.packs(), list(reader.records()), reader.refs(), reader.last_operation()) == ([], [], {}, None)


def test_a_snapshot_does_not_move(catalog: Catalog, impatient: Catalog) -> None:
    with catalog.write() as writer:
        writer.add_record(*statement(made(BehaviorId, 1)))
        with impatient.read() as reader:
            assert list(reader.records()) == []
        writer.add_record(*statement(made(BehaviorId, 2)))
    assert count(impatient) == 2


def test_two_writers_do_not_overlap(catalog: Catalog, impatient: Catalog) -> None:
    with catalog.write() as writer:
        with pytest.raises(CatalogBusyError) as caught, impatient.write():
            pytest.fail("two transactions held the write lock")
        writer.add_record(*statement(made(BehaviorId, 1)))
    assert isinstance(caught.value, LockedError)
    assert caught.value.exit_code == 7
    assert count(catalog) == 1


def test_a_commit_that_a_reader_holds_up_is_busy_and_changes_nothing(catalog: Catalog, impatient: Catalog) -> None:
    with catalog.read() as reader:
        assert list(reader.records()) == []
        with pytest.raises(CatalogBusyError), impatient.write() as writer:
            writer.add_record(*statement(made(BehaviorId, 1)))
    assert count(catalog) == 0
    with impatient.write() as writer:
        writer.add_record(*statement(made(BehaviorId, 1)))
    assert count(catalog) == 1


def test_reading_goes_on_inside_a_snapshot_while_a_writer_waits_for_it(catalog: Catalog, impatient: Catalog) -> None:
    with impatient.read() as reader, closing(sqlite3.connect(catalog.path, timeout=0, isolation_level=None)) as writer:
        assert reader.refs() == {}
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO refs (name, value) VALUES ('refs/heads/main', 'x')")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("COMMIT")  # waits for the reader, and lets no new one in
        with impatient.read() as inner:
            assert inner.refs() == {}


def test_a_thread_does_not_wait_for_itself(catalog: Catalog) -> None:
    with catalog.read():
        with pytest.raises(CatalogBusyError, match="this thread"), catalog.write():
            pytest.fail("this would wait for thirty seconds")
        with catalog.read():
            pass
        with pytest.raises(CatalogBusyError), catalog.write():
            pytest.fail("the outer read is still open")
    with catalog.write() as writer:
        writer.add_record(*commit("root"))


def test_one_catalog_serves_many_threads(catalog: Catalog) -> None:
    def work(name: int) -> None:
        for at in range(5):
            with catalog.write() as writer:
                writer.add_record(*statement(made(BehaviorId, name), at))
            count(catalog)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(catalog) == 20


def test_the_outcome_of_a_failed_commit_is_unknown(catalog: Catalog) -> None:
    with pytest.raises(CommitOutcomeUnknownError), catalog.write() as writer:  # noqa: PT012
        # A foreign key that is checked at COMMIT makes COMMIT itself fail.
        writer._connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        writer._run(insert(compositions), [{"id": composition()[0], "identity": composition()[1].identity}])
    with catalog.write() as writer:
        writer.add_record(*commit("root"))
    assert count(catalog) == 1


def test_rows_that_contradict_each_other_are_damage(catalog: Catalog) -> None:
    with pytest.raises(CatalogDamagedError), catalog.write() as writer:
        writer._run(insert(compositions), [{"id": composition()[0], "identity": composition()[1].identity}])


def test_a_full_disk_is_typed(catalog: Catalog) -> None:
    with pytest.raises(CatalogFailedError, match="full"), catalog.write() as writer:  # noqa: PT012
        pages = writer._connection.exec_driver_sql("PRAGMA page_count").scalar()
        writer._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        writer.add_pack(pack("one", 2000))
    with catalog.read() as reader:
        assert reader.packs() == []


def test_a_catalog_put_in_its_place_is_seen_at_once(catalog: Catalog, tmp_path: Path) -> None:
    with fresh_catalog(tmp_path / "other.db") as other:
        with other.write() as writer:
            writer.add_record(*commit("root"))
        other.path.replace(catalog.path)
    assert count(catalog) == 1


def test_the_checks_of_a_whole_catalog_find_nothing(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.add_pack(pack("one", 3))
        writer.add_records([commit("root"), composition()])
    assert catalog.integrity_problems() == []


def test_the_checks_name_rows_that_refer_to_nothing(catalog: Catalog) -> None:
    with catalog.write() as writer:
        writer.add_pack(pack("one", 3))
    with closing(sqlite3.connect(catalog.path)) as connection:
        connection.execute("DELETE FROM packs")
        connection.commit()
    assert catalog.integrity_problems() == ["a row of 'contents' refers to nothing in 'packs'"] * 3


def use_everything(catalog: Catalog, head: CommitId) -> None:
    with catalog.read() as reader:
        for row in reader.packs():
            reader.contents_of_pack(row.pack)
        for id, _ in list(reader.records()):
            reader.evidence(id)
        for name in reader.refs():
            reader.ref(name)
        for row in list(reader.commits([head])):
            reader.composition(row.composition)
        reader.operations()
    with catalog.write() as writer:
        writer.add_pack(pack("new", 3, first=10_000))
        writer.add_record(*commit("new", head))
    catalog.integrity_problems()


def test_damaged_files_are_found_or_harmless(catalog: Catalog, tmp_path: Path) -> None:
    history = [commit(0)]
    for at in range(1, 40):
        history.append(commit(at, history[-1][0]))
    head = history[-1][0]
    with catalog.write() as writer:
        writer.add_pack(pack("one", 60))
        writer.add_records([*history, composition(), *(statement(head, at) for at in range(10))])
        writer.apply(next_operation(writer, "test", moved(None, head), "Ada", TIME))
    whole = catalog.path.read_bytes()
    use_everything(Catalog.open(copy_of(catalog, tmp_path / "copy.db")), head)
    chance = random.Random(7)
    path = tmp_path / "damaged.db"
    found = 0
    for at in range(60):
        data = bytearray(whole)
        if at % 10 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            # Half of the flips in the headers of pages, where they hurt most.
            place = chance.randrange(len(data))
            place = place if at % 2 else place // 4096 * 4096 + chance.randrange(100)
            data[place] ^= chance.randrange(1, 256)
        path.write_bytes(data)
        for leftover in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        try:
            with Catalog.open(path, busy_timeout=0) as damaged:
                use_everything(damaged, head)
        except RblError:  # any other exception fails the test
            found += 1
    assert found > 12


def increment(path: str, ref: str, times: int) -> None:
    """Adds one to the number that a ref's value spells, so often, each by compare-and-swap from an earlier read."""
    with Catalog.open(Path(path)) as catalog:
        for _ in range(times):
            while True:
                with catalog.read() as reader:
                    before = reader.ref(ref)
                after = f"{int(before or '0', 16) + 1:064x}"
                try:
                    with catalog.write() as writer:
                        writer.apply(next_operation(writer, "add", [RefChange(ref, before, after)], "Ada", TIME))
                    break
                except (RefMovedError, OperationRaceError):
                    continue


def test_processes_that_increment_one_ref_lose_nothing(catalog: Catalog) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=increment, args=(str(catalog.path), MAIN, 10)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    with catalog.read() as reader:
        assert int(reader.ref(MAIN), 16) == 40
        history = reader.operations_after(0)
    assert [operation.sequence for operation in history] == list(range(1, 41))
    assert [int(operation.changes[0].after, 16) for operation in history] == list(range(1, 41))


def test_a_writer_that_waits_asks_as_often_as_one_that_comes_later(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Asking(_CatalogConnection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            asked.append(sql)
            return super().execute(sql, *parameters)

    monkeypatch.setattr("rblstore.catalog.engine._CatalogConnection", Asking)
    with Catalog.open(catalog.path, busy_timeout=0.5) as waiting:
        with catalog.write(), pytest.raises(CatalogBusyError), waiting.write():
            pass
        assert asked.count("BEGIN IMMEDIATE") > 5
        with waiting._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 500
        with waiting.write():
            pass


@pytest.fixture
def malformed(catalog: Catalog) -> Path:
    """A catalog with a page that is nothing."""
    with catalog.write() as writer:
        writer.add_pack(pack("one", 300))
    data = catalog.path.read_bytes()
    catalog.close()
    catalog.path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
    return catalog.path


def test_pages_that_are_malformed_are_damage(malformed: Path) -> None:
    with pytest.raises(CatalogDamagedError), Catalog.open(malformed) as catalog:
        use_everything(catalog, commit("root")[0])
    with suppress(CatalogDamagedError), Catalog.open(malformed) as catalog:
        assert catalog.integrity_problems()


@pytest.mark.parametrize(
    "look", [lambda catalog: use_everything(catalog, commit("root")[0]), Catalog.integrity_problems]
)
def test_pages_that_the_disk_does_not_give_are_none(
    look: Callable[[Catalog], object], malformed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", read)
    with pytest.raises(CatalogFailedError, match="could not be read"), Catalog.open(malformed) as catalog:
        look(catalog)


def test_reading_again_keeps_the_locks_that_others_hold(catalog: Catalog) -> None:
    """Closing any descriptor of a file would give up every lock that SQLite holds on it in this process."""
    with catalog.write():
        assert read_failure(str(catalog.path)) is None
        asking = f"import sqlite3; sqlite3.connect({str(catalog.path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=False)
    assert "database is locked" in done.stderr


def test_a_link_in_place_of_the_catalog_is_not_followed(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    catalog.path.rename(tmp_path / "elsewhere")
    catalog.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogDamagedError, match="symbolic link") as found:
        Catalog.open(catalog.path)
    assert "rbl reindex" in (found.value.hint or "")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM parents",  # what refers to it names a column that is no key
        "SELECT a FROM parents GROUP BY sum(a)",
        "SELECT absent FROM parents",
    ],
)
@pytest.mark.parametrize("coded", [True, False], ids=["with a code", "without"])
def test_statements_that_do_not_suit_the_schema_mean_damage(statement: str, *, coded: bool) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("CREATE TABLE parents (a)")
    connection.execute("CREATE TABLE children (b REFERENCES parents (a))")
    with pytest.raises(sqlite3.OperationalError) as found:
        connection.execute(statement)
    error = found.value if coded else sqlite3.OperationalError(str(found.value))
    expected = CatalogDamagedError if coded or "GROUP" not in statement else CatalogFailedError
    assert type(translated(error, "catalog.db")) is expected
    connection.close()
