"""Choosing bases: no base has one, whatever is asked for; and what storage and catalog do for a repack."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from catalog_samples import fresh_catalog, made, pack
from hypothesis import given
from hypothesis import strategies as st
from storage_samples import MemorySource, Shelf, noise, nudged, weights

from rblstore.catalog.writer import LastCopyError
from rblstore.errors import CorruptError
from rblstore.objects.ids import ContentId, PackId
from rblstore.operations.repack_bases import choose_bases
from rblstore.storage.codecs import DELTA
from rblstore.storage.pack_writer import PackWriter

NAMES = [made(ContentId, number) for number in range(8)]
A, B, C, D, *_ = NAMES
names = st.sampled_from(NAMES)


@given(
    st.dictionaries(names, st.lists(names, max_size=4, unique=True)),
    st.dictionaries(names, names),
    st.sets(st.tuples(names, names)),
)
def test_no_base_has_a_base(
    candidates: dict[ContentId, list[ContentId]],
    stored: dict[ContentId, ContentId],
    useless: set[tuple[ContentId, ContentId]],
) -> None:
    stored = {one: base for one, base in stored.items() if base not in stored}

    def helps(one: ContentId, base: ContentId) -> bool:
        return (one, base) not in useless

    chosen = choose_bases(lambda bases: candidates, stored, helps)
    assert not chosen.keys() & (stored.keys() | set(stored.values()))
    together = stored | chosen
    assert choose_bases(lambda bases: candidates, together, helps) == {}
    assert not set(together.values()) & together.keys()
    assert not useless & chosen.items()
    # What is left alone is itself a base, or nothing that it was offered would do.
    for one, offered in candidates.items():
        if one not in together and one not in together.values():
            roots = {together.get(other, other) for other in offered} - {one}
            assert all((one, root) in useless for root in roots)


def test_a_chain_has_one_base_and_goes_on_where_that_does_not_help() -> None:
    chain = {A: [B], B: [C], C: [D]}
    assert choose_bases(lambda bases: chain, {}, lambda one, base: True) == {A: D, B: D, C: D}
    assert choose_bases(lambda bases: chain, {}, lambda one, base: (one, base) != (C, D)) == {A: C, B: C}
    assert choose_bases(lambda bases: chain, {B: C}, lambda one, base: True) == {A: C}
    assert choose_bases(lambda bases: {A: [B, C]}, {}, lambda one, base: base == C) == {A: C}


def test_a_circle_and_a_long_chain() -> None:
    circle = {A: [B], B: [C], C: [A]}
    assert choose_bases(lambda bases: circle, {}, lambda one, base: True) == {A: C, B: C}
    many = [made(ContentId, ("many", number)) for number in range(5000)]
    long = {one: [two] for one, two in pairwise(many)}
    chosen = choose_bases(lambda bases: long, {}, lambda one, base: True)
    assert set(chosen.values()) == {many[-1]}


BASE = weights(5000)
FINE = nudged(BASE)


@pytest.fixture
def shelf() -> Shelf:
    found = Shelf()
    found.put(BASE, noise(10_000), b"", frame_bytes=4096)
    found.put(FINE, bases={FINE: BASE}, frame_bytes=4096)
    return found


def test_a_copied_content_is_stored_as_it_was(shelf: Shelf) -> None:
    added = weights(3000, seed=7)
    before = {data: shelf.entries(data) for data in (BASE, FINE, b"", noise(10_000))}
    with PackWriter(shelf.backend, "C", is_stored=lambda _: False, frame_bytes=4096) as writer:
        assert writer.size == 0
        writer.copy(shelf.stored(FINE))
        writer.add_source(MemorySource(added), element_width=2)
        for data in (b"", BASE, noise(10_000)):
            writer.copy(shelf.stored(data))
        size = writer.size
        summary = writer.finish()
    assert summary is not None
    assert summary.size == size
    shelf.learn(summary)
    assert shelf.reader(summary.pack).summary() == summary
    for data, entries in before.items():
        assert shelf.stored(data).location.pack == summary.pack
        assert b"".join(shelf.reader(summary.pack).read(shelf.stored(data).location)) == data
        assert [(one.codec, one.stored_length, one.parameters, one.base) for one in shelf.entries(data)] == [
            (one.codec, one.stored_length, one.parameters, one.base) for one in entries
        ]
    assert {entry.codec for entry in shelf.entries(FINE)} == {DELTA}


def test_a_damaged_content_is_not_copied(shelf: Shelf) -> None:
    shelf.rot(shelf.stored(BASE).location.pack, 3000)
    for data in (BASE, FINE):
        with PackWriter(shelf.backend, "C", is_stored=lambda _: False) as writer:
            with pytest.raises(CorruptError):
                writer.copy(shelf.stored(data))
            assert writer.finish() is None


def test_nothing_of_a_content_that_could_not_be_copied_is_published(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = shelf.stored(BASE)
    whole = stored.stored_frame
    monkeypatch.setattr(
        stored, "stored_frame", lambda frame: whole(frame) if frame.start == 0 else shelf.backend.read("packs/", 0, 0)
    )
    before = shelf.packs()
    with PackWriter(shelf.backend, "C", is_stored=lambda _: False) as writer:
        writer.add_bytes(b"first")
        with pytest.raises(Exception, match="key"):
            writer.copy(stored)
        with pytest.raises(Exception, match="finished or abandoned"):
            writer.finish()
    assert shelf.packs() == before


def test_only_packs_whose_contents_are_elsewhere_are_forgotten(tmp_path: Path) -> None:
    one, two = pack("one", 1200), pack("two", 600, first=600)
    records, all_of_it = pack("records", 1200, "R"), pack("all", 1200)
    with fresh_catalog(tmp_path / "catalog.db") as catalog:
        with catalog.write() as writer:
            for summary in (one, two, records):
                writer.add_pack(summary)
        with catalog.read() as reader:
            assert reader.copied_contents("R") == []
            assert reader.copied_contents("C") == sorted(location.content for location in two.locations)
        for gone in ([one], [two, one], [records], [all_of_it]):  # of the other kind is not elsewhere
            with pytest.raises(LastCopyError), catalog.write() as writer:
                writer.forget_packs(summary.pack for summary in gone)
            with catalog.read() as reader:
                assert [row.pack for row in reader.packs()] == [one.pack, two.pack, records.pack]
                assert reader.contents_of_pack(two.pack) == list(two.locations)
        with catalog.write() as writer:
            writer.add_pack(all_of_it)
            writer.forget_packs([one.pack, two.pack])
        with catalog.read() as reader:
            assert [row.pack for row in reader.packs()] == [records.pack, all_of_it.pack]
            assert reader.location(two.locations[5].content) == records.locations[605]
            assert reader.contents_of_pack(one.pack) == []
            assert reader.all_locations(one.locations[0].content)[1] == all_of_it.locations[0]
            assert isinstance(reader.packs()[0].pack, PackId)
