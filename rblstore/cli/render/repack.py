"""What a repack did, in text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rblstore.cli.render.text import plural, size

_WHY = {
    "compression": "stored under another policy",
    "delta": "differences",
    "duplicates": "second copies",
    "small": "small packs",
}


def repack_lines(result: Any) -> Iterator[str]:
    """Which packs were merged or encoded anew, and what the repository takes now.

    Args:
        result: The document of a ``RepackResult``.
    """
    if not result["changed"]:
        packs = plural(result["packs_before"], "pack")
        yield f"nothing to repack: {packs}, {size(result['bytes_before'])}"
        return
    for rewrite in result["rewrites"]:
        what = plural(rewrite["contents"], "content" if rewrite["kind"] == "C" else "record")
        packs = plural(len(rewrite["packs"]), "pack")
        why = ", ".join(_WHY[reason] for reason in rewrite["reasons"])
        yield f"{packs} of {size(rewrite['size'])} with {what}: {why}"
    would = "would be " if result["dry_run"] else ""
    deltas = f", {result['deltas']} of them as differences" if result["deltas"] else ""
    yield f"{would}encoded anew: {plural(result['reencoded'], 'content')}{deltas}"
    if result["duplicates"]:
        yield f"{would}dropped: {plural(result['duplicates'], 'second copy', 'second copies')}"
    after = (
        "" if result["bytes_after"] is None else f", {size(result['bytes_before'])} -> {size(result['bytes_after'])}"
    )
    yield f"packs: {result['packs_before']} -> {result['packs_after']}{after}"
