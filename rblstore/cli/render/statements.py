"""What is said about an identity or behavior, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import columns, short


def statements_lines(document: Any) -> Iterator[str]:
    """What it comes to, then every statement with its author.

    Args:
        document: The document of a ``StatementsResult``.
    """
    said = document["said"]
    yield click.style(f"{document['role']} {document['name']} {short(document['subject'])}", fg="yellow")
    yield from columns((f"  {label}", text) for label, text in _answers(said) if text)
    for problem in said["problems"]:
        yield f"  not understood: {problem}"
    if not document["statements"]:
        yield "nobody has said anything about it"
    for statement in document["statements"]:
        made = ", made now" if statement["statement"] == document["statement"] else ""
        yield ""
        yield f"{statement['author']}, {statement['time']}{made}"
        yield from columns(
            (f"  {claim['key']}", claim["value"], f"({claim['origin']})") for claim in statement["claims"]
        )


def _answers(said: Any) -> Iterator[tuple[str, str]]:
    yield "licence declared", " | ".join(said["declared"]) or "none"
    yield "licence concluded", said["concluded"] or ""
    yield "source", _at(", ".join(said["sources"]), said["source_revision"])
    yield "base", _at(", ".join(said["base_models"]), said["base_revision"])
    yield "relation to it", said["relation"] or ""
    for data in said["datasets"]:
        licenses = " | ".join(data["licenses"]) or "licence not stated"
        yield "trained on", f"{_at(data['name'], data['revision'])}, {licenses}"


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name
