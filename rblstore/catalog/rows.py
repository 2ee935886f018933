"""What leaves the catalog in place of rows, and reading single values out of a file that may be damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rblstore.catalog.engine import CatalogDamagedError
from rblstore.errors import InputError
from rblstore.objects.ids import AnyId, CommitId, CompositionId, PackId
from rblstore.objects.locations import PackKind


@dataclass(frozen=True)
class PackRow:
    """One pack.

    Attributes:
        pack: Its id.
        kind: ``C`` for contents, ``R`` for records.
        size: Bytes of the file.
    """

    pack: PackId
    kind: PackKind
    size: int


@dataclass(frozen=True)
class CommitRow:
    """One commit of the graph.

    Attributes:
        id: The commit's.
        composition: What the model is made of.
        parents: None for a root, two or more for a merge; in the commit's own order.
        generation: 1 for a root, else 1 more than the largest of its parents'.
        author: As recorded.
        time: As recorded, RFC 3339.
        message: As recorded.
    """

    id: CommitId
    composition: CompositionId
    parents: tuple[CommitId, ...]
    generation: int
    author: str
    time: str
    message: str

    @property
    def subject(self) -> str:
        """The message's first line."""
        return self.message.split("\n", 1)[0]


def shown(value: object) -> str:
    """The beginning of a value, for messages; it may be of any type and as large as SQLite lets it be."""
    return repr(value[:80]) if isinstance(value, (str, bytes)) else repr(value)[:80]


def read_id(value: Any, of: type[AnyId]) -> AnyId:
    """An id out of a row.

    Raises:
        CatalogDamagedError: The value is not one.
    """
    if not isinstance(value, str):
        raise CatalogDamagedError(f"the catalog holds {shown(value)} in the place of an object id")
    try:
        return of(value)
    except InputError as error:
        raise CatalogDamagedError(f"the catalog is damaged: {error.message}") from error


def read_count(value: Any) -> int:
    """A number that is not negative out of a row.

    Raises:
        CatalogDamagedError: The value is not one.
    """
    if type(value) is not int or value < 0:
        raise CatalogDamagedError(f"the catalog holds {shown(value)} in the place of a number")
    return value


def read_text(value: Any) -> str:
    """Text out of a row.

    Raises:
        CatalogDamagedError: The value is not text.
    """
    if not isinstance(value, str):
        raise CatalogDamagedError(f"the catalog holds {shown(value)} in the place of text")
    return value


def read_pack_kind(value: Any) -> PackKind:
    """A pack's kind out of a row.

    Raises:
        CatalogDamagedError: The value is none.
    """
    if value == "C":
        return "C"
    if value == "R":
        return "R"
    raise CatalogDamagedError(f"the catalog holds {shown(value)} in the place of a kind of pack")
