"""``verify-signature``: who vouches for a commit, a verification or a directory, and whether that holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rblstore.checkpoints.checkout_layout import CheckoutManifest
from rblstore.checkpoints.merging import CannotMergeError
from rblstore.errors import BadSignatureError, InputError, NotFoundError, UsageError
from rblstore.forgotten import ForgottenError
from rblstore.objects import limits
from rblstore.objects.evidence_records import Verification
from rblstore.objects.ids import CommitId, ContentId, RecordId, SignatureId, VerificationId
from rblstore.objects.signature_records import SIGNATURE_FILE, Signature
from rblstore.operations.checkout_manifest import read_manifest
from rblstore.operations.commit_files import commit_files
from rblstore.operations.directory_hashing import hash_directory
from rblstore.operations.result import Result
from rblstore.operations.sign import find_verification
from rblstore.operations.signatures import signatures_of
from rblstore.provenance.bundles import IN_TOTO, Bundle, WrongKeyError, read_bundle
from rblstore.provenance.signed_files import (
    OtherSubjectError,
    SignedCheckout,
    check_files,
    checkout_named,
    statement_of,
)
from rblstore.repository import Store
from rblstore.revisions import resolve

SignatureStatus = Literal["unsigned", "not_verified", "signed", "bad"]


@dataclass(frozen=True)
class Trust:
    """Who is trusted to sign; nobody unless something is given.

    Attributes:
        key: A public key, PEM.
        roots: Certificates that vouch for others, PEM.
        identity: Who must have signed with sigstore; with ``issuer``.
        issuer: Who must have said so.
    """

    key: bytes | None = None
    roots: bytes | None = None
    identity: str | None = None
    issuer: str | None = None

    @property
    def given(self) -> bool:
        """Whether anybody is trusted."""
        return self.key is not None or self.roots is not None or self.identity is not None


@dataclass(frozen=True)
class CheckedSignature:
    """One signature that was looked at.

    Attributes:
        status: ``signed``: it holds. ``bad``: it does not. ``not_verified``: nobody said whom to trust.
        signature: The record's id; None for a file.
        file: The file; None for a record.
        method: ``key``, ``certificate`` or ``sigstore``; None where it cannot be read.
        key: Fingerprint of the public key, SHA-256 of its DER form: the one that it was verified with where it holds,
            else the claimed one; None where none is claimed.
        identity: Whose the certificate is; None for a key.
        author: Who recorded it; None for a file.
        time: When, RFC 3339; None for a file.
        code: Why it is bad, or cannot be verified, for programs: the error's code; None where there is no reason.
        problem: The same in words.
    """

    status: SignatureStatus
    signature: SignatureId | None
    file: Path | None
    method: str | None
    key: ContentId | None
    identity: str | None
    author: str | None
    time: str | None
    code: str | None
    problem: str | None


@dataclass(frozen=True)
class SignatureCheck(Result):
    """Who vouches, and whether that holds.

    Attributes:
        status: ``signed``: a signature by whom you trust holds. ``bad``: there are signatures, and none holds.
            ``not_verified``: there are some, and nobody said whom to trust. ``unsigned``: there is none.
        commit: The commit; for a directory the one that it says it is, None where it says none.
        verification: The verification that was asked about, or None.
        directory: The directory that was asked about, or None.
        files: How many files were compared; 0 for a verification.
        signatures: Every signature that was looked at.
    """

    status: SignatureStatus
    commit: CommitId | None
    verification: VerificationId | None
    directory: Path | None
    files: int
    signatures: tuple[CheckedSignature, ...]


def verify_signature(
    store: Store,
    revision: str = "HEAD",
    *,
    trust: Trust,
    verification: str | None = None,
    signature: Path | None = None,
) -> SignatureCheck:
    """Looks at the signatures over a commit, or over a verification.

    Args:
        store: The repository.
        revision: Which commit, unless a verification is given.
        trust: Who is trusted.
        verification: A verification, by id or unique prefix.
        signature: A file to look at, in place of what is recorded.

    Raises:
        UnknownRevisionError: No such revision or verification.
        BadKeyError: What is to be trusted is no public key or certificate.
        KeylessUnavailableError: The network refuses, and the signature is a sigstore one.
        CorruptError: A record or a recorded signature is missing or damaged.
    """
    checker = _Checker(trust)
    named: VerificationId | None = None
    if verification is not None:
        if revision != "HEAD":
            raise named_alone(verification)
        named, commit = find_verification(store, verification)
        body = store.record(named, Verification).body()
        subject, files = RecordId(named), dict[str, str]()

        def check(payload: bytes) -> None:
            _check_evidence(payload, str(named), str(commit), body)
    else:
        commit = resolve(store, revision).commit
        subject, files = RecordId(commit), commit_files(store, commit)
        merged: list[Mapping[str, str]] = []

        def check(payload: bytes) -> None:
            wanted: Mapping[str, str] = files
            own = SignedCheckout(commit, "adapters")
            if checkout_named(payload) == SignedCheckout(commit, "merged"):
                if not merged:
                    merged.append(_merged(store, commit))
                wanted, own = merged[0], SignedCheckout(commit, "merged")
            check_files(payload, wanted, f"commit {commit.short}", own)

    found = _of_file(checker, signature, check) if signature is not None else _recorded(store, checker, subject, check)
    return SignatureCheck(_overall(found), commit, named, None, len(files), found)


def named_alone(verification: str) -> UsageError:
    """The error for a verification that is asked about together with a revision or a directory."""
    return UsageError(
        "a verification is named by its id alone",
        object=verification,
        hint="Ask about it, or about the revision or directory.",
    )


def verify_directory(
    directory: Path, *, trust: Trust, signature: Path | None = None, store: Store | None = None
) -> SignatureCheck:
    """Looks at the signatures over the files of a directory, each of which is read and hashed.

    Args:
        directory: A checkout, or any model.
        trust: Who is trusted.
        signature: The signature's file; None for ``model.sig`` in the directory, and where there is none for what a
            repository has recorded of the commit that the directory says it is.
        store: That repository, or None.

    Raises:
        InputError: The directory cannot be read, or has a symbolic link.
        BadKeyError: What is to be trusted is no public key or certificate.
        KeylessUnavailableError: The network refuses, and the signature is a sigstore one.
    """
    if not directory.is_dir():
        raise NotFoundError(
            f"there is no directory {directory}", object=str(directory), hint="Give the directory of a model."
        )
    checker = _Checker(trust)
    manifest = _manifest_of(directory)
    own = {file.path for file in manifest.files} if manifest is not None else set[str]()
    beside = directory / SIGNATURE_FILE
    ignored = set[Path]()
    if SIGNATURE_FILE not in own:
        ignored.add(Path(SIGNATURE_FILE))
        if signature is None and os.path.lexists(beside):
            signature = beside
    if signature is not None:
        with_name = Path(os.path.realpath(signature.parent)) / signature.name
        root = Path(os.path.realpath(directory))
        if with_name.is_relative_to(root):
            ignored.add(with_name.relative_to(root))
    files = hash_directory(directory, ignored)
    commit = None if manifest is None else manifest.commit
    own_checkout = None if manifest is None else SignedCheckout(manifest.commit, manifest.form)

    def check(payload: bytes) -> None:
        check_files(payload, files, str(directory), own_checkout)

    found: tuple[CheckedSignature, ...] = ()
    if signature is not None:
        found = _of_file(checker, signature, check)
    elif store is not None and commit is not None:
        found = _recorded(store, checker, RecordId(commit), check)
    return SignatureCheck(_overall(found), commit, None, directory, len(files), found)


def _merged(store: Store, commit: CommitId) -> Mapping[str, str]:
    try:
        return commit_files(store, commit, "merged")
    except CannotMergeError as error:
        raise OtherSubjectError(f"it is over a merged checkout, and there is none: {error.message}") from error


def _manifest_of(directory: Path) -> CheckoutManifest | None:
    try:
        return read_manifest(directory)
    except InputError:
        return None  # any directory may be signed; which files it has is compared all the same


def _overall(found: tuple[CheckedSignature, ...]) -> SignatureStatus:
    statuses = {one.status for one in found}
    for status in ("signed", "bad", "not_verified"):
        if status in statuses:
            return status
    return "unsigned"


def read_signature_file(path: Path) -> bytes:
    """A signature's file, under its cap.

    Raises:
        NotFoundError: There is none, or the system refuses.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(limits.SIGNATURE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"the signature {path} cannot be read: {error.strerror}", object=str(path), hint="Name it: --signature FILE"
        ) from error


