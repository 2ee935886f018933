"""``rbl sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rblstore.cli import options
from rblstore.cli.invocation import PATH, Invocation, author_from
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.command(
    "sign",
    cls=Verb,
    example="""
    rbl sign HEAD --key private.pem -o out/model.sig
    rbl sign --verification 716eb8 --key private.pem
    """,
)
@click.argument("revision", default="HEAD", metavar="[REV]")
@click.option(
    "--form",
    type=click.Choice(["adapters", "merged"]),
    default="adapters",
    show_default=True,
    help="The form of the checkout whose files are signed.",
)
@click.option("--key", type=PATH, metavar="FILE", help="The private key, PEM: an elliptic curve key, P-256 for one.")
@click.option(
    "--password-file", type=PATH, metavar="FILE", help="First line: the key's password; else it is asked for."
)
@click.option(
    "--certificate", type=PATH, metavar="FILE", help="The key's certificate, and then those that vouch for it, PEM."
)
@click.option("--keyless", is_flag=True, help="In place of a key: a certificate from sigstore, over the network.")
@click.option("--identity-token", type=PATH, metavar="FILE", help="Who signs keyless; else the CI job's own token.")
@click.option("--verification", metavar="ID", help="Sign this verification, as an in-toto statement, not files.")
@click.option(
    "-o", "--output", type=PATH, metavar="PATH", help="Write the signature to a file, too; or to DIR/model.sig."
)
@click.option("--force", is_flag=True, help="Replace the file where there is one.")
@options.author
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    revision: str,
    form: Literal["adapters", "merged"],
    key: Path | None,
    password_file: Path | None,
    certificate: Path | None,
    keyless: bool,
    identity_token: Path | None,
    verification: str | None,
    output: Path | None,
    force: bool,
    author: str | None,
) -> Outcome:
    """Sign the files that a checkout of REV has, and record the signature.

    Others verify it with: model_signing verify key --public_key PUBLIC.pem --signature out/model.sig out. The private
    key is neither stored nor written.
    """
    if (key is None) != keyless:
        raise click.UsageError("sign with --key FILE, or with --keyless")
    from rblstore.operations.key_files import read_key_file, read_password_file
    from rblstore.provenance.signing_keys import is_encrypted

    pem = None if key is None else read_key_file(key, "private key")
    password: bytes | None = None
    if pem is not None and is_encrypted(pem):
        if password_file is not None:
            password = read_password_file(password_file)
        else:
            password = _asked(key)
    token = None
    if identity_token is not None:
        token = read_key_file(identity_token, "identity token").decode("ascii", "replace").strip()
    with invocation.repository() as repository:
        result = repository.sign(
            revision,
            form=form,
            key=pem,
            password=password,
            certificates=certificate,
            keyless=keyless,
            identity_token=token,
            verification=verification,
            output=output,
            force=force,
            author=author_from(author, repository),
        )
    from rblstore.cli.render.signatures import signed_lines

    return Outcome(result.as_json(), signed_lines)


def _asked(key: Path | None) -> bytes:
    """The password that somebody types.

    Raises:
        PasswordError: Nobody is there to type it.
    """
    from rblstore.provenance.signing_keys import PasswordError

    try:
        return str(click.prompt("Password of the key", hide_input=True, err=True)).encode()
    except click.Abort as error:
        # click says the same of an input that ends and of Ctrl-C; only what it was made from tells them apart.
        if not isinstance(error.__context__, EOFError):
            raise
        raise PasswordError(
            "the private key is encrypted, and there is no terminal to ask for its password",
            object=str(key),
            hint="Put it on the first line of a file: --password-file FILE",
        ) from error
