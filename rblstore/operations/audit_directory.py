"""Auditing what lies on a disk: a checkout, by its commit; any other file or directory, by the digests of its files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.source_directory import is_excluded
from rblstore.errors import InputError
from rblstore.objects.content_records import Behavior, FileEntry, Identity
from rblstore.objects.ids import CommitId, ContentId, RecordId
from rblstore.operations.audit import AuditRequest, AuditResult, FileFound, RuleSetUsed, audit_commit
from rblstore.operations.audit_parts import Component, component, datasets_of, parts_of, tokenizers_of
from rblstore.operations.log import ref_names
from rblstore.operations.progress import Meter, Progress
from rblstore.provenance.engine import find
from rblstore.provenance.parts import Subject
from rblstore.repository import Store

_CHUNK: Final = 1 << 20
_MAX_FILES: Final = 100_000
_MAX_NAMED: Final = 20
_MAX_COMMITS: Final = 20


def audit_path(
    store: Store, path: Path, request: AuditRequest | None = None, progress: Progress | None = None
) -> AuditResult:
    """Audits a checkout of this repository as the commit that it is, anything else by the digests of its files.

    Args:
        store: The repository.
        path: A directory or file.
        request: How.
        progress: Is told bytes hashed.

    Raises:
        InputError: It cannot be read, or is a checkout whose ``rbl-composition.json`` is malformed.
        BadRulesError: A file of rules breaks the schema.
        CorruptError: A record is missing or damaged.
    """
    request = request or AuditRequest()
    request.book()
    if _is_checkout(path):
        from rblstore.operations.checkout_manifest import read_manifest

        manifest = read_manifest(path)
        with store.catalog.read() as reader:
            known = reader.commit(manifest.commit) is not None
        if known:
            return _checkout(store, path, manifest, request)
    return _loose(store, path, request, progress)


def _is_checkout(path: Path) -> bool:
    try:
        return (path / MANIFEST_FILE).is_file()
    except (OSError, ValueError):  # a name that is too long; whoever reads it next says so
        return False


def _checkout(store: Store, path: Path, manifest: CheckoutManifest, request: AuditRequest) -> AuditResult:
    from rblstore.checkpoints.checkout_comparison import compare_directory

    differences = [*_lies(store, manifest), *(f"{one.path} {one.kind}" for one in compare_directory(path, manifest))]
    if len(differences) > _MAX_NAMED:
        differences[_MAX_NAMED:] = [f"and {len(differences) - _MAX_NAMED} more files"]
    asked = replace(request, merged=request.merged or manifest.form == "merged")
    return replace(audit_commit(store, manifest.commit, asked, differences), path=str(path))


def _lies(store: Store, manifest: CheckoutManifest) -> Iterator[str]:
    """What the checkout's own manifest says otherwise than the commit that it names: anybody can write such a file."""
    from rblstore.operations.checkout_manifest_check import manifest_differences

    for difference in manifest_differences(store, manifest):
        yield f"{MANIFEST_FILE} says otherwise than the commit: {difference}"


@dataclass(frozen=True)
class _Holder:
    """An identity or behavior with the files that it came in."""

    role: str
    id: RecordId
    form: str | None
    files: tuple[FileEntry, ...]


def _loose(store: Store, path: Path, request: AuditRequest, progress: Progress | None) -> AuditResult:
    digests = list(_digests(path, progress))
    holders = list(_holders(store))
    by_digest: dict[ContentId, list[_Holder]] = {}
    wanted = {digest for _, _, digest in digests}
    for holder in holders:
        for digest in {entry.sha256 for entry in holder.files} & wanted:
            by_digest.setdefault(digest, []).append(holder)
    found = {holder.id: holder for several in by_digest.values() for holder in several}
    commits, names = _composing(store, found)
    components: list[Component] = [
        component(store, one.role, names.get(one.id, ""), one.id, 1.0, one.form, one.files)
        for one in sorted(found.values(), key=lambda one: (one.role != "identity", names.get(one.id, ""), one.id))
    ]
    labels = {one.id: one.label for one in components}
    files = []
    for name, size, digest in digests:
        holding = by_digest.get(digest, ())
        within = dict.fromkeys(commit for one in holding for commit in commits[one.id])
        files.append(
            FileFound(name, size, digest, tuple(labels[one.id] for one in holding), tuple(within)[:_MAX_COMMITS])
        )
    if path.is_dir():
        chosen = _covering(found.values(), {digest: size for _, size, digest in digests})
        components = [one for one in components if one.id in chosen]
    every = (*components, *tokenizers_of(components), *datasets_of(components))
    unknown = [file.path for file in files if not file.parts]
    if len(unknown) > _MAX_NAMED:
        unknown[_MAX_NAMED:] = [f"and {len(unknown) - _MAX_NAMED} more"]
    subject = Subject(
        parts_of(every), tuple(request.use), request.merged, request.data_reaches_weights, unknown=tuple(unknown)
    )
    book = request.book()
    rules = {name: rule for name, rule in book.rules.items() if rule.check != "unverified"}
    return AuditResult(
        None, None, tuple(request.use), every, find(subject, rules), (), (), (),
        tuple(RuleSetUsed(name, version) for name, version in book.sets), request.merged,
        request.data_reaches_weights, None, None, str(path), tuple(files),
    )  # fmt: skip


