"""Which files a checkout of a commit has, with the digest of each: known before any is written."""

from __future__ import annotations

import hashlib

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutFile, CheckoutManifest, PlannedFile
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, ContentId
from rblstore.operations.checkout import checkout_slots, plan
from rblstore.operations.writing import source_parts
from rblstore.repository import Store


def commit_files(store: Store, commit: CommitId) -> dict[str, str]:
    """SHA-256 by path of every file of a checkout in the form ``adapters``, ``rbl-composition.json`` among them.

    Digests are those that are stored. Only weights that nobody committed as they are, of overlays that were not made on
    one another, are read to be hashed.

    Args:
        store: The repository.
        commit: Which commit.

    Raises:
        CorruptError: Something of it is missing or damaged.
        ForgottenError: Something of it was removed on purpose.
    """
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    planned = plan(store, composition)
    files = tuple(CheckoutFile(file.path, _digest(store, file), file.size) for file in planned)
    manifest = CheckoutManifest(
        "adapters", commit, composition_id, composition.identity, checkout_slots(composition, planned), files
    )
    found = {file.path: str(file.sha256) for file in files}
    found[MANIFEST_FILE] = hashlib.sha256(manifest.encode()).hexdigest()
    return found


def _digest(store: Store, file: PlannedFile) -> ContentId:
    if file.sha256 is not None:
        return file.sha256
    digest = hashlib.sha256()
    for part in source_parts(store, file.source):
        if isinstance(part, bytes):
            digest.update(part)
        else:
            for piece in store.content(part):
                digest.update(piece)
    return ContentId(digest.hexdigest())
