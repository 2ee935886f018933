"""The catalog's tables, as the newest migration leaves them.

==================  ====================================================================================================
packs               one row a pack; ``number`` stands for its id in ``contents``
contents            one row a stored copy of a content: (content, pack), and where in the pack's index it begins
records             every record but operations; ``position`` is the order in which they came
compositions        identity of each composition, with its ``slots`` in order
commits             what a log shows; ``generation`` is 1 for a root, else 1 + the largest of the parents'
commit_parents      the graph's edges, in the order of the commit's parents
evidence            which records point at a subject: statement -> subject, baseline -> composition and probe,
                    verification -> composition and commit, training state and study -> commit, tag -> commit
refs                name -> object id, or ``ref: NAME``
operations          the operation log: canonical JSON as text, from which everything else about an operation is read
==================  ====================================================================================================

Ids are their 64 hexadecimal digits as text. As 32-byte BLOBs the file would be a third smaller, but each of 140,000
values would be converted in Python on its way in and out, refs (which hold ids beside symbolic names) would not join
with anything, and no SQLite shell would show a person what they look for. The one place where the width counts is
``contents``, so there the pack is a number, and the table is its own primary-key index (WITHOUT ROWID).

``subject``, ``composition``, ``identity`` and ``behavior`` are not foreign keys: the catalog of a damaged repository
must hold everything that is left, for `rbl fsck` to say what is missing.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

packs = Table(
    "packs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(1), nullable=False),
    Column("size", BigInteger, nullable=False),
)

contents = Table(
    "contents",
    metadata,
    Column("content", String(64), primary_key=True),
    Column("pack", Integer, ForeignKey("packs.number"), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("first_entry", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(None, contents.c.pack, contents.c.first_entry)

records = Table(
    "records",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
)
Index(None, records.c.kind, records.c.position)

compositions = Table(
    "compositions",
    metadata,
    Column("id", String(64), ForeignKey("records.id"), primary_key=True),
    Column("identity", String(64), nullable=False),
)

slots = Table(
    "slots",
    metadata,
    Column("composition", String(64), ForeignKey("compositions.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("behavior", String(64), nullable=False, index=True),
    Column("weight", Double, nullable=False),
    sqlite_with_rowid=False,
)

commits = Table(
    "commits",
    metadata,
    Column("id", String(64), ForeignKey("records.id"), primary_key=True),
    Column("composition", String(64), nullable=False, index=True),
    Column("generation", Integer, nullable=False),
    Column("author", Text, nullable=False),
    Column("time", String(64), nullable=False),
    Column("message", Text, nullable=False),
)

commit_parents = Table(
    "commit_parents",
    metadata,
    Column("commit", String(64), ForeignKey("commits.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("parent", String(64), ForeignKey("commits.id"), nullable=False, index=True),
    sqlite_with_rowid=False,
)

evidence = Table(
    "evidence",
    metadata,
    Column("subject", String(64), primary_key=True),
    Column("position", Integer, ForeignKey("records.position"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

refs = Table(
    "refs",
    metadata,
    Column("name", String(1024), primary_key=True),
    Column("value", String(1024), nullable=False),
)

operations = Table(
    "operations",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("id", String(64), nullable=False, unique=True),
    Column("body", Text, nullable=False),
    Column("undoes", String(64)),
)
