"""Which contents of a pack are stored as differences, and from what: read off its index, without its frames."""

from __future__ import annotations

from itertools import compress, count
from typing import Final

from rblstore.storage.backend import Backend
from rblstore.storage.pack_format import ENTRY_BYTES, Footer, pack_key

_BLOCK_ENTRIES: Final = 8192
# Where an entry has its flags and its base's id, and the flag for having one (docs/format.md, Packs).
_FLAGS_AT: Final = 74
_BASE_AT: Final = 96
_ID_BYTES: Final = 32
_HAS_BASE: Final = bytes(value & 1 for value in range(256))


def bases_of(backend: Backend, footer: Footer) -> dict[str, tuple[str, ...]]:
    """The bases of every content of a pack that has some; contents stored by themselves are left out.

    The index is not checked against the pack's id, and the ids are plain text: this is for counting, not for reading.

    Args:
        backend: Where the pack is.
        footer: Its footer.

    Raises:
        CorruptError, ReadError: The pack is missing or has been cut short, or the system refused.
    """
    key = pack_key(footer.pack)
    found: dict[str, tuple[str, ...]] = {}
    named: dict[bytes, str] = {}  # one base serves many
    for first in range(0, footer.entries, _BLOCK_ENTRIES):
        length = min(_BLOCK_ENTRIES, footer.entries - first) * ENTRY_BYTES
        block = backend.read(key, footer.index_offset + first * ENTRY_BYTES, length)
        for number in compress(count(), block[_FLAGS_AT::ENTRY_BYTES].translate(_HAS_BASE)):
            start = number * ENTRY_BYTES
            raw = block[start + _BASE_AT : start + _BASE_AT + _ID_BYTES]
            if raw not in named:
                named[raw] = raw.hex()
            content = block[start : start + _ID_BYTES].hex()
            bases = found.get(content, ())
            if named[raw] not in bases:
                found[content] = (*bases, named[raw])
    return found
