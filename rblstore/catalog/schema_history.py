"""The catalog's schema over time: creating it through Alembic, and refusing a catalog of another version.

``migrations/`` lies beside the package in a source checkout and inside it in a wheel. Alembic is imported only here,
and only where a schema is created: opening a catalog compares one row with :data:`REVISION`. A catalog of another
version is not migrated in passing: everything in it is derived, so it is rebuilt when its owner asks for that.

A new version: change ``tables.py``, add ``migrations/versions/NNNN_what.py``, move :data:`REVISION` to it and the old
one to :data:`EARLIER_REVISIONS`. A test compares tables and migrations.
"""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from rblstore.catalog.engine import CatalogDamagedError, translating
from rblstore.catalog.tables import metadata
from rblstore.errors import NoRepositoryError, RblError

REVISION: Final = "0001"
EARLIER_REVISIONS: Final[frozenset[str]] = frozenset()

_EXPRESSION: Final = re.compile(r"\b(as|check|collate|default|generated|select|virtual|where)\b", re.IGNORECASE)
_PLAIN_INDEX: Final = re.compile(r'CREATE (UNIQUE )?INDEX \w+ ON \w+ \("?\w+"?(, "?\w+"?)*\)')

# Alembic keeps the environment that it runs in module globals.
_alembic_lock = threading.Lock()


class CatalogVersionError(NoRepositoryError):
    """The catalog was made by an older or newer rblstore."""

    code = "catalog_version"


class MigrationsMissingError(RblError):
    """The installation lacks the migration scripts."""

    code = "migrations_missing"


def migrations_folder() -> Path:
    """The folder of migration scripts: inside the installed package, else beside it in a source checkout.

    Raises:
        MigrationsMissingError: It is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "migrations", package.parent / "migrations"):
        # Another project's `migrations` could lie beside an installed package, so its own first script is asked for.
        if (folder / "env.py").is_file() and (folder / "versions" / "0001_catalog.py").is_file():
            return folder
    raise MigrationsMissingError(
        "this installation of rblstore has no migration scripts", object=str(package), hint="Install rblstore again."
    )


def create_schema(connection: Connection) -> None:
    """Runs every migration in the connection's transaction; logs, and writes to no stream."""
    from alembic import command
    from alembic.config import Config

    config = Config(stdout=io.StringIO())
    # ConfigParser interpolates percent signs, which a path may hold.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _alembic_lock:
        command.upgrade(config, "head")


def _computes(kind: str, sql: object) -> bool:
    if kind == "index" and sql is None:  # SQLite made it for a constraint
        return False
    if not isinstance(sql, str):
        return True
    return _PLAIN_INDEX.fullmatch(sql) is None if kind == "index" else _EXPRESSION.search(sql) is not None


def check_schema(connection: Connection, path: str) -> None:
    """Compares what a catalog says of its schema with what this version reads, in plain SQL.

    Raises:
        CatalogDamagedError: Tables or the version are missing, or something is there that no migration made.
        CatalogVersionError: Another version made it.
    """
    with translating(path):
        objects = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master").all()
    # A trigger or a view in the place of a table would run what somebody else wrote, and so would a virtual table, and
    # an expression in a table's columns, constraints and indexes.
    foreign = [name for kind, name, sql in objects if kind not in ("table", "index") or _computes(kind, sql)]
    if foreign:
        raise CatalogDamagedError(f"the catalog holds {foreign[0]!r:.80}, which rblstore did not make", object=path)
    tables = {name for kind, name, _ in objects if kind == "table"}
    if "alembic_version" not in tables:
        raise CatalogDamagedError("the catalog does not say which version made it", object=path)
    with translating(path):
        versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    if len(versions) != 1 or not isinstance(versions[0], str):
        raise CatalogDamagedError("the catalog does not say which version made it", object=path)
    found = str(versions[0])[:40]
    if found != REVISION:
        age = "older" if found in EARLIER_REVISIONS else "newer"
        raise CatalogVersionError(
            f"the catalog has schema {found}, made by {'an' if age == 'older' else 'a'} {age} rblstore; "
            f"this one reads {REVISION}",
            object=path,
            hint="Run `rbl reindex` to rebuild the catalog for this version"
            + ("." if age == "older" else ", or upgrade rblstore."),
        )
    missing = metadata.tables.keys() - tables
    if missing:
        raise CatalogDamagedError(f"the catalog has no table {min(missing)!r}", object=path)