def _of_file(checker: _Checker, path: Path, check: Callable[[bytes], None]) -> tuple[CheckedSignature, ...]:
    data = read_signature_file(path)
    return (checker.check(data, check, None, None, path),)


def _recorded(
    store: Store, checker: _Checker, subject: RecordId, check: Callable[[bytes], None]
) -> tuple[CheckedSignature, ...]:
    found = []
    for one in signatures_of(store, subject):
        data = store.content_bytes(one.bundle, limits.SIGNATURE_BYTES)
        found.append(checker.check(data, check, one.id, store.record(one.id, Signature), None))
    return tuple(found)


class _Checker:
    """Looks at one signature after the other, with the same trust."""

    def __init__(self, trust: Trust) -> None:
        from rblstore.provenance.signing_keys import certificates, fingerprint, public_key

        if (trust.identity is None) != (trust.issuer is None):
            raise UsageError(
                "an identity is worth what its issuer is: give both",
                object="identity",
                hint="--identity you@example.org --issuer https://accounts.example.org",
            )
        self._trust = trust
        self._key = None if trust.key is None else public_key(trust.key)
        self._fingerprint = None if self._key is None else fingerprint(self._key)
        self._roots = () if trust.roots is None else certificates(trust.roots)

    def check(
        self,
        data: bytes,
        check_payload: Callable[[bytes], None],
        id: SignatureId | None,
        record: Signature | None,
        file: Path | None,
    ) -> CheckedSignature:
        bundle: Bundle | None = None
        status: SignatureStatus = "bad"
        code, problem, key = None, None, None if record is None else record.key
        try:
            bundle = read_bundle(data)
            if bundle.payload_type != IN_TOTO:
                raise OtherSubjectError("what was signed is no in-toto statement")
            key = key or bundle.key
            if self._trust.given:  # what nobody vouches for is not looked into
                key = self._verify(bundle, data)
                self._compare(bundle, record, key)
            check_payload(bundle.payload)
            status = "signed" if self._trust.given else "not_verified"
        except BadSignatureError as error:
            status, code, problem = "bad", error.code, error.message
        except ForgottenError as error:  # a merged checkout, whose weights cannot be summed any more
            status, code, problem = "not_verified", error.code, error.message
        return CheckedSignature(
            status,
            id,
            file,
            (record.method if record is not None else None) if bundle is None else bundle.method,
            key,
            (record.identity if record is not None else None) if bundle is None else bundle.identity,
            None if record is None else record.author,
            None if record is None else record.time,
            code,
            problem,
        )

    def _verify(self, bundle: Bundle, data: bytes) -> ContentId | None:
        """The fingerprint of the key that it was verified with."""
        from rblstore.provenance.bundles import verify_with_certificate, verify_with_key

        if bundle.method == "key" and self._key is not None:
            verify_with_key(bundle, self._key)
            return self._fingerprint
        if bundle.method == "certificate" and self._roots:
            verify_with_certificate(bundle, self._roots)
            return bundle.key
        if bundle.method == "sigstore" and self._trust.identity is not None and self._trust.issuer is not None:
            from rblstore.provenance.keyless import verify_keyless

            verify_keyless(bundle, data, self._trust.identity, self._trust.issuer)
            return None
        wanted = {"key": "a key", "certificate": "a certificate", "sigstore": "a sigstore identity"}[bundle.method]
        raise WrongKeyError(f"it was made with {wanted}, of which nothing was given to verify it")

    @staticmethod
    def _compare(bundle: Bundle, record: Signature | None, key: ContentId | None) -> None:
        """Whether a record says of its bundle what holds."""
        if record is None:
            return
        if (record.method, record.identity, record.payload_type) != (
            bundle.method,
            bundle.identity,
            bundle.payload_type,
        ) or record.key != key:
            raise WrongKeyError("the record of it claims another signer than its bundle has")


def _check_evidence(payload: bytes, verification: str, commit: str, body: Mapping[str, object]) -> None:
    """Whether a signed statement is about a verification, and says of it what its record does."""
    from rblstore.provenance.in_toto import VERIFICATION_TYPE

    statement = statement_of(payload)
    predicate = statement.get("predicate")
    if statement.get("predicateType") != VERIFICATION_TYPE or not isinstance(predicate, dict):
        raise OtherSubjectError("what was signed is no statement about a verification")
    if predicate.get("verification") != verification or predicate.get("commit") != commit:
        raise OtherSubjectError("it is over another verification")
    for name, value in body.items():
        if name not in ("prompts", "commit") and predicate.get(name) != value:
            raise OtherSubjectError(f"it says something else of {name} than the verification does")
