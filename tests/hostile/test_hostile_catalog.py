"""A catalog that somebody else made: whatever its schema and rows say, only an RblError comes out; reindex cures it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from confined import confined
from fuzz_targets import scratch
from repository_targets import look_at, make_history
from trials import Trials

import rblstore


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_history(tmp_path_factory.mktemp("history"))


@pytest.fixture
def store(history: Path) -> Iterator[Path]:
    folder = scratch()
    yield Path(shutil.copytree(history, folder / "store"))
    shutil.rmtree(folder)


@contextlib.contextmanager
def database(store: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(store / ".rbl" / "catalog.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        yield connection


def _columns(connection: sqlite3.Connection, table: str) -> str:
    return ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


REPLACED = "ALTER TABLE {table} RENAME TO kept; "
# Statements by which a table does more than hold rows; {table} is its name, {columns} are its columns.
SCHEMAS = {
    "view": REPLACED + "CREATE VIEW {table} AS SELECT * FROM kept",
    "endless view": REPLACED + "CREATE VIEW {table} AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
    "SELECT kept.* FROM kept, n",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON {table} BEGIN DELETE FROM refs; END",
    "deleting trigger": "CREATE TRIGGER evil BEFORE UPDATE ON refs BEGIN SELECT hex(zeroblob(30000000)); END",
    "virtual table": REPLACED + "CREATE VIRTUAL TABLE {table} USING fts5({columns})",
    "large generated column": REPLACED
    + "CREATE TABLE {table} ({columns}, more GENERATED ALWAYS AS (hex(zeroblob(30000000))) VIRTUAL)",
    "generated columns": REPLACED + "CREATE TABLE {table} (x, {generated})",
    "check": REPLACED + "CREATE TABLE {table} ({columns}, CHECK (length(hex(zeroblob(30000000))) > 1))",
    "default": REPLACED + "CREATE TABLE {table} ({columns}, more DEFAULT (hex(zeroblob(30000000))))",
    "index on an expression": "CREATE INDEX evil ON {table} (hex(zeroblob(1000)))",
    "partial index": "CREATE INDEX evil ON {table} (rowid) WHERE length(hex(zeroblob(1000))) = 3",
    "another table": "CREATE TABLE evil (x)",
    "no types": REPLACED + "CREATE TABLE {table} AS SELECT * FROM kept",
    "missing": "DROP TABLE {table}",
    "fewer columns": REPLACED + "CREATE TABLE {table} (id)",
    "temporary name": "CREATE TABLE sqlite_stat1x (x)",
    "statistics": "ANALYZE; UPDATE sqlite_stat1 SET stat = '9223372036854775807 0 0 0 x'",
}
TABLES = (
    "refs",
    "operations",
    "commits",
    "records",
    "packs",
    "contents",
    "compositions",
    "slots",
    "commit_parents",
    "evidence",
)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("table", TABLES)
def test_schemas(store: Path, table: str, schema: str) -> None:
    log = (store / ".rbl" / "refs.log").read_bytes()
    with database(store) as connection:
        columns = _columns(connection, table)
        generated = ", ".join(
            f"{name} GENERATED ALWAYS AS (hex(zeroblob(30000000))) VIRTUAL" for name in columns.split(", ")
        )
        try:
            for statement in SCHEMAS[schema].format(table=table, columns=columns, generated=generated).split("; "):
                connection.execute(statement)
        except sqlite3.Error:
            pytest.skip("SQLite itself refuses this")
        if schema == "large generated column":
            connection.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM kept")
        if schema == "generated columns":
            connection.execute(f"INSERT INTO {table} (x) VALUES (1)")
    with contextlib.suppress(rblstore.RblError), confined(), rblstore.open(store) as repo:
        look_at(repo)
        repo.create_branch("more", author="Ada")
    if not (store / ".rbl" / "refs.log").read_bytes().startswith(log):
        raise AssertionError("a hostile catalog rewrote the log")
    rblstore.reindex(store)
    with rblstore.open(store) as repo:
        assert len(repo.log(all=True)) == 3


ODD = (
    "NULL", "''", "0", "-1", "9223372036854775807", "-9223372036854775808", "1e999", "-1e999", "0.5", "x''",
    "zeroblob(10000000)",
    "hex(zeroblob(5000))", "x'ff00'", "cast(x'ff' as text)", "char(0xd800)", "char(0)", "'../../x'", "'ref: HEAD'",
    "'ref: ' || name",
    "'" + "0" * 64 + "'", "'" + "A" * 64 + "'", "'" + "f" * 63 + "'", "'{{'", "'{\"sequence\":1}'", "rowid",
    "hex(randomblob(32))",
    "lower(hex(randomblob(32)))", "'\ud7ff'", "'refs/heads/main'", "'adapter'", "'R'", "'C'",
)  # fmt: skip


@pytest.mark.slow
def test_values(history: Path) -> None:
    """Any column with any odd value, in one row or in all."""
    folder = scratch()
    store = Path(shutil.copytree(history, folder / "store"))
    log, catalog = (store / ".rbl" / "refs.log").read_bytes(), (store / ".rbl" / "catalog.db").read_bytes()
    with database(store) as connection:
        columns = [(table, name) for table in TABLES for name in _columns(connection, table).split(", ")]
    with Trials("R8", "odd values in a catalog", quick=250, full=20_000) as run:
        for _ in run:
            (store / ".rbl" / "catalog.db").write_bytes(catalog)
            (store / ".rbl" / "refs.log").write_bytes(log)
            values = []
            with database(store) as connection:
                for _ in range(run.moment.choice((1, 1, 2))):
                    (table, name), value = run.moment.choice(columns), run.moment.choice(ODD)
                    which = run.moment.choice(("", " WHERE rowid = 1", " WHERE rowid > 1"))
                    values.append(f"{table}.{name} = {value}{which}")
                    with contextlib.suppress(sqlite3.Error):  # no rowid, no such column to copy, or a constraint
                        connection.execute(f'UPDATE {table} SET "{name}" = {value}{which}')
            try:
                with confined(), rblstore.open(store) as repo:
                    look_at(repo)
                    repo.resolve("HEAD~1")
            except rblstore.RblError:
                run.count("refused")
            except BaseException as error:
                raise AssertionError(f"{values}") from error
            if run.done % 20 == 0:
                (store / ".rbl" / "refs.log").write_bytes(log)
                rblstore.reindex(store)
    shutil.rmtree(folder)


def test_a_wal_beside_it(store: Path) -> None:
    folder = store / ".rbl"
    with database(store) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("DELETE FROM refs")
        for name in ("catalog.db", "catalog.db-wal"):
            shutil.copy(folder / name, store / name)
    shutil.move(store / "catalog.db", folder / "catalog.db")
    shutil.move(store / "catalog.db-wal", folder / "catalog.db-wal")
    with contextlib.suppress(rblstore.RblError), rblstore.open(store) as repo:
        look_at(repo)
    rblstore.reindex(store)
    with rblstore.open(store) as repo:
        assert len(repo.log(all=True)) == 3
        assert [branch.name for branch in repo.branches()] == ["main", "other"]


@pytest.mark.parametrize("what", ["fifo", "folder", "link to a device", "link to nothing", "empty", "large"])
@pytest.mark.parametrize(
    "name",
    ["catalog.db", "refs.log", "config.toml", "format", "stat-cache", "lock", "catalog.db-journal", "packs", "tmp"],
)
def test_files_that_are_something_else(store: Path, name: str, what: str) -> None:
    import os

    path = store / ".rbl" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what.startswith("link"):
        path.symlink_to("/dev/zero" if "device" in what else "nowhere")
    else:
        path.touch()
        os.truncate(path, 1 << 40 if what == "large" else 0)
    with contextlib.suppress(rblstore.RblError), confined(), rblstore.open(store) as repo:
        look_at(repo)
        repo.create_branch("more", author="Ada")
        repo.commit("x", identity=store.parent / "none", author="Ada")
    with contextlib.suppress(rblstore.RblError), confined():
        rblstore.reindex(store)
