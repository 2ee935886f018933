"""``export --format in-toto``: a statement about a commit's verification, or about how a behavior was trained."""

from __future__ import annotations

from typing import ClassVar

from rblstore.divergence.uncertainty import intervals_of
from rblstore.errors import NotFoundError, UsageError
from rblstore.objects.evidence_records import Verification
from rblstore.objects.history_records import Commit, Composition
from rblstore.objects.ids import CommitId, RecordId, is_full_id
from rblstore.operations.commit_files import commit_files
from rblstore.operations.export_facts import identity_part, signature_facts, slot_part
from rblstore.provenance.document_facts import VerificationFact
from rblstore.provenance.in_toto import training_statement, verification_statement
from rblstore.repository import Store
from rblstore.revisions import find_record, resolve


class NothingToAttestError(NotFoundError):
    """There is nothing that a statement could be made of."""

    code: ClassVar[str] = "nothing_to_attest"


def statement_bytes(
    store: Store, revision: str = "HEAD", *, verification: str | None = None, behavior: str | None = None
) -> bytes:
    """An in-toto statement as canonical JSON (RFC 8785): the same bytes for the same records.

    Args:
        store: The repository.
        revision: Which commit.
        verification: A verification of it, by id or unique prefix; None for the latest one.
        behavior: A behavior of it, by its slot's name: SLSA provenance of its training in place of a verification.

    Raises:
        UnknownRevisionError: No such revision or verification.
        NothingToAttestError: The commit has no such verification or behavior, or nothing is known of its training.
        ForgottenError: Weights that have to be read for their digest were removed on purpose.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    commit = resolve(store, revision).commit
    if behavior is not None:
        if verification is not None:
            raise UsageError(
                "a statement is about a verification or about a behavior, not about both",
                object=behavior[:80],
                hint="Leave out one of them, or write two statements.",
            )
        return _training(store, commit, behavior)
    fact = _verification(store, commit, verification)
    intervals = {name: found.as_json() for name, found in intervals_of(fact.record.prompts).items()}
    return verification_statement(
        str(commit), commit_files(store, commit), fact, intervals, signature_facts(store, commit)
    )


def _verification(store: Store, commit: CommitId, wanted: str | None) -> VerificationFact:
    with store.catalog.read() as reader:
        about = list(reader.evidence(commit, "verification"))
    # As for statements, later is what its time says: the order of arrival proves nothing.
    found = sorted(((store.record(one, Verification), one) for one in about), key=lambda pair: pair[0].time)
    if wanted is not None:
        named = RecordId(wanted) if is_full_id(wanted) else find_record(store, wanted)
        found = [pair for pair in found if pair[1] == named]
    if not found:
        what = "no verification" if wanted is None else f"no verification {wanted[:64]}"
        raise NothingToAttestError(
            f"commit {commit.short} has {what}",
            object=commit,
            hint="Measure it: rbl verify; or attest how a behavior was trained: --behavior NAME.",
        )
    record, record_id = found[-1]
    return VerificationFact(record_id, record)


def _training(store: Store, commit: CommitId, name: str) -> bytes:
    composition = store.record(store.record(commit, Commit).composition, Composition)
    slot = composition.slot(name)
    if slot is None:
        names = ", ".join(one.name for one in composition.slots) or "none"
        raise NothingToAttestError(
            f"commit {commit.short} has no behavior {name[:80]!r}", object=name[:80], hint=f"It has: {names}."
        )
    part = slot_part(store, slot)
    if not part.said.training:
        raise NothingToAttestError(
            f"nothing is known of the training of {name!r}",
            object=slot.behavior,
            hint="Training loops record it (repo.training); else state it: rbl state.",
        )
    builder = part.said.training.get("library.rblstore")
    return training_statement(identity_part(store, composition.identity), part, builder)
