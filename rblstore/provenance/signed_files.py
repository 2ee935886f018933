"""The list of files that a model's signature is over, as OpenSSF's model-signing writes and compares it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rblstore.errors import BadSignatureError, InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.signature_records import SIGNATURE_FILE
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.signing_keys import WHAT

if TYPE_CHECKING:
    from model_signing.manifest import Manifest

# What the public command leaves out, whatever is in it; relative to the model's directory.
IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
_PREDICATES: Final = ("https://model_signing/signature/v1.0", "https://model_signing/Digests/v0.1")
_NAME: Final = re.compile(r"commit-([0-9a-f]{64})(-merged)?")
_NAMED: Final = 5


class OtherFilesError(BadSignatureError):
    """A signature is over other files than those that were looked at."""

    code: ClassVar[str] = "other_files"


class OtherSubjectError(BadSignatureError):
    """A signature is over something else than what it is said to be over."""

    code: ClassVar[str] = "other_subject"


class OtherCommitError(OtherSubjectError):
    """A signature is over the files of another commit."""

    code: ClassVar[str] = "other_commit"


@dataclass(frozen=True)
class SignedCheckout:
    """Which checkout a list of files is of, as the list itself says.

    Attributes:
        commit: The commit's id.
        form: ``adapters`` or ``merged``.
    """

    commit: str
    form: str

    @property
    def name(self) -> str:
        """What the files are called together."""
        return f"commit-{self.commit}" if self.form == "adapters" else f"commit-{self.commit}-{self.form}"


def is_ignored(path: str) -> bool:
    """Whether signatures leave a file out.

    Args:
        path: Relative to the model's directory.
    """
    return path.split("/", 1)[0] in IGNORED


def _manifest(name: str, files: Mapping[str, str]) -> Manifest:
    with needed_for(WHAT):
        from model_signing._hashing.hashing import Digest
        from model_signing.manifest import FileManifestItem, Manifest, _FileSerialization
    ignored = [*IGNORED, *([] if SIGNATURE_FILE in files else [SIGNATURE_FILE])]
    return Manifest(
        name,
        [
            FileManifestItem(path=PurePosixPath(path), digest=Digest("sha256", bytes.fromhex(sha256)))
            for path, sha256 in files.items()
            if not is_ignored(path)
        ],
        _FileSerialization("sha256", allow_symlinks=False, ignore_paths=[Path(path) for path in ignored]),
    )


def files_payload(name: str, files: Mapping[str, str]) -> bytes:
    """What is signed: an in-toto statement that names every file by its SHA-256.

    Args:
        name: What the files are called together; verifying does not look at it.
        files: SHA-256 by path, of all files. Those that signatures leave out are left out.

    Raises:
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from google.protobuf.json_format import MessageToJson
        from model_signing._signing.signing import Payload
    return str(MessageToJson(Payload(_manifest(name, files)).statement.pb)).encode()


def statement_of(payload: bytes) -> dict[str, Any]:
    """A signed in-toto statement.

    Raises:
        OtherSubjectError: It is none.
    """
    try:
        found = decode_json(payload, what="signed statement", max_bytes=limits.SIGNATURE_BYTES)
    except InputError as error:
        raise OtherSubjectError(f"what was signed is no statement: {error.message}") from error
    if not isinstance(found, dict):
        raise OtherSubjectError("what was signed is no statement")
    return found


def is_over_files(payload: bytes) -> bool:
    """Whether what was signed is a list of files, and not a statement about something else."""
    return statement_of(payload).get("predicateType") in _PREDICATES


def checkout_named(payload: bytes) -> SignedCheckout | None:
    """Which checkout a signed list of files says that it is of; None where it says none. It may say anything.

    Raises:
        OtherSubjectError: What was signed is no statement.
    """
    subjects = statement_of(payload).get("subject")
    first = subjects[0] if isinstance(subjects, list) and subjects else None
    name = first.get("name") if isinstance(first, dict) else None
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    return None if found is None else SignedCheckout(found[1], "merged" if found[2] else "adapters")


def check_files(payload: bytes, files: Mapping[str, str], what: str, checkout: SignedCheckout | None = None) -> None:
    """Whether what was signed names exactly these files. Nothing where it does.

    Args:
        payload: What was signed.
        files: SHA-256 by path, of all files; those that signatures leave out do not count.
        what: What the files are, in words.
        checkout: Which checkout they are, or None where they do not say.

    Raises:
        OtherFilesError: A file differs, is missing, or is not among those that were signed.
        OtherCommitError: So it is, and the reason is that they are another commit's.
        OtherSubjectError: What was signed is no list of files.
    """
    with needed_for(WHAT):
        from model_signing._signing.signing import dsse_payload_to_manifest
    if not is_over_files(payload):
        raise OtherSubjectError("what was signed is no list of a model's files")
    try:
        found = dsse_payload_to_manifest(json.loads(payload))
        signed = {
            one.identifier: f"{one.digest.algorithm}:{one.digest.digest_hex}" for one in found.resource_descriptors()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise OtherSubjectError("what was signed is no list of a model's files") from error
    here = {path: f"sha256:{sha256}" for path, sha256 in files.items() if not is_ignored(path)}
    if signed == here:
        return
    named = checkout_named(payload)
    if named is not None and checkout is not None and named != checkout:
        if named.commit != checkout.commit:
            raise OtherCommitError(f"it is over commit {named.commit[:12]}, not over commit {checkout.commit[:12]}")
        raise OtherFilesError(
            f"it is over a checkout of that commit in the form {named.form}, and {what} has the form {checkout.form}"
        )
    changed = sorted(path for path in signed.keys() & here.keys() if signed[path] != here[path])
    parts = [
        f"{why}: {', '.join(paths[:_NAMED])}" + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
        for why, paths in (
            ("other bytes", changed),
            ("missing", sorted(signed.keys() - here.keys())),
            ("not signed", sorted(here.keys() - signed.keys())),
        )
        if paths
    ]
    raise OtherFilesError(f"it is over other files than {what}: {'; '.join(parts)}")
