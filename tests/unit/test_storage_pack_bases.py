"""Reading off a pack's index what is stored as a difference, and from what."""

from __future__ import annotations

import hashlib

import pytest

from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.storage import pack_bases
from rblstore.storage.codecs import NO_PARAMETERS, RAW
from rblstore.storage.memory import MemoryBackend
from rblstore.storage.pack_format import (
    HEADER_BYTES,
    Footer,
    FrameEntry,
    encode_entry,
    encode_footer,
    encode_header,
    pack_id,
    pack_key,
)

DELTA = 3


def content(name: object) -> ContentId:
    return ContentId(hashlib.sha256(str(name).encode()).hexdigest())


def packed(backend: MemoryBackend, *frames: tuple[object, object | None]) -> Footer:
    """A pack of one-byte frames of contents, each with the base that is given for it."""
    index = b"".join(
        encode_entry(
            FrameEntry(
                content(name),
                1,
                0,
                HEADER_BYTES + at,
                1,
                1,
                0,
                RAW if base is None else DELTA,
                0,
                NO_PARAMETERS,
                None if base is None else content(base),
            )
        )
        for at, (name, base) in enumerate(frames)
    )
    header = encode_header("C")
    pack = pack_id(header, [index])
    stage = backend.stage()
    footer = Footer(HEADER_BYTES + len(frames), len(frames), pack)
    stage.write(header + bytes(len(frames)) + index + encode_footer(footer))
    stage.publish(pack_key(pack))
    return footer


@pytest.mark.parametrize("block", [1, 2, 8192])
def test_contents_with_bases_are_found(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(pack_bases, "_BLOCK_ENTRIES", block)
    backend = MemoryBackend()
    pack = packed(backend, ("a", None), ("b", "x"), ("c", "x"), ("c", "y"), ("c", "x"), ("d", None), ("e", "b"))
    assert pack_bases.bases_of(backend, pack) == {
        content("b"): (content("x"),),
        content("c"): (content("x"), content("y")),
        content("e"): (content("b"),),
    }


def test_contents_by_themselves_have_none() -> None:
    backend = MemoryBackend()
    assert pack_bases.bases_of(backend, packed(backend, ("a", None), ("b", None))) == {}


def test_a_pack_that_is_not_there_is_named() -> None:
    with pytest.raises(CorruptError):
        pack_bases.bases_of(MemoryBackend(), Footer(HEADER_BYTES, 1, PackId("0" * 64)))
