"""``rbl verify-signature``."""

from __future__ import annotations

from pathlib import Path

import click

from rblstore.cli.invocation import PATH, Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import BadSignatureError, NoRepositoryError

EXIT_CODES = {"signed": 0, "unsigned": 1, "not_verified": 1, "bad": BadSignatureError.exit_code}


@click.command(
    "verify-signature",
    cls=Verb,
    example="""
    rbl verify-signature HEAD --key public.pem
    rbl verify-signature out --key public.pem
    """,
)
@click.argument("subject", default="HEAD", metavar="[REV | DIR]")
@click.option("--key", type=PATH, metavar="FILE", help="A public key that you trust, PEM.")
@click.option("--ca", "roots", type=PATH, metavar="FILE", help="Certificates whose word you trust, PEM.")
@click.option("--identity", metavar="TEXT", help="Whose sigstore signature you trust; with --issuer. Needs a network.")
@click.option("--issuer", metavar="URL", help="The OpenID Connect provider that must have said so.")
@click.option("--verification", metavar="ID", help="Look at the signatures over this verification.")
@click.option("--signature", type=PATH, metavar="FILE", help="Look at this signature, not at what is recorded.")
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    subject: str,
    key: Path | None,
    roots: Path | None,
    identity: str | None,
    issuer: str | None,
    verification: str | None,
    signature: Path | None,
) -> Outcome:
    """Say who vouches for REV, or for the files that lie in DIR, and whether that holds.

    Exits 0 where a signature by whom you trust holds, 8 where there are signatures and none holds, and 1 where there
    is none, or nobody said whom to trust. DIR needs no repository; what is a directory is never read as a revision.
    """
    import rblstore
    from rblstore.operations.verify_signature import named_alone

    directory = invocation.directory / subject
    if verification is None and directory.is_dir():
        try:
            opened = invocation.repository()
        except NoRepositoryError:
            result = rblstore.verify_signature(
                directory, key=key, roots=roots, identity=identity, issuer=issuer, signature=signature
            )
        else:
            with opened as repository:
                result = repository.verify_signature(
                    key=key, roots=roots, identity=identity, issuer=issuer, signature=signature, directory=directory
                )
    else:
        if verification is None and directory.is_file():
            raise click.UsageError(f"{subject} is a file: give its model's directory, or --signature {subject}")
        if verification is not None and directory.is_dir():
            raise named_alone(verification)
        with invocation.repository() as repository:
            result = repository.verify_signature(
                subject,
                key=key,
                roots=roots,
                identity=identity,
                issuer=issuer,
                verification=verification,
                signature=signature,
            )
    from rblstore.cli.render.signatures import checked_lines

    return Outcome(result.as_json(), checked_lines, exit_code=EXIT_CODES[result.status])
