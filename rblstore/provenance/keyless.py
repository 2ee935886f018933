"""Signing without a key of one's own: sigstore gives a certificate for an identity, over the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from rblstore.errors import RblError, UsageError
from rblstore.provenance.bundles import Bundle, MalformedSignatureError, UntrustedCertificateError, WrongKeyError
from rblstore.provenance.libraries import needed_for
from rblstore.provenance.signing_keys import WHAT

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig


class KeylessUnavailableError(RblError):
    """Sigstore's services cannot be reached, or refuse."""

    code: ClassVar[str] = "keyless_unavailable"


class NoIdentityError(UsageError):
    """Nothing says who signs."""

    code: ClassVar[str] = "no_identity_token"


@contextmanager
def _reaching() -> Iterator[None]:
    """Whatever goes wrong on the way to sigstore's services becomes one error."""
    from sigstore.errors import Error
    from tuf.api.exceptions import DownloadError, RepositoryError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (Error, DownloadError, RepositoryError, HTTPError, OSError) as error:
        why = str(error) or type(error).__name__
        raise KeylessUnavailableError(
            f"sigstore cannot be reached, or refuses: {why[:300]}",
            object="sigstore",
            hint="Keyless signatures need a network. Offline, sign and verify with a key: --key FILE",
        ) from error


def _services() -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    with _reaching():
        return ClientTrustConfig.production()


def sign_keyless(payload: bytes, token: str | None) -> bytes:
    """Signs an in-toto statement in the name of an identity.

    Args:
        payload: The statement, JSON.
        token: An OpenID Connect token that says who signs; None for the one that a continuous integration service
            gives its jobs. No browser is opened.

    Returns:
        The bundle, JSON.

    Raises:
        NoIdentityError: There is no token, or it is none.
        KeylessUnavailableError: The network or the service refuses.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from sigstore.dsse import Statement
        from sigstore.oidc import IdentityError, IdentityToken, detect_credential
        from sigstore.sign import SigningContext
    try:
        with _reaching():
            found = token or detect_credential("sigstore")
        identity = None if found is None else IdentityToken(found, "sigstore")
    except IdentityError as error:
        raise NoIdentityError(
            f"this is no identity token: {str(error)[:300]}", hint="Get a new one: they last for minutes."
        ) from error
    if identity is None:
        raise NoIdentityError(
            "nothing says who signs: there is no identity token",
            hint="Give one with --identity-token FILE; in continuous integration, let the job have one.",
        )
    services = _services()
    with _reaching(), SigningContext.from_trust_config(services).signer(identity) as signer:
        return signer.sign_dsse(Statement(payload)).to_json().encode()


def verify_keyless(bundle: Bundle, data: bytes, identity: str, issuer: str) -> None:
    """Whether a bundle was signed in the name of an identity. Nothing where it was.

    Args:
        bundle: What to verify.
        data: Its JSON.
        identity: Who must have signed: an address, or the URL of a workflow.
        issuer: Who must have said so: the URL of the OpenID Connect provider.

    Raises:
        WrongKeyError: Somebody else signed, or bytes were changed since.
        KeylessUnavailableError: The network refuses: what sigstore's own keys are is not known.
        MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
    """
    with needed_for(WHAT):
        from sigstore.errors import CertValidationError, VerificationError
        from sigstore.models import Bundle as Parsed
        from sigstore.models import InvalidBundle
        from sigstore.verify import Verifier
        from sigstore.verify.policy import Identity
    if bundle.method != "sigstore":
        raise WrongKeyError("it was not made with a sigstore identity")
    try:
        parsed = Parsed.from_json(data)
    except (InvalidBundle, ValueError) as error:
        raise MalformedSignatureError("the signature is not a sigstore bundle") from error
    services = _services()
    try:
        Verifier(trusted_root=services.trusted_root).verify_dsse(parsed, Identity(identity=identity, issuer=issuer))
    except CertValidationError as error:
        raise UntrustedCertificateError(f"its certificate does not hold: {str(error)[:300]}") from error
    except VerificationError as error:
        raise WrongKeyError(f"its signature does not hold: {str(error)[:300]}") from error
