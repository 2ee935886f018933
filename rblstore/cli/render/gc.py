"""What gc did, would do, or brought back, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import first_line, plural, short, size

_WHY = {
    "unreachable": "nothing reaches what is in it",
    "mostly_unreachable": "nothing reaches most of what is in it",
    "dead_records": "nothing reaches some records in it",
    "unlisted": "left by a command that did not come to its end",
    "forgotten": "something in it was removed on purpose",
}
_COUNTED = (
    "commit",
    "identity",
    "behavior",
    "baseline",
    "verification",
    "training-state",
    "study",
    "signature",
    "tombstone",
)
_MANY = {"identity": "identities"}
_PACKS = 20


def gc_lines(result: Any) -> Iterator[str]:
    """Which commits and packs go, why, and what that frees and when.

    Args:
        result: The document of a ``GcResult``.
    """
    if not result["changed"]:
        yield "nothing to collect" + _trash(result)
        yield from _staying(result)
        return
    done = result["applied"]
    if result["dead"]:
        counts = [plural(result["dead"][kind], kind, _MANY.get(kind)) for kind in _COUNTED if kind in result["dead"]]
        rest = sum(count for kind, count in result["dead"].items() if kind not in _COUNTED)
        counts += [plural(rest, "other record")] if rest else []
        yield f"nothing reaches: {', '.join(counts)}"
    yield from _commits(result["commits"], result["dead"].get("commit", 0))
    for pack in result["packs"][:_PACKS]:
        kept = f", {pack['kept']} of {pack['contents']} kept in a new one" if pack["kept"] else ""
        yield f"pack {short(pack['pack'])} of {size(pack['size'])}: {_WHY[pack['reason']]}{kept}"
    if len(result["packs"]) > _PACKS:
        yield f"... and {plural(len(result['packs']) - _PACKS, 'more pack')}"
    if result["packs"]:
        written = "" if result["bytes_written"] is None else f", {size(result['bytes_written'])} written anew"
        amount = f"{plural(len(result['packs']), 'pack')}, {size(result['bytes_to_trash'])}{written}"
        yield f"{'went' if done else 'would go'} to the trash: {amount}"
    if result["deleted"] or result["leftovers"]:
        what = plural(len(result["deleted"]), "pack")
        if result["leftovers"]:
            what += f", {plural(len(result['leftovers']), 'leftover')} of what did not end"
        yield f"{'deleted' if done else 'would be deleted'} for good: {what}, {size(result['bytes_freed'])}"
    if result["trash_packs"]:
        yield f"{'in the trash' if done else 'then in the trash'}{_trash(result, ': ')}"
        yield "a gc after that time deletes it; until then it comes back with: rbl gc --restore"
    yield from _staying(result)
    if not done:
        yield "nothing was changed; to do it: rbl gc --apply"


def _trash(result: Any, before: str = "; in the trash: ") -> str:
    if not result["trash_packs"]:
        return ""
    until = f", until {result['trash_until']}" if result["trash_until"] else ""
    return f"{before}{plural(result['trash_packs'], 'pack')}, {size(result['trash_bytes'])}{until}"


def _staying(result: Any) -> Iterator[str]:
    if result["bytes_staying"]:
        yield f"reached by nothing, and staying: {size(result['bytes_staying'])} in packs that are young or needed"
    if result["forgotten_staying"]:
        count = plural(result["forgotten_staying"], "content")
        yield f"removed on purpose, and staying until the grace of their packs is over: {count}"


def _commits(commits: Any, count: int) -> Iterator[str]:
    for commit in commits:
        yield f"  {short(commit['id'])} {first_line(commit['subject'])[:60]}"
    if count > len(commits):
        yield f"  ... and {plural(count - len(commits), 'more commit')}"


def gc_warnings(result: Any) -> tuple[str, ...]:
    """What should be known besides.

    Args:
        result: The document of a ``GcResult``.
    """
    found = []
    if result["future"]:
        packs = plural(len(result["future"]), "pack")
        found.append(f"{packs} of a time in the future: until that has come, nothing is taken from there")
    found += [f"pack {short(pack)} is in no use and cannot be read: {why}" for pack, why in result["unreadable"]]
    if result["missing"]:
        contents = plural(result["missing"], "content")
        found.append(f"{contents} that something needs cannot be found, so nothing is deleted for good; run: rbl fsck")
    return tuple(found)


def restore_lines(result: Any) -> Iterator[str]:
    """What came back, and how to reach it.

    Args:
        result: The document of a ``RestoreResult``.
    """
    if not result["packs"]:
        yield "nothing came back" if result["stayed"] else "the trash is empty"
        return
    counts = f"{plural(len(result['packs']), 'pack')} of {size(result['bytes'])}, {plural(result['records'], 'record')}"
    yield f"came back: {counts}"
    if result["commits"]:
        yield f"{plural(result['commits'], 'commit')} on no branch:"
        yield from _commits(result["named"], result["commits"])
        yield f"to keep one: rbl branch NAME {short(result['named'][0]['id'])}"


def restore_warnings(result: Any) -> tuple[str, ...]:
    """What stays in the trash, and why.

    Args:
        result: The document of a ``RestoreResult``.
    """
    return tuple(f"pack {short(pack)} stays in the trash: {why}" for pack, why in result["stayed"])
