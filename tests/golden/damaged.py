"""Repositories that are damaged in one way each, made from a whole one. Fixtures are named by their defect."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rblstore.objects.ids import ContentId
from rblstore.storage.disk import DiskBackend
from rblstore.storage.pack_format import ENTRY_BYTES, FOOTER_BYTES, HEADER_BYTES
from rblstore.storage.pack_writer import PackWriter

DEFECTS: dict[str, Callable[[Path], str]] = {}


def defect(make: Callable[[Path], str]) -> Callable[[Path], str]:
    """Registers a defect: it spoils the ``.rbl`` folder that it is given, and says which object is damaged."""
    DEFECTS[make.__name__] = make
    return make


def flip(path: Path, at: int) -> None:
    """Turns one bit of a file over; a negative offset counts from its end."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    replace(path, bytes(data))


def replace(path: Path, data: bytes) -> None:
    """Writes a file that may be read-only."""
    path.chmod(0o644)
    path.write_bytes(data)


def largest_pack(folder: Path, kind: bytes) -> Path:
    """The largest pack of a kind: the second identity's contents, or records."""
    packs = [path for path in (folder / "packs").rglob("*.pack") if path.read_bytes()[8:9] == kind]
    return max(packs, key=lambda path: (path.stat().st_size, path.name))


def first_content(pack: Path) -> str:
    """The content of the first entry of a pack's index."""
    data = pack.read_bytes()
    offset = int.from_bytes(data[-FOOTER_BYTES : -FOOTER_BYTES + 8], "little")
    return data[offset : offset + 32].hex()


