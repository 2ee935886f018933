"""What a repository or a commit takes, in text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rblstore.cli.render.text import columns, plural, short, size, times

_AMOUNT = ("contents", "raw", "stored", "ratio")


def repository_lines(usage: Any) -> Iterator[str]:
    """Contents and records, branches, and files on disk.

    Args:
        usage: The document of a ``RepositoryUsage``.
    """
    rows = [("contents", *_amount(usage["contents"]))]
    if usage["unreached"]["contents"]:
        rows.append(("  that no ref reaches", *_amount(usage["unreached"])))
    rows.append(("records", *_amount(usage["records"])))
    yield from _table(("", "count", *_AMOUNT[1:]), rows, words=1)
    yield ""
    if usage["branches"]:
        yield from _table(
            ("branch", "commit", "raw", "stored", "ratio", "unique"),
            (
                (branch["name"], short(branch["commit"]), *_amount(branch)[1:], size(branch["unique"]))
                for branch in usage["branches"]
            ),
            words=2,
        )
        yield ""
    packs = usage["packs"]
    overhead = f"{plural(packs['count'], 'file')}; {size(packs['overhead'])} beside contents and records"
    sizes = [("packs", packs["bytes"], overhead), ("catalog", usage["catalog"], ""), ("refs.log", usage["log"], "")]
    sizes += [("other", usage["other"], ""), ("total", usage["total"], "")]
    yield from columns((name, size(count).rjust(10), note) for name, count, note in sizes)


def commit_lines(usage: Any) -> Iterator[str]:
    """A table of the parts of a commit.

    Args:
        usage: The document of a ``CommitUsage``.
    """
    yield f"commit {short(usage['commit'])}, composition {short(usage['composition'])}"
    yield ""
    parts = [("identity", "-", usage["identity"])]
    parts += [("behavior", part["name"], part) for part in usage["behaviors"]]
    rows = [(role, name, short(part["id"]), *_shares(part)) for role, name, part in parts]
    rows.append(("commit", "-", short(usage["commit"]), *_shares(usage["total"])))
    yield from _table(("", "name", "id", *_AMOUNT, "shared", "unique"), rows, words=3)
    yield ""
    rows = [("added to its parents" if usage["parents"] else "added", *_amount(usage["added"]))]
    if usage["baselines"]["contents"]:
        rows.append(("baselines", *_amount(usage["baselines"])))
    if usage["states"]["contents"]:
        rows.append(("training states", *_amount(usage["states"])))
    yield from _table(("", *_AMOUNT), rows, words=1)


def _amount(amount: Any) -> tuple[str, ...]:
    return str(amount.get("contents", "")), size(amount["raw"]), size(amount["stored"]), times(amount["ratio"])


def _shares(part: Any) -> tuple[str, ...]:
    return (*_amount(part), size(part["shared"]), size(part["unique"]))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> list[str]:
    """Aligned text: so many columns of words, to the left, and then numbers, to the right."""
    table = [header, *rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(header))]
    return columns(
        [cell if at < words else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in table
    )
