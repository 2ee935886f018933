"""``rbl doctor``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb
from rblstore.errors import RblError


@click.command("doctor", cls=Verb, example="rbl doctor")
@click.pass_obj
def command(invocation: Invocation) -> Outcome:
    """Look at what the repository runs on, and say what to do. Changes nothing; works where it does not open.

    Versions, file system, locks, permissions, space, clocks, settings, catalog and log. Whether everything that is
    stored is whole, rbl fsck says.
    """
    import rblstore
    from rblstore.cli.render.doctor import doctor_lines

    result = rblstore.doctor(invocation.directory, allow_foreign=invocation.allow_foreign)
    return Outcome(result.as_json(), doctor_lines, exit_code=0 if result.ok else RblError.exit_code)
