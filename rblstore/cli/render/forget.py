"""What was removed on purpose, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import plural, short, size


def forget_lines(result: Any) -> Iterator[str]:
    """What goes, what stays, and which commits can be composed no more.

    Args:
        result: The document of a ``ForgetResult``.
    """
    done = result["applied"]
    what = f"{result['role']} {result['name']} ({short(result['subject'])})"
    yield f"{'forgotten' if done else 'would be forgotten'}: {what}"
    yield f"reason: {result['reason']}"
    goes = f"{plural(result['contents'], 'content')}, {size(result['bytes'])}"
    yield f"{'goes' if done else 'would go'} with the next gc, once its grace is over: {goes}"
    if result["shared"]:
        yield f"stays, since something else needs it: {plural(result['shared'], 'content')}"
    if result["commits"]:
        yield f"can be composed no more: {plural(result['commits'], 'commit')}"
        for commit in result["named"]:
            yield f"  {short(commit['id'])} {commit['subject']}"
    for branch in result["branches"]:
        if result["role"] == "identity":
            yield f"the head of {branch} is among them; nothing takes an identity out: go on from another one"
        else:
            yield f"the head of {branch} is among them; take it out there: rbl revert --behavior NAME --no-verify"
    if done:
        yield "to free the room now: rbl gc --apply --grace 0, twice"
    else:
        yield "nothing was changed; to do it, for good: add --apply"