def _covering(holders: Iterable[_Holder], sizes: Mapping[ContentId, int]) -> set[RecordId]:
    """Those that explain what lies in a directory: a card that ten adapters share makes it none of the other nine.

    Args:
        holders: Whatever holds a file of the directory.
        sizes: Bytes of the directory's files.
    """
    held = {one.id: frozenset(entry.sha256 for entry in one.files) & sizes.keys() for one in holders}
    chosen: dict[RecordId, frozenset[ContentId]] = {}
    covered: set[ContentId] = set()
    for own in sorted(held, key=lambda one: (-sum(sizes[digest] for digest in held[one]), one)):
        if not held[own] <= covered or held[own] in chosen.values():
            chosen[own] = held[own]
            covered |= held[own]
    return set(chosen)


def _holders(store: Store) -> Iterator[_Holder]:
    with store.catalog.read() as reader:
        identities = [one for one, _ in reader.records(Identity.KIND)]
        behaviors = [one for one, _ in reader.records(Behavior.KIND)]
    for one in identities:
        yield _Holder("identity", one, None, store.record(one, Identity).files)
    for one in behaviors:
        behavior = store.record(one, Behavior)
        yield _Holder("behavior", one, behavior.form, behavior.files)


def _composing(
    store: Store, wanted: Mapping[RecordId, _Holder]
) -> tuple[dict[RecordId, list[CommitId]], dict[RecordId, str]]:
    """The commits that compose each record, newest first, and the slot's name in the newest."""
    commits: dict[RecordId, list[CommitId]] = {one: [] for one in wanted}
    names: dict[RecordId, str] = {}
    if not wanted:
        return commits, names
    with store.catalog.read() as reader:
        rows = list(reader.commits(list(ref_names(store, reader)), None))
        compositions = reader.compositions(row.composition for row in rows)
    for row in rows:
        composition = compositions.get(row.composition)
        if composition is None:
            continue
        if composition.identity in commits:
            commits[composition.identity].append(row.id)
        for slot in composition.slots:
            if slot.behavior in commits:
                commits[slot.behavior].append(row.id)
                names.setdefault(slot.behavior, slot.name)
    return commits, names


def _digests(path: Path, progress: Progress | None) -> Iterator[tuple[str, int, ContentId]]:
    """Every file's path, size and SHA-256; of a directory in the order of their paths."""
    try:
        found = _files(path) if path.is_dir() else [(str(path), path)]
        sizes = [file.stat().st_size for _, file in found]
        meter = Meter(progress, sum(sizes))
        for name, file in found:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise InputError(f"{file} is not a regular file", object=str(file))
                digest, size = hashlib.sha256(), 0
                while data := stream.read(_CHUNK):
                    digest.update(data)
                    size += len(data)
                    meter.add("hashing", len(data))
            yield name, size, ContentId(digest.hexdigest())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path!s:.200} could not be read: {getattr(error, 'strerror', None) or error}", object=str(path)[:200]
        ) from error


def _files(path: Path) -> Sequence[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            if not is_excluded(relative) and file.is_file():
                found.append((relative, file))
            if len(found) > _MAX_FILES:
                raise InputError(
                    f"{path} holds more than {_MAX_FILES} files",
                    object=str(path),
                    hint="Name the directory of the model itself.",
                )
    return found
