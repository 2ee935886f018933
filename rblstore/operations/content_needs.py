"""Who needs which contents: what refs reach, and what the records of identities, behaviors and evidence name.

Made for counting over a whole history: a record of many tensors takes a fraction of a millisecond here and ten to
parse. Every record's digest is checked, and all but the ids in it is left unread; records are in canonical form, in
which the patterns below cannot occur inside a string.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final

from rblstore.catalog.rows import CommitRow
from rblstore.catalog.snapshot import batches
from rblstore.errors import CorruptError
from rblstore.forgotten import gone_on_purpose, tombstones_of
from rblstore.objects import limits
from rblstore.objects.canonical import VERSION
from rblstore.objects.evidence_records import Statement
from rblstore.objects.history_records import Composition, Tag
from rblstore.objects.ids import CommitId, CompositionId, ContentId, RecordId
from rblstore.repository import HEADS, TAGS, Store
from rblstore.storage.pack_bases import bases_of

# How many identities, behaviors or baselines are held at once.
_AT_ONCE: Final = 100
_SIGNATURE: Final = f"rblstore/signature/{VERSION}\n"
_BASELINE: Final = f"rblstore/baseline/{VERSION}\n"
_FILES: Final = tuple(f"rblstore/{kind}/{VERSION}\n" for kind in ("identity", "behavior", "training-state"))
_PARTS: Final = ("identity", "behavior", "baseline", "training-state", "signature")
_CONTENT_ONLY: Final = _FILES[:2]
_MANIFEST: Final = f"rblstore/file-manifest/{VERSION}\n"
_CONTENT = re.compile(r'\{"content":"([0-9a-f]{64})","(?:dtype|id)":')
_BUNDLE = re.compile(r'"bundle":"([0-9a-f]{64})","identity":')
_HEADER = re.compile(r'\{"header":"([0-9a-f]{64})","tensors":')
_TEXTS = re.compile(r'\],"contents":\[("[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*)\],"subject":')
_FILE = re.compile(
    r'\{"manifest":(?:null|"([0-9a-f]{64})"),"path":"(?:[^"\\]|\\.)*","sha256":"([0-9a-f]{64})","size":([0-9]{1,16})\}'
)


@dataclass(frozen=True)
class Reach:
    """What branches and tags reach.

    Attributes:
        refs: The commit at each branch and tag, by full name.
        commits: All of them, newest first.
        compositions: What each commit composes.
        baselines: The baselines of each composition that has some.
        states: The training states of each commit that has some.
        signatures: Over each commit that has some, and over the verifications that vouch for it.
    """

    refs: Mapping[str, CommitId]
    commits: tuple[CommitRow, ...]
    compositions: Mapping[CompositionId, Composition]
    baselines: Mapping[CompositionId, tuple[RecordId, ...]]
    states: Mapping[CommitId, tuple[RecordId, ...]]
    signatures: Mapping[CommitId, tuple[RecordId, ...]]

    def parts(self, composition: CompositionId) -> tuple[RecordId, ...]:
        """The identity and behaviors of a composition, and its baselines."""
        return (*parts_of(self.compositions[composition]), *self.baselines.get(composition, ()))


def parts_of(composition: Composition) -> tuple[RecordId, ...]:
    """The identity of a composition and its behaviors, each once."""
    return tuple(dict.fromkeys((composition.identity, *(slot.behavior for slot in composition.slots))))


def reach(store: Store, *more: CommitId) -> Reach:
    """What branches and tags reach; the catalog alone is read, and the records of tags.

    Args:
        store: The repository.
        more: Commits whose compositions are wanted besides, without what they reach.

    Raises:
        CorruptError: A composition is not in the catalog.
    """
    with store.catalog.read() as reader:
        refs = {name: CommitId(value) for name, value in reader.refs(HEADS).items()}
        for name, value in reader.refs(TAGS).items():
            refs[name] = store.record(RecordId(value), Tag).target
        commits = tuple(reader.commits(list(dict.fromkeys(refs.values()))))
        composed = {row.composition for row in commits}
        composed.update(row.composition for row in map(reader.commit, more) if row is not None)
        compositions = reader.compositions(composed)
        for missing in composed - compositions.keys():
            raise CorruptError(
                f"composition {missing.short} is not in the catalog", object=missing, hint="Run: rbl reindex"
            )
        evidence = reader.evidence_for(composed, "baseline")
        told = {*(row.id for row in commits), *more}
        trained = reader.evidence_for(told, "training-state")
        verified = reader.evidence_for(told, "verification")
        signed = reader.evidence_for({*told, *(one for found in verified.values() for one in found)}, "signature")
    baselines = {CompositionId(subject): tuple(found) for subject, found in evidence.items() if found}
    states = {CommitId(subject): tuple(found) for subject, found in trained.items() if found}
    signatures = {
        commit: found
        for commit in told
        if (found := tuple(one for subject in (commit, *verified[commit]) for one in signed[subject]))
    }
    return Reach(refs, commits, compositions, baselines, states, signatures)


@dataclass(frozen=True)
class Part:
    """An identity, a behavior, a baseline, a training state or a signature.

    Attributes:
        id: The record's.
        raw: Bytes of its files; 0 for a baseline or a signature, which have none.
        contents: What it names, each once; plain text, since making a typed id of each would take most of the time.
    """

    id: RecordId
    raw: int
    contents: frozenset[str]


def read_parts(store: Store, wanted: Iterable[RecordId]) -> Iterator[Part]:
    """Reads what identities, behaviors, baselines, training states and signatures name; a few at a time.

    What was removed on purpose and is gone is left out. Texts that statements bring along count as their subject's.

    Raises:
        CorruptError: A record is missing or damaged.
    """
    for batch in batches(dict.fromkeys(wanted), _AT_ONCE):
        forgotten = tombstones_of(store, batch)
        files: dict[RecordId, list[tuple[str, str, str]]] = {}
        named: dict[RecordId, list[str]] = {}
        for record_id, text in _record_texts(store, batch, _PARTS):
            # What names contents names no files, and the other way round.
            contained = _CONTENT if text.startswith(_BASELINE) else _BUNDLE if text.startswith(_SIGNATURE) else None
            files[record_id] = [] if contained else _FILE.findall(text)
            named[record_id] = contained.findall(text) if contained else []
        texts = _texts_about(store, batch)
        manifests = {RecordId(manifest) for found in files.values() for manifest, _, _ in found if manifest}
        within: dict[str, list[str]] = {}
        for manifest_id, text in _record_texts(store, manifests, ("file-manifest",)):
            within[manifest_id] = [*_HEADER.findall(text), *_CONTENT.findall(text)]
        for record_id, found in files.items():
            contents = set(named[record_id]).union(*(within[manifest] for manifest, _, _ in found if manifest))
            contents.update(sha256 for manifest, sha256, _ in found if not manifest)
            if record_id in forgotten:
                contents -= gone_on_purpose(store, [record_id])
            contents |= texts[record_id]
            yield Part(record_id, sum(int(size) for _, _, size in found), frozenset(contents))


def _texts_about(store: Store, subjects: Collection[RecordId]) -> dict[RecordId, frozenset[str]]:
    """The contents that statements about each of some records bring along."""
    with store.catalog.read() as reader:
        stated = reader.evidence_for(subjects, Statement.KIND)
    found: dict[str, list[str]] = {}
    for record_id, text in _record_texts(store, {one for ids in stated.values() for one in ids}, (Statement.KIND,)):
        for listed in _TEXTS.findall(text):
            found.setdefault(record_id, []).extend(listed.replace('"', "").split(","))
    return {
        subject: frozenset(content for one in stated.get(subject, ()) for content in found.get(one, ()))
        for subject in subjects
    }


def names_in(text: str) -> tuple[list[str], list[str]] | None:
    """The records and the contents that an identity, a behavior or a file manifest names; None for any other record.

    Args:
        text: The record's stored bytes, whose digest was compared.
    """
    if text.startswith(_MANIFEST):
        return [], [*_HEADER.findall(text), *_CONTENT.findall(text)]
    if not text.startswith(_CONTENT_ONLY):
        return None
    files = _FILE.findall(text)
    return (
        [manifest for manifest, _, _ in files if manifest],
        [sha256 for manifest, sha256, _ in files if not manifest],
    )


def _record_texts(store: Store, wanted: Collection[RecordId], kinds: Collection[str]) -> Iterator[tuple[RecordId, str]]:
    with store.catalog.read() as reader:
        locations = reader.locations(ContentId(record_id) for record_id in wanted)
    prefixes = tuple(f"rblstore/{kind}/{VERSION}\n" for kind in kinds)
    for record_id in wanted:
        location = locations.get(ContentId(record_id)) or store.location(record_id)
        data = store.pack(location.pack).read_small(location, limits.RECORD_BYTES + 128)
        text = data.decode("utf-8", "replace")
        if not text.startswith(prefixes):
            raise CorruptError(
                f"the stored record {record_id.short} is no {' or '.join(kinds)}",
                object=record_id,
                hint="Run: rbl fsck --full",
            )
        yield record_id, text


def read_bases(store: Store) -> dict[str, tuple[str, ...]]:
    """What contents are stored as differences from: bases by content, for those that have some.

    Raises:
        CorruptError: A pack is missing or malformed.
    """
    with store.catalog.read() as reader:
        packs = reader.packs()
    found: dict[str, tuple[str, ...]] = {}
    for row in packs:
        if row.kind == "C":
            for content, bases in bases_of(store.backend, store.pack(row.pack).footer()).items():
                found.setdefault(content, bases)
    return found


def gather(
    parts: Iterable[Part],
    marks: Mapping[RecordId, int],
    bases: Mapping[str, tuple[str, ...]],
    needing: int,
    only: Set[str] | None = None,
) -> dict[str, int]:
    """Who needs each content, as the union of the marks of those that do.

    A base is needed by whoever needs what is stored as a difference from it. Where some part names it, too, only the
    marks of ``needing`` reach it that way; else it belongs to those that need it, as if they named it.

    Args:
        parts: Every part that counts.
        marks: A set of bits for each of them.
        bases: See :func:`read_bases`.
        needing: The bits that say "needs"; the others say "names".
        only: Contents of interest, or None for all.
    """
    found: dict[str, int] = {}
    beneath: dict[str, int] = {}
    for part in parts:
        mark = marks[part.id]
        for content in part.contents if only is None else part.contents & only:
            found[content] = found.get(content, 0) | mark
        if bases:
            for content in part.contents & bases.keys():
                for base in bases[content]:
                    if only is None or base in only:
                        beneath[base] = beneath.get(base, 0) | mark
    for base, mark in beneath.items():
        found[base] = found[base] | mark & needing if base in found else mark
    return found
