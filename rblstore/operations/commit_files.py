"""Which files a checkout of a commit has, with the digest of each: known before any is written."""

from __future__ import annotations

import hashlib

from rblstore.checkpoints.checkout_layout import (
    MANIFEST_FILE,
    CheckoutFile,
    CheckoutForm,
    CheckoutManifest,
    PlannedFile,
)
from rblstore.forgotten import require_remembered
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, ContentId
from rblstore.operations.checkout import checkout_slots, plan
from rblstore.operations.writing import source_parts
from rblstore.repository import Store


def commit_files(store: Store, commit: CommitId, form: CheckoutForm = "adapters") -> dict[str, str]:
    """SHA-256 by path of every file of a checkout, ``rbl-composition.json`` among them.

    Digests are those that are stored. Only weights that nobody committed as they are, of overlays that were not made on
    one another, are read to be hashed. Of the form ``merged`` all weights are read, summed and hashed; none is written.

    Args:
        store: The repository.
        commit: Which commit.
        form: Of the checkout.

    Raises:
        CannotMergeError: There is no merged checkout of it.
        CorruptError: Something of it is missing or damaged.
        ForgottenError: Something of it that has to be read was removed on purpose.
    """
    composition_id = store.record(commit, Commit).composition
    composition = store.record(composition_id, Composition)
    if form == "merged" and composition.slots:
        from rblstore.operations.checkout_merged import merged_files, merged_slots

        require_remembered(store, composition)
        slots, files = merged_slots(composition), merged_files(store, composition)
    else:
        planned = plan(store, composition)
        slots = checkout_slots(composition, planned)
        files = tuple(CheckoutFile(file.path, stored_digest(store, file), file.size) for file in planned)
    manifest = CheckoutManifest(form, commit, composition_id, composition.identity, slots, files)
    found = {file.path: str(file.sha256) for file in files}
    found[MANIFEST_FILE] = hashlib.sha256(manifest.encode()).hexdigest()
    return found


def stored_digest(store: Store, file: PlannedFile) -> ContentId:
    """SHA-256 of a file that a checkout writes; it is read where nobody committed it as it is.

    Raises:
        CorruptError: A content is missing or damaged.
    """
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
