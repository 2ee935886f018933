"""Packs, contents, records and evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from catalog_samples import TIME, commit, composition, fresh_catalog, made, pack, statement

from rblstore.catalog.database import Catalog
from rblstore.errors import InputError, UsageError
from rblstore.objects.evidence_records import Baseline, Probe, Prompt, PromptDivergence, PromptOutput, Verification
from rblstore.objects.history_records import Operation, Tag
from rblstore.objects.ids import (
    BaselineId,
    BehaviorId,
    CommitId,
    CompositionId,
    ContentId,
    PackId,
    ProbeId,
    RecordId,
    TagId,
    VerificationId,
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with fresh_catalog(tmp_path / "catalog.db") as opened:
        yield opened


def test_contents_are_found_where_the_pack_says(catalog: Catalog) -> None:
    summary = pack("one", 1200)
    with catalog.write() as writer:
        writer.add_pack(summary)
    unknown = made(ContentId, "unknown")
    with catalog.read() as reader:
        assert reader.location(summary.locations[7].content) == summary.locations[7]
        assert reader.location(unknown) is None
        assert reader.locations([*(each.content for each in summary.locations), unknown]) == {
            each.content: each for each in summary.locations
        }
        assert reader.contents_of_pack(summary.pack) == list(summary.locations)
        assert reader.contents_of_pack(made(PackId, "unknown")) == []
        assert reader.has_content(summary.locations[0].content)
        assert not reader.has_content(unknown)
        assert reader.missing_contents(each.content for each in summary.locations) == set()
        assert reader.missing_contents([unknown, *(each.content for each in summary.locations), unknown]) == {unknown}
        assert isinstance(reader.location(summary.locations[0].content).pack, PackId)


def test_a_content_in_two_packs_is_taken_from_the_first(catalog: Catalog) -> None:
    # The ids sort the other way round, so that order by id would show.
    first, second = sorted((pack("a", 3), pack("b", 2, "R")), key=lambda each: each.pack, reverse=True)
    with catalog.write() as writer:
        writer.add_pack(first)
        writer.add_pack(second)
    shared = first.locations[0].content
    with catalog.read() as reader:
        assert [row.pack for row in reader.packs()] == [first.pack, second.pack]
        assert [(row.kind, row.size) for row in reader.packs()] == [(first.kind, 1000), (second.kind, 1000)]
        assert reader.location(shared) == first.locations[0]
        assert reader.locations([shared]) == {shared: first.locations[0]}
        assert reader.all_locations(shared) == [first.locations[0], second.locations[0]]


def test_adding_a_pack_again_changes_nothing(catalog: Catalog) -> None:
    summary = pack("one", 5)
    for _ in range(2):
        with catalog.write() as writer:
            writer.add_pack(summary)
    with catalog.read() as reader:
        assert len(reader.packs()) == 1
        assert len(reader.contents_of_pack(summary.pack)) == 5


def test_a_number_beyond_what_a_database_holds_is_typed(catalog: Catalog) -> None:
    with pytest.raises(InputError, match="63 bits"), catalog.write() as writer:
        writer.add_pack(replace(pack("big", 0), size=2**64))


def test_records_come_back_in_the_order_of_their_addition(catalog: Catalog) -> None:
    base, base_record = composition()
    root, root_record = commit("root", of=base)
    child, child_record = commit("child", root, of=base)
    said = statement(made(BehaviorId, 1))
    with catalog.write() as writer:
        # A commit before its parent, and a record twice: neither may disturb the order.
        writer.add_records(
            [(child, child_record), said, (base, base_record), (root, root_record), said, (child, child_record)]
        )
        writer.add_record(*said)
    expected = [(child, "commit"), (said[0], "statement"), (base, "composition"), (root, "commit")]
    with catalog.read() as reader:
        assert list(reader.records()) == expected
        assert list(reader.records("commit")) == [expected[0], expected[3]]
        assert list(reader.records("tag")) == []
        assert reader.record_kind(base) == "composition"
        assert reader.record_kind(made(RecordId, "unknown")) is None


def test_many_records_are_paged_without_loss(catalog: Catalog) -> None:
    added = [statement(made(BehaviorId, at)) for at in range(4100)]
    with catalog.write() as writer:
        writer.add_records(iter(added))
    with catalog.read() as reader:
        assert [id for id, _ in reader.records()] == [id for id, _ in added]


def test_prefixes_find_records_and_only_theirs(catalog: Catalog) -> None:
    added = dict(statement(made(BehaviorId, at)) for at in range(300))
    alike = [RecordId("abcdef" + digit + "0" * 57) for digit in "0123456789abcdef"]
    with catalog.write() as writer:
        writer.add_records(added.items())
        writer.add_records((id, composition()[1]) for id in reversed(alike))
    with catalog.read() as reader:
        for id in added:
            assert reader.find_records(id[:17]) == [(id, "statement")]
        assert reader.find_records("ABCDEF", limit=20) == [(id, "composition") for id in alike]
        assert len(reader.find_records("abcdef")) == 10
        assert reader.find_records("abcdef5") == [(alike[5], "composition")]
        assert reader.find_records(alike[5]) == [(alike[5], "composition")]
        assert reader.find_records("abcdef", ["statement", "commit"]) == []
        for refused in ("abcde", "abcdefg", "", "%%%%%%", "a" * 65):
            with pytest.raises(UsageError):
                reader.find_records(refused)


def test_evidence_is_found_from_every_subject_in_order(catalog: Catalog) -> None:
    base, base_record = composition()
    root, root_record = commit("root", of=base)
    probe = Probe((Prompt("p", (1, 2), None),), ((0,),), "all", None)
    probe_id = ProbeId(Probe.id_of(probe.encode()))
    baseline = Baseline(
        base, probe_id, {}, "logits", "F32", (PromptOutput("p", (2, 3), made(ContentId, 1)),), "Ada", TIME
    )
    baseline_id = BaselineId(Baseline.id_of(baseline.encode()))
    verification = Verification(
        root, base, None, (), probe_id, baseline_id, {}, "exact", 1e-6, True, 0.0, 0.0, None, None, None, "none",
        (PromptDivergence("p", 0.0, 0.0, True),), "Ada", TIME,
    )  # fmt: skip
    lost = replace(verification, commit=None)
    tag = Tag("v1", root, "Ada", TIME, "")
    tag_id, verification_id, lost_id = made(TagId, 1), made(VerificationId, 1), made(VerificationId, 2)
    behavior = made(BehaviorId, 1)
    said = [statement(behavior, at) for at in range(20)]
    with catalog.write() as writer:
        writer.add_records([
            (root, root_record), (verification_id, verification), *said, (base, base_record), (probe_id, probe),
            (baseline_id, baseline), (tag_id, tag), (lost_id, lost),
        ])  # fmt: skip
    with catalog.read() as reader:
        assert reader.evidence(behavior) == [id for id, _ in said]
        assert reader.evidence(behavior, "statement") == [id for id, _ in said]
        assert reader.evidence(behavior, "verification") == []
        assert reader.evidence(root) == [verification_id, tag_id]
        assert reader.evidence(root, "tag") == [tag_id]
        assert reader.evidence(base) == [verification_id, baseline_id, lost_id]
        assert reader.evidence(base, "verification") == [verification_id, lost_id]
        assert reader.evidence(probe_id) == [baseline_id]
        assert reader.evidence_for([root, behavior, base], "verification") == {
            root: [verification_id],
            behavior: [],
            base: [verification_id, lost_id],
        }


def test_compositions_are_rebuilt_exactly(catalog: Catalog) -> None:
    plain, plain_record = composition("plain")
    mixed, mixed_record = composition("mixed", ("b", "x", 0.1), ("a", "y", 1e-300), ("c", "x", 1.0))
    with catalog.write() as writer:
        writer.add_records([(mixed, mixed_record), (plain, plain_record)])
        writer.add_records([composition("other", ("z", "x", 1.0))])
    with catalog.read() as reader:
        assert reader.composition(plain) == plain_record
        assert reader.composition(mixed) == mixed_record
        assert reader.composition(mixed).encode() == mixed_record.encode()
        assert reader.composition(made(CompositionId, "unknown")) is None


def test_many_compositions_come_at_once(catalog: Catalog) -> None:
    made_here = dict(composition(f"c{at}", *((f"s{slot}", at, 1.0) for slot in range(at % 3))) for at in range(700))
    with catalog.write() as writer:
        writer.add_records(made_here.items())
    with catalog.read() as reader:
        assert reader.compositions([*made_here, made(CompositionId, "unknown")]) == made_here
        assert reader.compositions([]) == {}


@pytest.mark.parametrize("page", [1, 3, 2000])
def test_sizes_of_contents_come_sorted_and_each_once(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("rblstore.catalog.content_index._PAGE", page)
    with catalog.write() as writer:
        writer.add_pack(pack("first", 6))
        writer.add_pack(pack("second", 6, first=3))  # three of them are there already, of other sizes
        writer.add_pack(pack("records", 2, "R", first=20))
    sizes = {made(ContentId, at): (10 + at, 5) for at in range(6)}
    with catalog.read() as reader:
        found = list(reader.content_sizes("C"))
        assert [content for content, *_ in found] == sorted(made(ContentId, at) for at in range(9))
        assert {content: tuple(rest) for content, *rest in found}.items() >= sizes.items()
        assert list(reader.content_sizes("C", found[4][0])) == found[5:]
        assert sorted(reader.content_sizes("R")) == sorted((made(ContentId, 20 + at), 10 + at, 5) for at in range(2))


def test_operations_are_no_records(catalog: Catalog) -> None:
    operation = Operation(1, None, "init", (), None, "Ada", TIME)
    with pytest.raises(InputError, match="operation"), catalog.write() as writer:
        writer.add_record(Operation.id_of(operation.encode()), operation)


def test_ids_that_come_out_are_typed(catalog: Catalog) -> None:
    root, record = commit("root")
    with catalog.write() as writer:
        writer.add_record(root, record)
    with catalog.read() as reader:
        row = reader.commit(root)
    assert (type(row.id), type(row.composition)) == (CommitId, CompositionId)
