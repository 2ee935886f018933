"""Whether a checkout's manifest says what the commit that it names says."""

from __future__ import annotations

from collections.abc import Iterator

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.forgotten import ForgottenError
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.commit_files import commit_files
from rblstore.repository import Store


def manifest_differences(store: Store, manifest: CheckoutManifest) -> Iterator[str]:
    """What differs, in words: composition, identity, behaviors, and the digests of files that the store knows.

    Of a merged checkout no digests of sums are stored, of a partial one only what was taken is looked at.

    Args:
        store: The repository.
        manifest: Of a commit that it has.

    Raises:
        CorruptError: Something of the commit is missing or damaged.
    """
    composition_id = store.record(manifest.commit, Commit).composition
    composition = store.record(composition_id, Composition)
    if manifest.composition != composition_id:
        yield "composition"
    if manifest.identity != composition.identity:
        yield "identity"
    slots = [(slot.name, slot.behavior, slot.weight) for slot in composition.slots]
    if [(slot.name, slot.behavior, slot.weight) for slot in manifest.slots] != slots:
        yield "behaviors"
    if manifest.form == "merged":
        return
    try:
        known = commit_files(store, manifest.commit)
    except ForgottenError:
        return  # what was removed on purpose is a finding of its own
    said = {file.path: str(file.sha256) for file in manifest.files}
    lacking = known.keys() - said.keys() - {MANIFEST_FILE} if manifest.form == "adapters" else set()
    added = said.keys() - known.keys() if manifest.form == "adapters" else set()
    changed = {path for path in said.keys() & known.keys() if said[path] != known[path]}
    yield from sorted(lacking | added | changed)