def in_catalog(folder: Path, statement: str, *values: object) -> None:
    """Changes the catalog behind rblstore's back."""
    with closing(sqlite3.connect(folder / "catalog.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


@defect
def frame_flipped(folder: Path) -> str:
    """A bit of a tensor's stored bytes."""
    pack = largest_pack(folder, b"C")
    flip(pack, HEADER_BYTES)
    return first_content(pack)


@defect
def record_frame_flipped(folder: Path) -> str:
    """A bit of a record."""
    pack = largest_pack(folder, b"R")
    flip(pack, HEADER_BYTES + 30)
    return first_content(pack)


@defect
def index_flipped(folder: Path) -> str:
    """A bit of the last entry of an index."""
    pack = largest_pack(folder, b"C")
    flip(pack, -FOOTER_BYTES - ENTRY_BYTES + 8)
    return pack.stem


@defect
def footer_flipped(folder: Path) -> str:
    """A bit of a footer."""
    pack = largest_pack(folder, b"C")
    flip(pack, -40)
    return pack.stem


@defect
def pack_truncated(folder: Path) -> str:
    """The second half of a pack is gone."""
    pack = largest_pack(folder, b"C")
    data = pack.read_bytes()
    replace(pack, data[: len(data) // 2])
    return pack.stem


@defect
def pack_empty(folder: Path) -> str:
    """A pack of no bytes, as some file systems leave after a power cut."""
    pack = largest_pack(folder, b"R")
    replace(pack, b"")
    return pack.stem


@defect
def pack_missing(folder: Path) -> str:
    """A pack of contents is gone."""
    pack = largest_pack(folder, b"C")
    pack.unlink()
    return pack.stem


@defect
def record_pack_missing(folder: Path) -> str:
    """A pack of records is gone, commits that others have as a parent among them."""
    pack = pack_of_record(folder, "polite")
    pack.unlink()
    return pack.stem


def pack_of_record(folder: Path, subject: str) -> Path:
    """The record pack of the commit with a subject."""
    with closing(sqlite3.connect(folder / "catalog.db")) as connection:
        row = connection.execute(
            "SELECT packs.id FROM commits JOIN contents ON contents.content = commits.id "
            "JOIN packs ON packs.number = contents.pack WHERE commits.message = ?",
            (subject,),
        ).fetchone()
    return folder / "packs" / row[0][:2] / f"{row[0]}.pack"


@defect
def pack_is_a_folder(folder: Path) -> str:
    """A folder lies where a pack was."""
    pack = largest_pack(folder, b"C")
    pack.unlink()
    pack.mkdir()
    return pack.stem


@defect
def log_torn(folder: Path) -> str:
    """The last line of refs.log is half there."""
    replace(folder / "refs.log", (folder / "refs.log").read_bytes()[:-100])
    return ""


@defect
def log_missing(folder: Path) -> str:
    """There is no refs.log."""
    (folder / "refs.log").unlink()
    return ""


@defect
def log_line_flipped(folder: Path) -> str:
    """A bit of a line in the middle of refs.log."""
    flip(folder / "refs.log", 1500)
    return "refs.log"


@defect
def log_line_missing(folder: Path) -> str:
    """A line in the middle of refs.log is gone."""
    lines = (folder / "refs.log").read_bytes().splitlines(keepends=True)
    replace(folder / "refs.log", b"".join(lines[:3] + lines[4:]))
    return "refs.log"


@defect
def log_of_another(folder: Path) -> str:
    """refs.log is text that never was a log."""
    replace(folder / "refs.log", b"once upon a time\n" * 100)
    return "refs.log"


@defect
def catalog_missing(folder: Path) -> str:
    """There is no catalog."""
    (folder / "catalog.db").unlink()
    return str(folder / "catalog.db")


@defect
def catalog_garbage(folder: Path) -> str:
    """The catalog's first page is noise."""
    data = (folder / "catalog.db").read_bytes()
    replace(folder / "catalog.db", b"\xa5" * 4096 + data[4096:])
    return str(folder / "catalog.db")


@defect
def catalog_truncated(folder: Path) -> str:
    """Half of the catalog is gone."""
    data = (folder / "catalog.db").read_bytes()
    replace(folder / "catalog.db", data[: len(data) // 2])
    return "catalog.db"


@defect
def catalog_of_a_later_version(folder: Path) -> str:
    """A later version migrated the catalog."""
    in_catalog(folder, "UPDATE alembic_version SET version_num = '9999'")
    return str(folder / "catalog.db")


@defect
def catalog_without_a_commit_s_message(folder: Path) -> str:
    """A row of the catalog does not say what the record says."""
    in_catalog(folder, "UPDATE commits SET message = 'never said' WHERE message = 'polite'")
    return "polite"


@defect
def head_missing(folder: Path) -> str:
    """There is no HEAD among the refs of the catalog."""
    in_catalog(folder, "DELETE FROM refs WHERE name = 'HEAD'")
    return "HEAD"


@defect
def head_nonsense(folder: Path) -> str:
    """HEAD is no symbolic ref."""
    in_catalog(folder, "UPDATE refs SET value = 'main' WHERE name = 'HEAD'")
    return "HEAD"


@defect
def branch_nonsense(folder: Path) -> str:
    """A branch is no id."""
    in_catalog(folder, "UPDATE refs SET value = ? WHERE name = 'refs/heads/main'", "z" * 64)
    return "refs/heads/main"


@defect
def branch_elsewhere(folder: Path) -> str:
    """A branch names a commit that is not stored."""
    in_catalog(folder, "UPDATE refs SET value = ? WHERE name = 'refs/heads/main'", "0" * 64)
    return "refs/heads/main"


@defect
def format_unknown(folder: Path) -> str:
    """A later version of the format."""
    replace(folder / "format", b"rblstore 2\n")
    return str(folder)


@defect
def format_missing(folder: Path) -> str:
    """No format file: no repository."""
    (folder / "format").unlink()
    return str(folder.parent)


@defect
def config_nonsense(folder: Path) -> str:
    """The settings are not TOML."""
    replace(folder / "config.toml", b"\xff[[storage = \n")
    return "config.toml"


@defect
def config_unknown_setting(folder: Path) -> str:
    """A setting that no version has: a later one's, or a slip of the pen."""
    replace(folder / "config.toml", b"[storage]\ncompresion = 'max'\n")
    return "config.toml"


def add_record(folder: Path, data: bytes) -> ContentId:
    """Stores bytes as a record, in a pack that the catalog knows."""
    writer = PackWriter(DiskBackend(folder), "R", is_stored=lambda _: False)
    added = writer.add([data])
    summary = writer.finish()
    assert summary is not None
    (location,) = summary.locations
    with closing(sqlite3.connect(folder / "catalog.db")) as connection, connection:
        number = connection.execute("SELECT max(number) + 1 FROM packs").fetchone()[0]
        connection.execute("INSERT INTO packs VALUES (?, ?, 'R', ?)", (number, summary.pack, summary.size))
        connection.execute(
            "INSERT INTO contents (content, pack, size, first_entry, entries, stored) VALUES (?, ?, ?, ?, ?, ?)",
            (location.content, number, location.size, location.first_entry, location.entries, location.stored),
        )
    return added.content


@defect
def record_of_a_later_version(folder: Path) -> str:
    """A record of a version that this one does not read."""
    return add_record(folder, b'rblstore/commit/2\n{"composition":"later"}')


@defect
def record_of_a_reserved_kind(folder: Path) -> str:
    """A record of a kind that version 1 only reserves."""
    return add_record(folder, b"rblstore/tombstone/1\n{}")


@defect
def record_without_members(folder: Path) -> str:
    """A record that is canonical JSON, and lacks what its kind has."""
    return add_record(folder, b"rblstore/commit/1\n" + json.dumps({"author": "nobody"}).encode())


def damaged(whole: Path, root: Path, name: str) -> str:
    """Copies a repository and spoils the copy.

    Args:
        whole: The folder that holds ``.rbl``.
        root: The copy's, which does not exist yet.
        name: Of the defect.

    Returns:
        The object that is damaged, as messages name it; empty where nothing is lost.
    """
    shutil.copytree(whole, root)
    return DEFECTS[name](root / ".rbl")
