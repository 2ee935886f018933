"""Signatures, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from rblstore.cli.render.text import plural, short

_WORDS: Final = {
    "signed": ("signed", "green"),
    "bad": ("BAD SIGNATURE", "red"),
    "not_verified": ("signed, not verified: say whom you trust, with --key, --ca or --identity", "yellow"),
    "unsigned": ("unsigned", "yellow"),
}

# What to do about a signature that does not hold, or cannot be compared, by its code.
_ADVICE: Final = {
    "wrong_key": "compare fingerprints with the signer, another way than the signature came",
    "expired_certificate": "ask the signer for a signature under a certificate that is valid",
    "untrusted_certificate": "ask the signer whose word there is for the certificate, and name it with --ca",
    "other_commit": "verify that commit, or ask for a signature over this one",
    "other_files": "do not use these files as those that were signed; check the commit out anew",
    "other_subject": "name what it is over: REV or DIR, or --verification ID",
    "malformed_signature": "fetch the signature again",
    "forgotten": "what was removed on purpose cannot be merged again; a signature of the form adapters still verifies",
}


def signed_lines(result: Any) -> Iterator[str]:
    """What was signed, by whom.

    Args:
        result: The document of a ``SignResult``.
    """
    what = f"verification {short(result['verification'])} of commit" if result["verification"] else "commit"
    files = f", {plural(result['files'], 'file')}" if result["files"] else ""
    merged = " as a merged checkout" if result["form"] == "merged" else ""
    yield f"signed {what} {short(result['commit'])}{merged}{files}: {short(result['signature'])}"
    yield f"by {_signer(result)}"
    if result["left_out"]:
        yield f"left out, as the public tools do: {', '.join(result['left_out'])}"
    if result["output"] is not None:
        yield f"written to {result['output']}"


def checked_lines(result: Any) -> Iterator[str]:
    """Whether signatures hold, and whose they are.

    Args:
        result: The document of a ``SignatureCheck``.
    """
    words, colour = _WORDS[result["status"]]
    yield f"{_subject(result)}: {click.style(words, fg=colour)}"
    for one in result["signatures"]:
        where = f"file {one['file']}" if one["file"] else f"{short(one['signature'])}, {one['author']}, {one['time']}"
        holds = {"signed": "holds", "bad": "does not hold", "not_verified": "claimed"}[one["status"]]
        if result["status"] == "signed" and one["code"] == "wrong_key":
            yield f"  not by whom you trust: {_signer(one)} ({where})"
            continue  # somebody else's is no reason to worry where one holds
        yield f"  {holds}: {_signer(one)} ({where})"
        if one["problem"]:
            yield f"    {one['problem']}"
        if one["code"] in _ADVICE:
            yield f"    {_ADVICE[one['code']]}"


def _subject(result: Any) -> str:
    if result["verification"] is not None:
        return f"verification {short(result['verification'])}"
    if result["directory"] is not None:
        return str(result["directory"])
    return f"commit {short(result['commit'])}"


def _signer(one: Any) -> str:
    if one["method"] is None:
        return "unreadable"
    key = f"key {one['key']}" if one["key"] else None
    named = f"{one['method']} of {one['identity']}" if one["identity"] else None
    return ", ".join(text for text in (named, key) if text) or "a key, of which it does not say more"
