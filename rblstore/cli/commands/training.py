"""``rbl training``."""

from __future__ import annotations

import click

from rblstore.cli.invocation import Invocation
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb


@click.group("training", no_args_is_help=False)
def command() -> None:
    """Show the training states that were stored with commits: optimizer, scheduler, random generators."""


@command.command(
    "list",
    cls=Verb,
    example="""
    rbl training list
    rbl training list HEAD~1
    """,
)
@click.argument("revision", required=False, metavar="[REV]")
@click.pass_obj
def list_states(invocation: Invocation, revision: str | None) -> Outcome:
    """List the training states of REV, or all of them, in the order in which they were stored.

    A state lives as long as its commit, and goes with it when gc takes it.
    """
    with invocation.repository() as repository:
        found = repository.training_states(revision)
    from rblstore.cli.render.states import states_lines

    return Outcome([state.as_json() for state in found], states_lines)


@command.command("show", cls=Verb, example="rbl training show HEAD")
@click.argument("revision", default="HEAD", metavar="[REV-OR-ID]")
@click.pass_obj
def show(invocation: Invocation, revision: str) -> Outcome:
    """Show what a training state holds: the latest one of a commit, or the one of an id."""
    with invocation.repository() as repository:
        detail = repository.training_state(revision)
    from rblstore.cli.render.states import state_lines

    return Outcome(detail.as_json(), state_lines)
