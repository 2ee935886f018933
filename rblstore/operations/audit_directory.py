"""Auditing what lies on a disk: a checkout, by its commit; any other file or directory, by the digests of its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.loose_files import hash_file, loose_files
from rblstore.errors import InputError
from rblstore.objects.ids import ContentId, RecordId
from rblstore.operations.audit import AuditRequest, AuditResult, FileFound, RuleSetUsed, audit_commit
from rblstore.operations.audit_parts import Component, component, datasets_of, parts_of, tokenizers_of
from rblstore.operations.holders import History, Holder, holders
from rblstore.operations.progress import Meter, Progress
from rblstore.provenance.engine import find
from rblstore.provenance.parts import Subject
from rblstore.repository import Store

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
        InputError: It cannot be read, holds no files, or is a checkout whose ``rbl-composition.json`` is malformed.
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


def _loose(store: Store, path: Path, request: AuditRequest, progress: Progress | None) -> AuditResult:
    listed, unread = loose_files(path)
    if not listed:
        raise InputError(
            f"{path!s:.200} holds no files: there is nothing to audit",
            object=str(path)[:200],
            hint="Give a file, a directory that holds some, or a revision.",
        )
    meter = Meter(progress, sum(file.size for file in listed))
    digests = [
        (file.path, file.size, hash_file(file, partial(meter.add, "hashing"), tensors=False).sha256) for file in listed
    ]
    by_digest: dict[ContentId, list[Holder]] = {}
    wanted = {digest for _, _, digest in digests}
    for holder in holders(store):
        for digest in {entry.sha256 for entry in holder.files} & wanted:
            by_digest.setdefault(digest, []).append(holder)
    found = {holder.id: holder for several in by_digest.values() for holder in several}
    commits, names = History.of(store).composing(found) if found else ({}, {})
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
    unknown += [f"{one.path} ({one.reason})" for one in unread]
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


def _covering(holders: Iterable[Holder], sizes: Mapping[ContentId, int]) -> set[RecordId]:
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
