"""Readers that need a directory: catalogs, journals, checkpoints to import, checkouts, revisions, the command line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_checkpoints
from mutation import JSON_WORDS

import rblstore
from rblstore.api import Repository
from rblstore.errors import RblError
from rblstore.revisions import find_operation, find_record, resolve

SIDES = ("-journal", "-wal", "-shm")
_SQL_WORDS = (
    b"SQLite format 3\0", b"CREATE TABLE ", b"CREATE VIEW ", b"CREATE TRIGGER ", b"randomblob(", b"refs", b"HEAD",
    b"ref: ",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\x0d", b"\x05", b"\x02\x02",
    b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7",
)  # fmt: skip
_REVISION_WORDS = (
    b"HEAD", b"@", b"main", b"~", b"^", b"~1", b"^2", b"@{", b"}", b"@{1}", b"@{0}", b"refs/heads/main", b"refs/",
    b"probe",
    b"\0", b"\n", b"\xff", b"\xed\xa0\x80", b"a" * 5000, b"~999999999", b"~1" * 2000, b"^0" * 2000, b"f" * 6, b"0" * 64,
    b"@{" * 2000, b"%", b"'", b'"', b"\xd9\xa1", b"-", b"/", b"..",
)  # fmt: skip
# A path that leads out of the folder that the command works in: absolute, also behind "=" or "-o"; or upwards.
_OUTSIDE = re.compile(r"(?:^|=|^-\w)/(?!(?:dev/null|proc/self/mem)$)|\.\.")
_WORDS_OF_COMMANDS = (
    b"log", b"show", b"diff", b"status", b"branch", b"tag", b"switch", b"checkout", b"undo", b"op", b"fsck", b"probe",
    b"add",
    b"commit", b"--json", b"--help", b"-m", b"--identity", b"--behavior", b"--only", b"--limit", b"-C", b"--", b"-",
    b"=",
    b"HEAD", b"x=y", b"a" * 5000, b"\xff", b"\0", b"/dev/null", b"/proc/self/mem", b"..", b"/", b"-9", b"1e9",
)  # fmt: skip


def make_history(folder: Path) -> Path:
    """A repository of three commits, a tag and two branches, made of a few tensors; and beside it what it came from."""
    base = tiny_checkpoints.write_base(folder / "base")
    polite = tiny_checkpoints.write_adapter(folder / "polite")
    with rblstore.init(folder / "store") as repo:
        repo.commit("base", identity=base, author="Ada")
        repo.commit("polite", behaviors={"polite": polite}, author="Ada")
        repo.commit("polite again", weights={"polite": 0.5}, author="Ada")
        repo.create_tag("v1", "HEAD~1", author="Ada")
        repo.create_branch("other", "HEAD~2", author="Ada")
        repo.checkout("HEAD", folder / "out")
    return folder / "store"


def look_at(repo: Repository) -> None:
    """Everything that people do first with a repository that somebody gave them."""
    for question in (
        lambda: repo.log(all=True),
        lambda: repo.status(),
        lambda: repo.show(),
        lambda: repo.branches(),
        lambda: repo.tags(),
        lambda: repo.operations(),
        lambda: repo.diff("HEAD~1", "HEAD"),
        lambda: repo.resolve("v1^0"),
        lambda: repo.probes(),
    ):
        with contextlib.suppress(RblError):
            question()


def _database_reader(store: Path, suffix: str) -> Callable[[bytes], None]:
    """Opens the repository with other bytes for its catalog or for what lies beside it; rebuilds it now and then."""
    folder = store / ".rbl"
    kept = {name: (folder / name).read_bytes() for name in ("catalog.db", "refs.log")}
    refs = _refs(store)

    def read(data: bytes) -> None:
        for side in SIDES:
            (folder / f"catalog.db{side}").unlink(missing_ok=True)
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        if suffix == "-wal":
            (folder / "catalog.db").write_bytes(kept["catalog.db"][:18] + b"\2\2" + kept["catalog.db"][20:])
        (folder / f"catalog.db{suffix}").write_bytes(data)
        try:
            with rblstore.open(store) as repo:
                look_at(repo)
        except RblError:
            pass
        if sum(data[:400]) % 8 == 0:
            (folder / "refs.log").write_bytes(kept["refs.log"])  # a catalog may not have added to it
            rblstore.reindex(store)
            assert _refs(store) == refs

    return read


def _refs(store: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(store / ".rbl" / "catalog.db")) as connection:
        return dict(connection.execute("SELECT name, value FROM refs").fetchall())


def _journal(store: Path) -> bytes:
    """A rollback journal of the store's catalog, as a crash leaves it."""
    copy = store.parent / "journal.db"
    shutil.copy(store / ".rbl" / "catalog.db", copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE refs SET value = value || 'x'")
        connection.execute("UPDATE operations SET body = body || printf('%5000s', 'x')")
        return Path(f"{copy}-journal").read_bytes()


def _wal(store: Path) -> bytes:
    copy = store.parent / "wal.db"
    shutil.copy(store / ".rbl" / "catalog.db", copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE refs SET value = value || 'x'")
        return Path(f"{copy}-wal").read_bytes()


def _import_reader(folder: Path, source: str, path: str) -> Callable[[bytes], None]:
    """Commits a directory of which one file has other bytes; where that works, checkout gives the same bytes."""
    store = folder / f"import-{source}-{path}"
    with rblstore.init(store) as repo:
        repo.commit("base", identity=folder / "base", author="Ada")
    kept = shutil.copytree(store / ".rbl", folder / f"kept-{source}-{path}")
    directory = shutil.copytree(folder / source, folder / f"source-{source}-{path}")
    out = folder / f"out-{source}-{path}"

    def read(data: bytes) -> None:
        (directory / path).write_bytes(data)
        with rblstore.open(store) as repo:
            before = repo.head
            if source == "base":
                repo.commit("again", identity=directory, author="Ada", allow_empty=True)
            else:
                repo.commit("again", behaviors={"x": directory}, author="Ada")
            try:
                repo.checkout("HEAD", out)
                written = out / path if source == "base" else out / "behaviors" / "x" / path
                assert not written.exists() or written.read_bytes() == data
            finally:
                shutil.rmtree(out, ignore_errors=True)
                assert repo.head != before
                repo.close()
                shutil.rmtree(store / ".rbl")
                shutil.copytree(kept, store / ".rbl")

    return read


def _checkout_reader(folder: Path, store: Path) -> Callable[[bytes], None]:
    """Asks whether a checkout is as it was written, where its manifest has other bytes."""
    repo = Repository(rblstore.open(store)._store)

    def read(data: bytes) -> None:
        (folder / "out" / "rbl-composition.json").write_bytes(data)
        status = repo.status(folder / "out")
        assert isinstance(status.clean, bool)  # type: ignore[union-attr]

    return read


def _revision_reader(store: Path) -> Callable[[bytes], None]:
    kernel = rblstore.open(store)._store

    def read(data: bytes) -> None:
        text = os.fsdecode(data)
        with contextlib.suppress(RblError):
            find_record(kernel, text)
        with contextlib.suppress(RblError), kernel.catalog.read() as reader:
            find_operation(reader, text)
        resolve(kernel, text)

    return read


def _command_reader(folder: Path, store: Path) -> Callable[[bytes], None]:
    """Runs a command line as a shell would, arguments one a line; it ends by an exit code, never by a traceback."""
    from click.testing import CliRunner

    from rblstore.cli.program import rbl

    copy = shutil.copytree(store, folder / "for-commands")
    runner = CliRunner()

    def read(data: bytes) -> None:
        arguments = [argument.replace("\0", "") for argument in os.fsdecode(data[:8000]).split("\n")]
        if any(word in ("demo", "load", "verify", "revert", "baseline", "report") for word in arguments):
            return  # these load torch
        if any(map(_OUTSIDE.search, arguments)):
            return  # whoever runs the tests as root has a file system to lose
        with contextlib.redirect_stderr(io.StringIO()):
            result = runner.invoke(rbl, ["-C", str(copy), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in range(9)
        shutil.rmtree(copy)
        shutil.copytree(store, copy)

    return read


def repository_targets(folder: Path, target: Callable[..., Any]) -> tuple[Any, ...]:
    """The readers that need a directory.

    Args:
        folder: Where they may write, on the same terms as ever.
        target: The class that the others are made by.
    """
    store = make_history(folder)
    catalog = (store / ".rbl" / "catalog.db").read_bytes()
    copies = {suffix: shutil.copytree(store, folder / f"store-with{suffix}") for suffix in ("", *SIDES[:2])}
    manifest = (folder / "out" / "rbl-composition.json").read_bytes()
    files = [
        ("base", "config.json"),
        ("base", "model.safetensors"),
        ("polite", "adapter_config.json"),
        ("polite", "adapter_model.safetensors"),
    ]
    commands = (
        b"log\nHEAD~1\n--json", b"show\nHEAD", b"checkout\nHEAD\nnot-there/x", b"branch\nname",
        b"tag\nname\nHEAD\n-m\nx",
        b"diff\nHEAD~1\nHEAD", b"status", b"op\nlog", b"switch\nother", b"commit\n-m\nx\n--identity\nnot-there",
        b"checkout\nHEAD\nanother\n--only\n*.json", b"fsck", b"probe\nadd\nx\n--prompts\n/dev/null", b"undo",
    )  # fmt: skip
    return (
        target("catalog", (catalog,), _database_reader(copies[""], ""), _SQL_WORDS, weight=6),
        target("catalog-journal", (_journal(store),), _database_reader(copies["-journal"], "-journal"), _SQL_WORDS,
        weight=2),
        target("catalog-wal", (_wal(store),), _database_reader(copies["-wal"], "-wal"), _SQL_WORDS, weight=2),
        *(
            target(f"import-{source}-{path}", ((folder / source / path).read_bytes(),), _import_reader(folder, source,
            path),
                   JSON_WORDS, (lambda data: (b"", data, b"")) if path.endswith(".json") else None, weight=1)
            for source, path in files
        ),
        target("checkout-status", (manifest,), _checkout_reader(folder, store), JSON_WORDS, lambda data: (b"", data,
        b""), weight=20),
        target("revision", (b"HEAD~2", b"main^", b"v1", b"main@{3}", b"HEAD~1^0", b"refs/heads/other"),
        _revision_reader(store), _REVISION_WORDS, weight=30),
        target("command-line", commands, _command_reader(folder, store), _WORDS_OF_COMMANDS, weight=3),
    )  # fmt: skip
