"""``sign``: vouch for a commit's files, or for a verification, so that others can check it without this repository."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from rblstore.checkpoints.checkout_layout import CheckoutForm
from rblstore.errors import ConflictError, InputError, NotFoundError, UsageError
from rblstore.objects.evidence_records import Verification
from rblstore.objects.ids import CommitId, ContentId, RecordId, SignatureId, VerificationId
from rblstore.objects.signature_records import SIGNATURE_FILE, Signature
from rblstore.operations.checkout import FORMS
from rblstore.operations.checkout_manifest import read_manifest
from rblstore.operations.commit_files import commit_files
from rblstore.operations.evidence_time import evidence_time
from rblstore.operations.result import Result
from rblstore.provenance.bundles import read_bundle, sign_payload
from rblstore.provenance.signed_files import SignedCheckout, files_payload, is_ignored
from rblstore.provenance.signing_keys import BadKeyError, certificates, fingerprint, private_key
from rblstore.repository import Store
from rblstore.revisions import find_record, resolve
from rblstore.storage.durable import WriteError, write_file


class SignatureExistsError(ConflictError):
    """A file lies where a signature was to be written."""

    code: ClassVar[str] = "exists"


class OtherCheckoutError(ConflictError):
    """A signature is to lie in a checkout that it would not be over."""

    code: ClassVar[str] = "other_checkout"


class NothingToSignError(NotFoundError):
    """A verification vouches for no commit, so that there is nothing to sign."""

    code: ClassVar[str] = "nothing_to_sign"


@dataclass(frozen=True)
class SignRequest:
    """What to sign, and with what.

    Attributes:
        author: Who is recorded.
        revision: Which commit, unless a verification is given.
        form: Whose files: those of a checkout in the form ``adapters``, or ``merged``.
        key: A private key in PEM form; None for keyless.
        password: Of an encrypted key.
        certificates: PEM: the key's certificate, then those that vouch for it; None for a bare key.
        keyless: Whether sigstore gives a certificate, over the network.
        identity_token: An OpenID Connect token that says who signs; None for that of a continuous integration job.
        verification: A verification to sign in place of a commit's files, by id or unique prefix.
        output: Where to write the bundle besides: a file, or a directory that gets ``model.sig``.
        force: Whether a file there gives way.
    """

    author: str
    revision: str = "HEAD"
    form: CheckoutForm = "adapters"
    key: bytes | None = None
    password: bytes | None = None
    certificates: bytes | None = None
    keyless: bool = False
    identity_token: str | None = None
    verification: str | None = None
    output: Path | None = None
    force: bool = False

    def __repr__(self) -> str:
        return f"SignRequest(author={self.author!r}, revision={self.revision!r}, verification={self.verification!r})"


@dataclass(frozen=True)
class SignResult(Result):
    """A signature that was made and recorded.

    Attributes:
        signature: The record's id.
        subject: What it is over: the commit or the verification.
        commit: The commit, or the one that the verification vouches for.
        verification: The verification, or None.
        form: Of the checkout whose files they are; None for a verification.
        method: ``key``, ``certificate`` or ``sigstore``.
        key: Fingerprint of the public key, SHA-256 of its DER form; None for ``sigstore``.
        identity: Whose the certificate is; None for a key.
        files: How many files it names; 0 for a verification.
        left_out: Files of the commit that signatures leave out (``.gitattributes`` and the like).
        bundle: The sigstore bundle, a content.
        output: Where it was written besides, or None.
    """

    signature: SignatureId
    subject: RecordId
    commit: CommitId
    verification: VerificationId | None
    form: str | None
    method: str
    key: ContentId | None
    identity: str | None
    files: int
    left_out: tuple[str, ...]
    bundle: ContentId
    output: Path | None


def sign(store: Store, request: SignRequest) -> SignResult:
    """Signs what a checkout of a commit has, or a verification, and records the signature.

    Nothing is read but records: the digests that are signed are stored. Only a merged checkout's weights are summed and
    hashed, without being written. The private key is neither stored nor written.

    Args:
        store: The repository.
        request: What to sign, and with what.

    Raises:
        UnknownRevisionError: No such revision or verification.
        BadKeyError: The key or certificate cannot be used.
        PasswordError: The key is encrypted, and the password is missing or wrong.
        KeylessUnavailableError: The network or sigstore refuses.
        OtherCheckoutError: The output lies in a checkout of another commit, or in another form.
        CannotMergeError: There is no merged checkout of the commit.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
        WriteError: The system refused to write the file; the signature is recorded.
    """
    if (request.key is None) != request.keyless:
        raise UsageError("sign with a private key, or keyless", object="key", hint="rbl sign --key PRIVATE.pem")
    if request.certificates is not None and request.key is None:
        raise UsageError(
            "a certificate goes with the private key that it is for", object="certificate", hint="Give --key, too."
        )
    if request.form not in FORMS:
        raise UsageError(
            f"the form {str(request.form)[:40]!r} is none of {', '.join(FORMS)}",
            object=str(request.form)[:40],
            hint="A part of a checkout is not signed: sign the whole, in the form that others get.",
        )
    if request.verification is not None and (request.form, request.revision) != ("adapters", "HEAD"):
        raise UsageError(
            "a verification is named by its id alone",
            object=request.verification,
            hint="It knows its commit, and has no form: leave out the revision and --form.",
        )
    if request.identity_token is not None and not request.keyless:
        raise UsageError("an identity token goes with keyless", object="identity_token", hint="Add --keyless.")
    output = None if request.output is None else _target(request.output, force=request.force)
    key = None if request.key is None else private_key(request.key, request.password)
    chain = () if request.certificates is None else certificates(request.certificates)
    if chain and key is not None and chain[0].public_key() != key.public_key():
        raise BadKeyError("the certificate is for another key", hint="The key's own certificate comes first.")

    verification: VerificationId | None = None
    files: dict[str, str] = {}
    if request.verification is None:
        commit = resolve(store, request.revision).commit
        subject = RecordId(commit)
        if output is not None:
            _check_beside(output, commit, request)
        files = commit_files(store, commit, request.form)
        payload = files_payload(SignedCheckout(commit, request.form).name, files)
    else:
        verification, commit = find_verification(store, request.verification)
        subject = RecordId(verification)
        from rblstore.operations.export_in_toto import statement_bytes

        payload = statement_bytes(store, str(commit), verification=str(verification))
    if key is None:
        from rblstore.provenance.keyless import sign_keyless

        data = sign_keyless(payload, request.identity_token)
    else:
        data = sign_payload(payload, key, chain)
    bundle = read_bundle(data)  # nothing is recorded that could not be read back
    with store.transaction(request.author) as transaction:
        stored = transaction.add_content([data])
        record = Signature(
            subject,
            bundle.method,
            None if key is None else fingerprint(key.public_key()),
            bundle.identity,
            bundle.payload_type,
            stored.content,
            request.author,
            evidence_time(store, subject, Signature),
        )
        signature = cast("SignatureId", transaction.add_record(record))
    if output is not None:
        _write(output, data)
    left_out = tuple(sorted(path for path in files if is_ignored(path)))
    return SignResult(
        signature, subject, commit, verification, None if verification else request.form, record.method, record.key,
        record.identity, len(files) - len(left_out), left_out, record.bundle, output,
    )  # fmt: skip


def find_verification(store: Store, named: str) -> tuple[VerificationId, CommitId]:
    """A verification by id or unique prefix, and the commit that it vouches for.

    Raises:
        UnknownRevisionError: No such record.
        NothingToSignError: It vouches for no commit.
    """
    found = VerificationId(find_record(store, named))
    record = store.record(found, Verification)
    if record.commit is None:
        raise NothingToSignError(
            f"verification {found.short} vouches for no commit",
            object=found,
            hint="It compared two compositions, or a revert that diverged. Verify a commit: rbl verify REV",
        )
    return found, record.commit


def _write(output: Path, data: bytes) -> None:
    try:
        write_file(output, data, output.parent)
    except WriteError as error:
        raise WriteError(
            f"the signature is recorded, and could not be written to {output}: {error.message}",
            object=str(output),
            hint="Check free space and permissions there, and sign again with --output.",
        ) from error


def _target(output: Path, *, force: bool) -> Path:
    """Where to write a bundle, seen to before anything is signed."""
    target = output / SIGNATURE_FILE if output.is_dir() else output
    if not target.parent.is_dir():
        raise InputError(f"there is no directory {target.parent}", object=str(target.parent), hint="Make it first.")
    if os.path.lexists(target) and not (force and target.is_file() and not target.is_symlink()):
        raise SignatureExistsError(
            f"{target} exists already", object=str(target), hint="Replace it with --force, or choose another name."
        )
    return target


def _check_beside(output: Path, commit: CommitId, request: SignRequest) -> None:
    """Refuses to put a signature into a checkout that it would not be over."""
    directory = output.parent
    try:
        found = read_manifest(directory)
    except InputError:
        return  # no checkout
    if any(file.path == output.name for file in found.files):
        raise OtherCheckoutError(
            f"{output} is one of the model's own files",
            object=str(output),
            hint="Write the signature under another name: --output FILE",
        )
    if found.form == "partial":
        raise OtherCheckoutError(
            f"{directory} is a part of a checkout", object=str(directory), hint="Check out and sign the whole."
        )
    if found.commit != commit:
        raise OtherCheckoutError(
            f"{directory} is a checkout of commit {found.commit.short}, not of {commit.short}",
            object=str(directory),
            hint=f"Sign that one: rbl sign {found.commit.short}; or write the signature elsewhere.",
        )
    if found.form != request.form:
        raise OtherCheckoutError(
            f"{directory} is a checkout in the form {found.form}, and the form to be signed is {request.form}",
            object=str(directory),
            hint=f"Sign the form that it has: rbl sign {request.revision} --form {found.form}",
        )
