"""``rbl commit``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rblstore.cli import options
from rblstore.cli.invocation import PATH, Invocation, Pair, author_from, gather_pairs
from rblstore.cli.license_effect import effect_of, with_effect
from rblstore.cli.outcome import Outcome
from rblstore.cli.verb import Verb

if TYPE_CHECKING:
    from rblstore.configuration import Compression


def _weights(given: dict[str, str]) -> dict[str, float]:
    weights = {}
    for name, text in given.items():
        try:
            weights[name] = float(text)
        except ValueError as error:
            raise click.UsageError(f"--weight {name}={text}: {text!r} is not a number") from error
        if not math.isfinite(weights[name]):
            raise click.UsageError(f"--weight {name}={text}: a weight is a finite number")
    return weights


@click.command(
    "commit",
    cls=Verb,
    example="""
    rbl commit -m base --identity path/to/model --license apache-2.0
    rbl commit -m politer --behavior polite=path/to/adapter --weight polite=0.8
    rbl commit -m tuned --behavior tuned=path/to/fine-tuned-model
    """,
)
@click.option("-m", "--message", required=True, metavar="TEXT", help="What changed; the first line is the subject.")
@click.option("--identity", type=PATH, metavar="DIR", help="The base checkpoint: a Hugging Face directory.")
@click.option(
    "--behavior",
    "behaviors",
    type=Pair("NAME=DIR"),
    multiple=True,
    help="Add or replace a behavior: the directory of a PEFT adapter or of a fine-tuned checkpoint. Repeatable.",
)
@click.option("--remove", multiple=True, metavar="NAME", help="Leave this behavior out. Repeatable.")
@click.option("--weight", "weights", type=Pair("NAME=W"), multiple=True, help="Scale an additive adapter. Repeatable.")
@click.option("--branch", metavar="NAME", help="Commit to this branch instead of the current one.")
@options.license
@options.license_file
@options.dataset
@options.source
@options.base_revision
@options.author
@options.meta
@click.option("--unloadable", is_flag=True, help="Accept a composition that peft cannot attach.")
@click.option("--rebind", is_flag=True, help="Bind an adapter to this base although it names another.")
@click.option("--allow-empty", is_flag=True, help="Commit even where the composition does not change.")
@click.option("--include-opaque", is_flag=True, help="Keep pickles beside the weights, as bytes that are never loaded.")
@click.option("--rehash", is_flag=True, help="Read files although their time stamps say that they are unchanged.")
@options.compression
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    message: str,
    identity: Path | None,
    behaviors: tuple[tuple[str, str], ...],
    remove: tuple[str, ...],
    weights: tuple[tuple[str, str], ...],
    branch: str | None,
    license: str | None,
    license_file: Path | None,
    datasets: tuple[str, ...],
    source: str | None,
    base_revision: str | None,
    author: str | None,
    meta: tuple[tuple[str, str], ...],
    unloadable: bool,
    rebind: bool,
    allow_empty: bool,
    include_opaque: bool,
    rehash: bool,
    compression: Compression | None,
) -> Outcome:
    """Record a composition: an identity, behaviors on it, or a change of them.

    What is not named stays as it is in the branch's latest commit. Content that is stored already is not
    stored again, and a behavior that does not fit what it would stand on is refused, naming the tensors that
    differ. What is said (licence, data, source) is said about everything that this commit imports, beside what
    model cards and licence files say; `rbl state` says it of one part, or later.
    """
    directories = {name: invocation.directory / text for name, text in gather_pairs(behaviors, "--behavior").items()}
    with invocation.repository() as repository, invocation.progress() as progress:
        result = repository.commit(
            message,
            identity=identity,
            behaviors=directories,
            remove=list(remove),
            weights=_weights(gather_pairs(weights, "--weight")),
            branch=branch,
            license=license,
            license_file=license_file,
            datasets=datasets,
            source=source,
            base_revision=base_revision,
            author=author_from(author, repository),
            meta=gather_pairs(meta, "--meta"),
            unloadable=unloadable,
            rebind=rebind,
            allow_empty=allow_empty,
            include_opaque=include_opaque,
            rehash=rehash,
            compression=compression,
            origin="command line",
            progress=progress,
        )
        effect = effect_of(repository, next(iter(result.parents), None), result.commit)
    from rblstore.cli.render.commit import commit_lines

    document = {**result.as_json(), "license_effect": effect}
    return Outcome(document, with_effect(commit_lines), warnings=result.warnings)
