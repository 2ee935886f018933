"""Checking a whole pack: what ``rbl fsck`` asks storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.objects.locations import ContentLocation
from rblstore.storage.backend import Backend, ReadError
from rblstore.storage.codecs import UnknownCodecError
from rblstore.storage.pack_reader import CorruptContentError, PackReader
from rblstore.storage.stored_content import Find


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a pack.

    Attributes:
        pack: Which pack.
        content: The content whose bytes are damaged; None where the pack itself is (then everything in it is in doubt).
        problem: What is wrong, for people.
    """

    pack: PackId
    content: ContentId | None
    problem: str


def check_pack(backend: Backend, pack: PackId, *, full: bool, find: Find | None = None) -> Iterator[Damage]:
    """Everything that is wrong with a pack; nothing is changed, and damage raises nothing.

    Args:
        backend: Where the pack is.
        pack: Which one.
        full: Whether to decode every frame and compare the SHA-256 of every content, too. Without it: header, footer,
            index against the pack's id, and every frame's XXH3, which between them cover every byte.
        find: Finds what frames are differences from; a full check needs it.

    Yields:
        At most one damage for each content, or one for the pack.
    """
    reader = PackReader(backend, pack, find)
    try:
        locations = reader.summary().locations
    except (CorruptError, ReadError) as error:
        yield Damage(pack, None, error.message)
        return
    for location in locations:
        try:
            if full:
                for _ in reader.read(location):
                    pass
            else:
                _check_frames(reader, location)
        except CorruptContentError as error:
            # What is damaged may be its base, which the message names.
            yield Damage(pack, location.content, error.why if error.content == location.content else error.message)
        except (CorruptError, ReadError, UnknownCodecError) as error:
            yield Damage(pack, location.content, error.message)


def _check_frames(reader: PackReader, location: ContentLocation) -> None:
    for entry in reader.entries(location.first_entry, location.entries):
        reader.stored_frame(entry)
