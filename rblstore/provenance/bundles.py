"""Sigstore bundles: signing bytes with a key, and finding out whether a bundle's signature holds.

A bundle is JSON: a DSSE envelope (what was signed, and the signature) with the material that names the signer. What
signs and verifies is OpenSSF's model-signing, so that its public command verifies ours, and ours its.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

from rblstore.errors import BadSignatureError, InputError
from rblstore.objects import limits
from rblstore.objects.canonical import decode_json
from rblstore.objects.ids import ContentId
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.signing_keys import WHAT, certificate_errors, certificate_pem, fingerprint, public_pem

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate

Method = Literal["certificate", "key", "sigstore"]
_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO: Final = "application/vnd.in-toto+json"
_MATERIAL: Final[dict[str, Method]] = {
    "publicKey": "key",
    "x509CertificateChain": "certificate",
    "certificate": "sigstore",
}
# What hostile bundles make the libraries raise, besides errors of their own.
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, IndexError, binascii.Error)


class MalformedSignatureError(BadSignatureError):
    """A signature's bundle cannot be read."""

    code: ClassVar[str] = "malformed_signature"


class WrongKeyError(BadSignatureError):
    """A signature was made with another key than the one that was given, or bytes were changed since."""

    code: ClassVar[str] = "wrong_key"


class UntrustedCertificateError(BadSignatureError):
    """A signature's certificate is not for signing, or leads to no root that was given."""

    code: ClassVar[str] = "untrusted_certificate"


class ExpiredCertificateError(UntrustedCertificateError):
    """A signature's certificate, or one that vouches for it, has expired or is not valid yet."""

    code: ClassVar[str] = "expired_certificate"


@dataclass(frozen=True)
class Bundle:
    """What a bundle says, before anybody looked whether it holds.

    Attributes:
        method: How it was signed.
        payload_type: Media type of what was signed.
        payload: What was signed.
        identity: Whose its certificate says it is; None for a key.
        key: Fingerprint of the certificate's key; None for a key, of which a bundle has only a hint.
        raw: The JSON, parsed.
    """

    method: Method
    payload_type: str
    payload: bytes
    identity: str | None
    key: ContentId | None
    raw: dict[str, Any]


class _Held:
    """Bytes where the library wants a path: keys never touch the disk."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data


def _held(data: bytes) -> Path:
    return cast("Path", _Held(data))


def sign_payload(payload: bytes, key: EllipticCurvePrivateKey, chain: Sequence[Certificate] = ()) -> bytes:
    """Signs an in-toto statement.

    Args:
        payload: The statement, JSON.
        key: Signs.
        chain: The key's certificate and those that vouch for it, in order; none for a bare key.

    Returns:
        The bundle, JSON.

    Raises:
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.serialization import Encoding
        from model_signing._signing.sign_ec_key import get_ec_key_hash
        from model_signing._signing.sign_sigstore_pb import pae
        from sigstore_models import intoto
        from sigstore_models.bundle import v1 as bundles
        from sigstore_models.common import v1 as common
    public = key.public_key()
    signed = key.sign(pae(payload), ECDSA(get_ec_key_hash(public)))
    if chain:
        listed = [common.X509Certificate(raw_bytes=base64.b64encode(one.public_bytes(Encoding.DER))) for one in chain]
        material = bundles.VerificationMaterial(
            x509_certificate_chain=common.X509CertificateChain(certificates=listed), tlog_entries=[]
        )
    else:
        hint = hashlib.sha256(public_pem(public)).hexdigest()
        material = bundles.VerificationMaterial(public_key=common.PublicKeyIdentifier(hint=hint), tlog_entries=[])
    envelope = intoto.Envelope(
        payload=base64.b64encode(payload),
        payload_type=IN_TOTO,
        signatures=[intoto.Signature(sig=base64.b64encode(signed), keyid="")],
    )
    bundle = bundles.Bundle(media_type=_MEDIA_TYPE, verification_material=material, dsse_envelope=envelope)
    return bundle.to_json().encode()


