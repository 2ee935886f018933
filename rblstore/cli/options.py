"""Options that several commands share."""

from __future__ import annotations

import click

from rblstore.cli.invocation import PATH, Pair
from rblstore.divergence.verdict import DEFAULT_TOLERANCE

author = click.option(
    "--author", metavar="TEXT", help="Who does this; else $RBL_AUTHOR, then config.toml, then user@host."
)
license = click.option(
    "--license", metavar="EXPR", help="What licence it is under: an SPDX expression, or a Hugging Face id."
)
license_file = click.option(
    "--license-file",
    type=PATH,
    metavar="FILE",
    help="The terms: the file is stored, with as what it is recognised.",
)
dataset = click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME[@REV][=EXPR]",
    help="What it was trained on, and under what licence. Repeatable.",
)
source = click.option(
    "--source", metavar="TEXT", help="Where it comes from: ORG/NAME[@REV] of a hub, a URL, a training run."
)
base_revision = click.option(
    "--base-revision", metavar="REV", help="Which commit of its base, at the hub, a behavior was made for."
)
meta = click.option("--meta", type=Pair("KEY=VALUE"), multiple=True, help="Anything else to say about it. Repeatable.")
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
