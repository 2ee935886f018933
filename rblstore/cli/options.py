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
    help="Accept KL and JS whose 95 % intervals end below X, in nats.",
)
threshold = click.option(
    "--threshold",
    type=click.FloatRange(min=0.0),
    metavar="X",
    help="Flag prompts whose KL is above X nats; else above the tolerance.",
)
