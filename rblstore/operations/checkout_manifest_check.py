"""Whether a checkout's manifest says what the commit that it names says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rblstore.checkpoints.checkout_layout import MANIFEST_FILE, CheckoutManifest
from rblstore.checkpoints.merging import CannotMergeError
from rblstore.forgotten import ForgottenError
from rblstore.objects.history_records import Commit, Composition
from rblstore.operations.checkout_merged import is_summed_by_peft
from rblstore.operations.commit_files import commit_files
from rblstore.repository import Store

# Plain LoRA is summed to the same bits everywhere, by us.
_ROUNDING: Final = " (summed by PEFT, which may round otherwise on another machine)"


def manifest_differences(store: Store, manifest: CheckoutManifest) -> Iterator[str]:
    """What differs, in words: composition, identity, behaviors, and the digests of files that the store knows.

    Of a merged checkout no digests of sums are stored: its weights are read, summed and hashed anew. Of a partial one
    only what was taken is looked at.

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
    try:
        known = commit_files(store, manifest.commit, "merged" if manifest.form == "merged" else "adapters")
    except ForgottenError:
        return  # what was removed on purpose is a finding of its own
    except CannotMergeError as error:
        yield f"form: there is no merged checkout of the commit ({error.message})"
        return
    said = {file.path: str(file.sha256) for file in manifest.files}
    whole = manifest.form != "partial"
    lacking = known.keys() - said.keys() - {MANIFEST_FILE} if whole else set()
    added = said.keys() - known.keys() if whole else set()
    changed = {path for path in said.keys() & known.keys() if said[path] != known[path]}
    note = _ROUNDING if changed and manifest.form == "merged" and is_summed_by_peft(store, composition) else ""
    for path in sorted(lacking | added | changed):
        yield f"{path}{note}" if path in changed and path.endswith(".safetensors") else path