def read_bundle(data: bytes) -> Bundle:
    """Reads a bundle, which may be hostile.

    Raises:
        MalformedSignatureError: It is none.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    try:
        raw = decode_json(data, what="signature", max_bytes=limits.SIGNATURE_BYTES)
        return _bundle(raw)
    except InputError as error:
        raise MalformedSignatureError(f"the signature cannot be read: {error.message}") from error
    except _MALFORMED as error:
        raise MalformedSignatureError("the signature is not a sigstore bundle over a DSSE envelope") from error


def _bundle(raw: Any) -> Bundle:
    envelope, material = raw["dsseEnvelope"], raw["verificationMaterial"]
    (method,) = (method for name, method in _MATERIAL.items() if name in material)
    if len(envelope["signatures"]) != 1:
        raise ValueError("not one signature")
    payload_type, payload = envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True)
    if not isinstance(payload_type, str):
        raise TypeError("payloadType")
    identity, key = None, None
    if method != "key":
        identity, key = _named_in(_certificates(method, material)[0])
    return Bundle(method, payload_type, payload, identity, key, raw)


def _certificates(method: Method, material: Any) -> list[Certificate]:
    with needed_for(WHAT):
        from cryptography.x509 import load_der_x509_certificate
    listed = [material["certificate"]] if method == "sigstore" else material["x509CertificateChain"]["certificates"]
    try:
        found = [load_der_x509_certificate(base64.b64decode(one["rawBytes"], validate=True)) for one in listed]
        for one in found:  # what is malformed in it is found out only when it is asked for
            one.public_key(), one.extensions, one.subject.rfc4514_string()
    except certificate_errors() as error:
        raise ValueError("certificate") from error
    return found


def _named_in(certificate: Certificate) -> tuple[str, ContentId]:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import ExtensionNotFound, SubjectAlternativeName

    name = certificate.subject.rfc4514_string()
    if not name:  # sigstore's certificates name their owner here
        try:
            extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
            name = ", ".join(str(one.value) for one in extension.value)
        except ExtensionNotFound:
            name = ""
    key = certificate.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise TypeError("key")
    return name or "unnamed", fingerprint(key)


def _is_for_signing(certificate: Certificate) -> bool:
    from cryptography.x509 import ExtendedKeyUsage, ExtensionNotFound, KeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        if certificate.extensions.get_extension_for_class(KeyUsage).value.digital_signature:
            return True
    except ExtensionNotFound:
        pass
    try:
        usages = certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value
    except ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usages


def _require_valid(one: Certificate, now: datetime) -> None:
    if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
        late = now > one.not_valid_after_utc
        when = (
            f"expired on {one.not_valid_after_utc:%Y-%m-%d}" if late else f"begins {one.not_valid_before_utc:%Y-%m-%d}"
        )
        raise ExpiredCertificateError(
            f"the certificate of {one.subject.rfc4514_string() or 'an unnamed signer'} {when}: it is not valid now"
        )


def verify_with_key(bundle: Bundle, key: EllipticCurvePublicKey) -> None:
    """Whether a bundle was signed with a key. Nothing where it was.

    Raises:
        WrongKeyError: It was not.
    """
    with needed_for(WHAT):
        from cryptography.exceptions import InvalidSignature
        from model_signing._signing.sign_ec_key import Verifier
        from model_signing._signing.sign_sigstore_pb import Signature
        from sigstore_models.bundle.v1 import Bundle as Parsed
    if bundle.method != "key":
        raise WrongKeyError(
            f"it was made with a {'certificate' if bundle.method == 'certificate' else 'sigstore identity'}, not a key"
        )
    pem = public_pem(key)
    material = bundle.raw["verificationMaterial"]
    try:
        hint = material["publicKey"].get("hint") or hashlib.sha256(pem).hexdigest()  # without one the library prints
        if hint != hashlib.sha256(pem).hexdigest():
            raise WrongKeyError("another key made it than the one given")
        plain = {
            **bundle.raw,
            "verificationMaterial": {"tlogEntries": [], **material, "publicKey": {"hint": hint}},
        }
        Verifier(_held(pem))._verify_signed_content(Signature(Parsed.from_dict(plain)))  # noqa: SLF001
    except InvalidSignature as error:
        raise WrongKeyError("its signature does not hold: another key made it, or it was changed since") from error
    except _MALFORMED as error:
        raise MalformedSignatureError("the signature is not a sigstore bundle over a DSSE envelope") from error


def verify_with_certificate(bundle: Bundle, roots: Sequence[Certificate], now: datetime | None = None) -> None:
    """Whether a bundle was signed by somebody for whom one of these vouches. Nothing where it was.

    A signature made offline has no time that anybody vouches for. So the certificates must be valid now.

    Args:
        bundle: What to verify.
        roots: Who is trusted.
        now: When it is; None for the clock's time.

    Raises:
        ExpiredCertificateError: Nobody vouches for it any more, or yet.
        UntrustedCertificateError: Nobody vouches for it.
        WrongKeyError: The certificate's key did not make the signature.
    """
    with needed_for(WHAT):
        from cryptography.exceptions import InvalidSignature
        from model_signing._signing.sign_certificate import Verifier
        from model_signing._signing.sign_sigstore_pb import Signature
        from OpenSSL.crypto import Error as OpenSSLError
        from OpenSSL.crypto import X509StoreContextError
        from sigstore_models.bundle.v1 import Bundle as Parsed
    if bundle.method != "certificate":
        raise WrongKeyError("it was not made with a certificate")
    material = bundle.raw["verificationMaterial"]
    now = now or datetime.now(UTC)
    try:
        found = _certificates("certificate", material)
        if not _is_for_signing(found[0]):
            raise UntrustedCertificateError("its certificate is not for signing")
        for one in found:
            _require_valid(one, now)
        anchors = [one for one in roots if one.not_valid_before_utc <= now <= one.not_valid_after_utc]
        if roots and not anchors:
            _require_valid(roots[0], now)
        plain = {**bundle.raw, "verificationMaterial": {"tlogEntries": [], **material}}
        Verifier([_held(certificate_pem(anchors))])._verify_signed_content(  # noqa: SLF001
            Signature(Parsed.from_dict(plain))
        )
    except X509StoreContextError as error:
        raise UntrustedCertificateError(f"its certificate leads to no root that was given: {error}") from error
    except InvalidSignature as error:
        raise WrongKeyError("its signature does not hold: another key made it, or it was changed since") from error
    except (*_MALFORMED, OpenSSLError) as error:
        raise MalformedSignatureError("the signature is not a sigstore bundle over a DSSE envelope") from error
