"""Where contents are: what storage finds out and the catalog remembers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rblstore.objects.ids import ContentId, PackId

PackKind = Literal["C", "R"]


@dataclass(frozen=True)
class ContentLocation:
    """One stored copy of a content.

    Attributes:
        content: Which content.
        size: Raw bytes.
        pack: The pack that holds it.
        first_entry: Number of its first entry in the pack's index, from 0.
        entries: How many entries it has there.
        stored: Bytes that its frames take in the pack.
    """

    content: ContentId
    size: int
    pack: PackId
    first_entry: int
    entries: int
    stored: int


@dataclass(frozen=True)
class PackSummary:
    """One pack and what is in it.

    Attributes:
        pack: Its id.
        kind: ``C`` for contents, ``R`` for records.
        size: Bytes of the file.
        locations: Every content in it, in index order.
    """

    pack: PackId
    kind: PackKind
    size: int
    locations: tuple[ContentLocation, ...]
