"""Creating and opening: the schema is the one in code, and nothing else is opened."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from catalog_samples import fresh_catalog
from sqlalchemy import create_engine

from rblstore.catalog import schema_history
from rblstore.catalog.database import Catalog, CatalogExistsError
from rblstore.catalog.engine import CatalogDamagedError, CatalogFailedError
from rblstore.catalog.schema_history import CatalogVersionError, MigrationsMissingError, migrations_folder
from rblstore.catalog.tables import metadata
from rblstore.errors import CorruptError, NoRepositoryError


def definitions(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: " ".join(sql.split()).replace("( ", "(").replace(" )", ")") for name, sql in rows}


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_migrated_schema_is_the_one_in_code(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog.db").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrated_definitions_are_those_in_code_to_the_letter(tmp_path: Path) -> None:
    # compare_metadata sees neither WITHOUT ROWID nor the names of keys.
    Catalog.create(tmp_path / "migrated.db").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'code.db'}")
    metadata.create_all(engine)
    engine.dispose()
    migrated = definitions(tmp_path / "migrated.db")
    assert migrated.pop("alembic_version")
    code = definitions(tmp_path / "code.db")
    assert code.keys() == migrated.keys()
    for name, sql in code.items():
        # The order of a table's constraints means nothing.
        assert sorted(migrated[name].split(", ")) == sorted(sql.split(", ")) or migrated[name] == sql, name


def test_expected_revision_is_the_newest_script() -> None:
    scripts = ScriptDirectory(str(migrations_folder()))
    assert scripts.get_current_head() == schema_history.REVISION
    assert {script.revision for script in scripts.walk_revisions()} == {
        schema_history.REVISION,
        *schema_history.EARLIER_REVISIONS,
    }


def test_creating_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), caplog.at_level(logging.WARNING):
        Catalog.create(tmp_path / "catalog.db").close()
    assert (out.getvalue(), err.getvalue(), caplog.records) == ("", "", [])


def test_creating_takes_paths_with_percent_and_question_marks(tmp_path: Path) -> None:
    folder = tmp_path / "50%s #1?mode=memory"
    folder.mkdir()
    Catalog.create(folder / "catalog.db").close()
    assert [path.name for path in folder.iterdir()] == ["catalog.db"]
    Catalog.open(folder / "catalog.db").close()


def test_migrations_may_lie_under_a_percent_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(migrations_folder(), tmp_path / "100%s" / "migrations")
    monkeypatch.setattr(schema_history, "migrations_folder", lambda: folder)
    Catalog.create(tmp_path / "catalog.db").close()
    Catalog.open(tmp_path / "catalog.db").close()


def test_creating_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"mine")
    with pytest.raises(CatalogExistsError):
        Catalog.create(path)
    assert path.read_bytes() == b"mine"


def test_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise MigrationsMissingError("none")

    monkeypatch.setattr(schema_history, "migrations_folder", missing)
    with pytest.raises(MigrationsMissingError):
        Catalog.create(tmp_path / "catalog.db")
    assert list(tmp_path.iterdir()) == []


def test_creating_in_a_missing_folder_is_typed(tmp_path: Path) -> None:
    with pytest.raises(CatalogFailedError, match="No such file"):
        Catalog.create(tmp_path / "missing" / "catalog.db")


def test_migrations_are_found_inside_the_package_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "rblstore"
    (package / "catalog").mkdir(parents=True)
    monkeypatch.setattr(schema_history, "__file__", str(package / "catalog" / "schema_history.py"))
    beside = package.parent / "migrations"
    beside.mkdir()
    (beside / "env.py").touch()  # another project's
    with pytest.raises(MigrationsMissingError):
        migrations_folder()
    for folder in (beside, package / "migrations"):
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").touch()
        (folder / "versions" / "0001_catalog.py").touch()
        assert migrations_folder() == folder


@pytest.mark.parametrize(
    ("statements", "error", "words"),
    [
        (["UPDATE alembic_version SET version_num = '9999'"], CatalogVersionError, "newer"),
        (["UPDATE alembic_version SET version_num = '0000'"], CatalogVersionError, "older"),
        (["DELETE FROM alembic_version"], CatalogDamagedError, "which version"),
        (["DROP TABLE alembic_version"], CatalogDamagedError, "which version"),
        (["DROP TABLE refs"], CatalogDamagedError, "no table 'refs'"),
        (["DROP TABLE refs", "CREATE VIEW refs AS SELECT 1 AS name, 2 AS value"], CatalogDamagedError, "did not make"),
        (
            ["CREATE TRIGGER extra AFTER INSERT ON refs BEGIN DELETE FROM records; END"],
            CatalogDamagedError,
            "did not make",
        ),
    ],
)
def test_other_schemas_are_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statements: list[str], error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(schema_history, "EARLIER_REVISIONS", frozenset({"0000"}))
    path = tmp_path / "catalog.db"
    fresh_catalog(path).close()
    execute(path, *statements)
    before = path.read_bytes()
    with pytest.raises(error, match=words) as caught:
        Catalog.open(path)
    assert "rbl reindex" in caught.value.hint
    assert path.read_bytes() == before


def test_families_of_the_errors() -> None:
    assert issubclass(CatalogVersionError, NoRepositoryError)
    assert issubclass(CatalogDamagedError, CorruptError)


@pytest.mark.parametrize("content", [None, b"", b"not a database, but long enough to look like one" * 100])
def test_files_that_are_no_catalog_are_damage(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "catalog.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CatalogDamagedError) as caught:
        Catalog.open(path)
    assert "rbl reindex" in str(caught.value.hint)
    assert path.exists() == (content is not None)


def test_opening_and_reading_import_neither_alembic_nor_the_orm(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    fresh_catalog(path).close()
    script = (
        "import sys; from pathlib import Path; from rblstore.catalog.database import Catalog\n"
        f"with Catalog.open(Path({str(path)!r})) as catalog, catalog.read() as reader:\n"
        "    reader.refs(); reader.last_operation(); list(reader.commits([]))\n"
        "heavy = ('alembic', 'sqlalchemy.orm', 'mako', 'numpy', 'torch', 'yaml')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """SQLite quotes what it cannot read, and the driver cannot read the quotation."""
    path = tmp_path / "catalog.db"
    Catalog.create(path).close()
    data = path.read_bytes()
    assert b"CREATE TABLE packs (" in data
    path.write_bytes(data.replace(b"CREATE TABLE packs (", b"CREATE TABLE\xa0packs ("))
    with pytest.raises(CatalogDamagedError):
        Catalog.open(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIRTUAL TABLE evil USING fts5(x)",
        "CREATE TABLE evil (x, y GENERATED ALWAYS AS (hex(x)))",
        "CREATE TABLE evil (x, y as (hex(x)) stored)",
        "CREATE TABLE evil (x CHECK (length(hex(x)) > 1))",
        "CREATE TABLE evil (x DEFAULT (hex(randomblob(9))))",
        "CREATE INDEX evil ON refs (hex(name))",
        "CREATE INDEX evil ON refs (name) WHERE length(name) > 1",
        "CREATE INDEX evil ON refs (name COLLATE NOCASE)",
    ],
)
def test_a_schema_that_computes_is_refused(tmp_path: Path, statement: str) -> None:
    Catalog.create(tmp_path / "catalog.db").close()
    execute(tmp_path / "catalog.db", statement)
    with pytest.raises(CatalogDamagedError, match=r"evil.*which rblstore did not make"):
        Catalog.open(tmp_path / "catalog.db")


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_a_pipe_beside_a_catalog_hangs_nobody(tmp_path: Path, suffix: str) -> None:
    Catalog.create(tmp_path / "catalog.db").close()
    os.mkfifo(tmp_path / f"catalog.db{suffix}")
    with pytest.raises(CatalogDamagedError, match="is no regular file"):
        Catalog.open(tmp_path / "catalog.db")
