"""Options that several commands share."""

from __future__ import annotations

import click

from rblstore.divergence.verdict import DEFAULT_TOLERANCE

author = click.option(
    "--author", metavar="TEXT", help="Who does this; else $RBL_AUTHOR, then config.toml, then user@host."
)
compression = click.option(
    "--compression",
    type=click.Choice(["fast", "max", "none"]),
    help="How contents are stored; else what config.toml says.",
)
probe = click.option("--probe", metavar="NAME", help="Measure under this probe; else the default one, or the only one.")
tolerance = click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=DEFAULT_TOLERANCE,
    show_default=True,
    metavar="X",
    help="Accept KL and JS below X, in nats.",
)
