"""in-toto statements: what a verification found about a commit's files, and how a behavior is said to be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.errors import InputError
from rblstore.objects.canonical import encode_json
from rblstore.provenance.document_facts import PROJECT, PartFact, SignatureFact, VerificationFact, is_url
from rblstore.provenance.libraries import needed_for

if TYPE_CHECKING:
    from in_toto_attestation.v1.statement import Statement

VERIFICATION_TYPE: Final = f"{PROJECT}/attestation/verification/v1"
"""The type of the predicate about a verification; docs/exports.md says what its members are."""
PROVENANCE_TYPE: Final = "https://slsa.dev/provenance/v1"
TRAINING_TYPE: Final = f"{PROJECT}/attestation/training/v1"
"""SLSA's ``buildType`` of a behavior that was trained."""
_WHAT: Final = "in-toto statements"


class BadStatementError(InputError):
    """What an in-toto statement would be made of is not what one can be made of."""

    code: ClassVar[str] = "bad_statement"


def verification_statement(
    commit: str,
    files: Mapping[str, str],
    fact: VerificationFact,
    intervals: Mapping[str, Any],
    signatures: Sequence[SignatureFact],
) -> bytes:
    """A statement that a verification of a commit found this.

    Args:
        commit: Its id, which is the SHA-256 of its record.
        files: Of a checkout of it: SHA-256 by path.
        fact: The verification.
        intervals: Of its means, as documents have them.
        signatures: That are recorded over the commit.

    Returns:
        RFC 8785 JSON.

    Raises:
        MissingLibraryError: The library is not installed.
    """
    record = fact.record
    predicate: dict[str, Any] = {name: value for name, value in record.body().items() if name != "prompts"}
    predicate.update(
        verification=str(fact.id),
        commit=commit,
        intervals=dict(intervals),
        measured_prompts=len(record.prompts),
    )
    with needed_for(_WHAT):
        from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
        from in_toto_attestation.v1.statement import Statement
    # A record's id is the SHA-256 of its bytes, so that a commit is a subject like its files.
    signed = {"signatures": [_signature(one) for one in signatures]} if signatures else {}
    subjects = [ResourceDescriptor(name=f"commit/{commit}", digest={"sha256": commit}, annotations=signed).pb]
    subjects += [ResourceDescriptor(name=path, digest={"sha256": sha256}).pb for path, sha256 in files.items()]
    return _canonical(Statement(subjects, VERIFICATION_TYPE, predicate))


def training_statement(identity: PartFact, behavior: PartFact, builder: str | None) -> bytes:
    """SLSA provenance of a behavior: from what, on what and with what settings it is said to have been trained.

    Args:
        identity: What it was trained on.
        behavior: Whose files are the subjects.
        builder: The version of rblstore that ran the training, or None where that is not known.

    Returns:
        RFC 8785 JSON.

    Raises:
        MissingLibraryError: The library is not installed.
    """
    with needed_for(_WHAT):
        import in_toto_attestation.predicates.provenance.v1.provenance_pb2 as slsa
        from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
        from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
        from in_toto_attestation.v1.statement import Statement
    run: dict[str, Any] = {"builder": {"id": PROJECT, **({"version": {"rblstore": builder}} if builder else {})}}
    predicate = {
        "buildDefinition": {
            "buildType": TRAINING_TYPE,
            "externalParameters": dict(sorted(behavior.said.training.items())),
            "internalParameters": {"form": behavior.form or "", "type": behavior.type or ""},
            "resolvedDependencies": _dependencies(identity, behavior),
        },
        "runDetails": run,
    }
    try:
        known = MessageToDict(ParseDict(predicate, slsa.Provenance()))
    except ParseError as error:
        raise BadStatementError(
            f"the training of {behavior.label} has no SLSA form: {error}",
            object=behavior.id,
            hint="See what is said of it: rbl state NAME",
        ) from error
    subjects = [ResourceDescriptor(name=f"behavior/{behavior.id}", digest={"sha256": str(behavior.id)}).pb]
    subjects += [ResourceDescriptor(name=file.path, digest={"sha256": file.sha256}).pb for file in behavior.files]
    return _canonical(Statement(subjects, PROVENANCE_TYPE, known))


def _signature(fact: SignatureFact) -> dict[str, Any]:
    found = {
        "id": str(fact.id),
        "method": fact.method,
        "key": None if fact.key is None else str(fact.key),
        "identity": fact.identity,
        "bundle": {"sha256": str(fact.bundle)},
        "author": fact.author,
        "time": fact.time,
    }
    return {name: value for name, value in found.items() if value is not None}


def _dependencies(identity: PartFact, behavior: PartFact) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": identity.label,
            **_uri(identity.said.sources),
            "digest": {"sha256": str(identity.id)},
            "annotations": {"kind": "rblstore identity"},
        }
    ]
    found += [
        {
            "name": data.name,
            **_uri((data.name,)),
            "annotations": {
                "kind": "dataset",
                "licenses": list(data.licenses),
                **({"revision": data.revision} if data.revision else {}),
            },
        }
        for data in behavior.said.datasets
    ]
    return found


def _uri(sources: Sequence[str]) -> dict[str, str]:
    return next(({"uri": source} for source in sources if is_url(source)), {})


def _canonical(statement: Statement) -> bytes:
    from google.protobuf.json_format import MessageToDict

    try:
        statement.validate()
    except ValueError as error:
        raise BadStatementError(
            f"an in-toto statement cannot be made: {error}", hint="Nothing of it is a file."
        ) from error
    return encode_json(MessageToDict(statement.pb))
