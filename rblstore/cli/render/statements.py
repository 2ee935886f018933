"""What is said about an identity or behavior, in text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from rblstore.cli.render.text import columns, short, wrapped

_DIGEST = re.compile("[0-9a-f]{64}")


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
    if said["texts"]:
        yield f"  whole texts: rbl state {document['name']} --text"
    if not document["statements"]:
        yield "nobody has said anything about it"
    for statement in document["statements"]:
        made = ", made now" if statement["statement"] == document["statement"] else ""
        yield ""
        yield f"{statement['author']}, {statement['time']}{made}"
        for claim in statement["claims"]:
            stands = claim in document["claims"] or claim["key"] == "retracted"
            origin = claim["origin"] if stands else f"{claim['origin']}; stands no more"
            value = _DIGEST.sub(lambda match: short(match.group()), claim["value"])
            yield from wrapped(f"{value} ({origin})", " " * 20, f"  {claim['key']:<17} ")


def terms_lines(document: Any) -> Iterator[str]:
    """Every text, under a line that says which.

    Args:
        document: The document of a ``TermsResult``.
    """
    if not document["texts"]:
        yield f"no text of terms is known of {document['role']} {document['name']}"
    for number, text in enumerate(document["texts"]):
        if number:
            yield ""
        yield click.style(f"{text['path']} sha256:{text['sha256']}", fg="yellow")
        yield f"  {_recognised(text)}"
        yield ""
        # Lines may end as on Windows; by now such an end is written out.
        yield from ["not stored here"] if text["text"] is None else text["text"].replace("\\r\n", "\n").split("\n")


def _recognised(text: Any) -> str:
    how = {"text": "by all of its text", "title": "by its title: the rest was not compared"}
    return f"recognised as {text['expression']} {how[text['by']]}" if text["by"] else "no licence that is known"


def _answers(said: Any) -> Iterator[tuple[str, str]]:
    yield "licence declared", " | ".join(said["declared"]) or "none"
    yield "licence concluded", said["concluded"] or ""
    for text in said["texts"]:
        yield "text", f"{text['path']}, {_recognised(text)}"
    yield "source", _at(", ".join(said["sources"]), said["source_revision"])
    yield "base", _at(", ".join(said["base_models"]), said["base_revision"])
    yield "relation to it", said["relation"] or ""
    for data in said["datasets"]:
        licenses = " | ".join(data["licenses"]) or "licence not stated"
        yield "trained on", f"{_at(data['name'], data['revision'])}, {licenses}"


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name
