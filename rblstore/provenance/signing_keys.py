"""Keys and certificates as PEM: read under caps, held in memory only, named by fingerprints, never printed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from rblstore.errors import InputError, UsageError
from rblstore.objects import limits
from rblstore.objects.ids import ContentId
from rblstore.provenance.libraries import needed_for

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate

WHAT: Final = "signatures"
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_MAKE_ONE: Final = "Make one with: openssl ecparam -name prime256v1 -genkey -noout -out private.pem"


class BadKeyError(InputError):
    """What was given is not a key or certificate that signatures can be made or verified with."""

    code: ClassVar[str] = "bad_key"


class PasswordError(UsageError):
    """A private key is encrypted, and no password or a wrong one was given."""

    code: ClassVar[str] = "key_password"


def _capped(data: bytes, what: str) -> bytes:
    if len(data) > limits.KEY_BYTES:
        raise BadKeyError(
            f"the {what} takes {len(data)} bytes, more than the {limits.KEY_BYTES} allowed", hint=_MAKE_ONE
        )
    return data


def _check_curve(key: object, what: str) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in _CURVES:
        kind = f"of the curve {curve}" if curve else "of another kind"
        raise BadKeyError(
            f"the {what} is {kind}; it must be an elliptic curve key: P-256, P-384 or P-521", hint=_MAKE_ONE
        )


def private_key(data: bytes, password: bytes | None = None) -> EllipticCurvePrivateKey:
    """Reads a private key.

    Args:
        data: PEM, encrypted or not.
        password: Of an encrypted one.

    Raises:
        BadKeyError: It is not a private key, or of a kind that cannot be used.
        PasswordError: It is encrypted, and the password is missing or wrong.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    _capped(data, "private key")
    if b"PRIVATE KEY-----" not in data:
        raise BadKeyError("this is not a private key in PEM form", hint=_MAKE_ONE)
    encrypted = b"ENCRYPTED" in data
    try:
        key = load_pem_private_key(data, password if encrypted else None)
    except TypeError as error:
        raise PasswordError(
            "the private key is encrypted: it needs its password", hint="--password-file FILE"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if encrypted and password is not None:
            raise PasswordError("the private key cannot be read with this password", hint="Try another.") from error
        raise BadKeyError("the private key cannot be read", hint=_MAKE_ONE) from error
    _check_curve(key, "private key")
    if not isinstance(key, EllipticCurvePrivateKey):
        raise BadKeyError("the private key is of another kind", hint=_MAKE_ONE)
    return key


def is_encrypted(data: bytes) -> bool:
    """Whether a private key in PEM form needs a password.

    Args:
        data: PEM.
    """
    return b"ENCRYPTED" in data[: limits.KEY_BYTES]


def public_key(data: bytes) -> EllipticCurvePublicKey:
    """Reads a public key.

    Args:
        data: PEM.

    Raises:
        BadKeyError: It is not a public key, or of a kind that cannot be used.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    _capped(data, "public key")
    if b"PRIVATE KEY-----" in data:
        raise BadKeyError(
            "this is a private key; verifying takes the public one",
            hint="Make it with: openssl ec -in private.pem -pubout -out public.pem",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKeyError("this is not a public key in PEM form", hint="Ask the signer for it.") from error
    _check_curve(key, "public key")
    if not isinstance(key, EllipticCurvePublicKey):
        raise BadKeyError("the public key is of another kind", hint="Ask the signer for it.")
    return key


def certificates(data: bytes) -> tuple[Certificate, ...]:
    """Reads certificates.

    Args:
        data: PEM, one after the other.

    Raises:
        BadKeyError: There is none, or one is malformed.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from cryptography.x509 import load_pem_x509_certificates
    _capped(data, "file of certificates")
    try:
        found = tuple(load_pem_x509_certificates(data))
        for one in found:
            one.public_key()  # only now is it read
        return found
    except certificate_errors() as error:
        raise BadKeyError(
            "these are not certificates in PEM form",
            hint="They begin with -----BEGIN CERTIFICATE-----; from DER: openssl x509 -inform DER -in FILE",
        ) from error


def certificate_errors() -> tuple[type[Exception], ...]:
    """What reading a hostile certificate raises; the libraries have no family for it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import DuplicateExtension, InvalidVersion, UnsupportedGeneralNameType

    return ValueError, UnsupportedAlgorithm, DuplicateExtension, InvalidVersion, UnsupportedGeneralNameType


def fingerprint(key: EllipticCurvePublicKey) -> ContentId:
    """What a public key is called: SHA-256 of its DER form (SubjectPublicKeyInfo).

    Args:
        key: The key.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return ContentId(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest())


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    """A public key as PEM.

    Args:
        key: The key.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(found: Sequence[Certificate]) -> bytes:
    """Certificates as PEM, one after the other.

    Args:
        found: The certificates.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(one.public_bytes(Encoding.PEM) for one in found)
