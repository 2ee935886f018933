"""The page of a run of ``peers.py``, in Markdown, from its document. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from figures import MB, digits, markdown_table, ratio, spread
from measuring import MIB
from peer_tools import MERGED, STEPS, TOUCHED, TREES
from targets import OURS, highest_peak, stored, verdict_table, verdicts, wall


def time_table(document: Mapping[str, Any]) -> str:
    """Median seconds of every step (least to most in brackets), a line a tool; what failed is n/a."""
    rows = []
    for part in document["peers"].values():
        cells = []
        for step in STEPS:
            entry = part["steps"].get(step)
            found = None if entry is None or entry["failed"] else spread(entry["wall_s"])
            if found is None:
                cells.append("" if entry is None else "n/a")
            else:
                cells.append(f"{digits(found.median)} ({digits(found.least)} to {digits(found.most)})")
        rows.append((part["title"], *cells))
    return markdown_table(("seconds", *STEPS), rows)


def ratio_table(document: Mapping[str, Any], ours: str = OURS) -> str:
    """How many times what another tool takes rblstore takes, step by step; below 1 it is the faster one."""
    rows = []
    for name, part in document["peers"].items():
        if name != ours:
            found = [ratio(wall(document, ours, step), wall(document, name, step)) for step in STEPS if step != MERGED]
            rows.append((part["title"], *map(digits, found)))
    return markdown_table((f"{ours}, times", *(step for step in STEPS if step != MERGED)), rows)


def size_table(document: Mapping[str, Any]) -> str:
    """Megabytes of each store after each commit, and the highest peak of memory, a line a tool."""
    after = (*TREES, TOUCHED)
    raw = [document["inputs"].get(tree, {}).get("bytes", 0) / MB for tree in TREES]
    rows = [("(raw, added up)", *(digits(sum(raw[: at + 1]), 1) for at in range(len(raw))), "", "")]
    for name, part in document["peers"].items():
        sizes = [stored(document, name, what) for what in after]
        cells = [digits(None if size is None else size / MB, 1) for size in sizes]
        peak = highest_peak(document, name)
        rows.append((part["title"], *cells, digits(None if peak is None else peak / MB, 0)))
    header = ("MB", "base", "+ fine-tune", "+ adapter", "+ touched base", "peak memory")
    return markdown_table(header, rows)


def load_table(document: Mapping[str, Any]) -> str:
    """Seconds and memory of loading the base into memory, both ways."""
    rows = []
    for way, runs in document.get("load", {}).items():
        found = {member: spread(one[member] for one in runs) for member in ("load_s", "total_s", "again_s")}
        over = spread(one["peak_bytes"] - one["imported_bytes"] for one in runs)
        times = [
            "n/a" if one is None else f"{digits(one.median, 3)} ({digits(one.least, 3)} to {digits(one.most, 3)})"
            for one in found.values()
        ]
        rows.append((way, *times, digits(None if over is None else over.most / MB, 0)))
    header = ("seconds", "load", "and every page read", "the same again", "peak over the imports, MB")
    return markdown_table(header, rows)


def page(document: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The page of a run, in Markdown."""
    on, versions = document["machine"], document["versions"]
    memory = "?" if on["memory_bytes"] is None else digits(on["memory_bytes"] / MIB / 1024, 0)
    failed: dict[str, list[str]] = {}
    for part in document["peers"].values():
        for step, entry in part["steps"].items():
            if entry["failed"]:
                failed.setdefault(f"{part['title']}: {entry['failed']}", []).append(step)
    parts = [
        "# rblstore and its peers",
        f"Written by `tests/benchmarks/peers.py`; raw figures and commands are in `{document['name']}.json`.",
        (
            f"{on['processor']}, {on['cores']} cores, {memory} GiB, {on['file_system']}, "
            f"{on['kernel']}. Medians of {document['rounds']} rounds (least to most), page cache warm, rounds "
            f"interleaved across tools. Load average at the start: {on['load_average'][0]}."
        ),
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "Inputs: "
        + ", ".join(f"{tree} {digits(found['bytes'] / MB, 1)} MB" for tree, found in document["inputs"].items())
        + ".",
        "## Targets",
        verdict_table(verdicts(document)),
        "## Time",
        time_table(document),
        (
            "A checkout of rblstore verifies every digest, and of an adapter writes the base beside it, as that is "
            "what loads; the other tools restore the adapter alone. `cp + sha256sum` verifies as well; DVC and git-lfs "
            "do not, and DVC with hard links writes no byte: it links."
        ),
        "### Against each",
        ratio_table(document),
        "## Size and memory",
        size_table(document),
        (
            "Peak memory is that of the largest single process of a step, as the kernel reports it when the process "
            "has ended (`ru_maxrss`), the highest of all steps and rounds; what measures takes "
            f"{digits(document['floor_bytes'] / MB, 0)} MB itself, below which nothing can be seen."
        ),
        "## Loading into memory",
        load_table(document)
        if document.get("load")
        else f"Not measured: {document.get('load_failed', 'not asked for')}",
    ]
    if failed:
        lines = [f"- {said} ({', '.join(steps)})" for said, steps in failed.items()]
        parts += ["## What failed", "\n".join(lines)]
    if document["skipped"]:
        parts += ["## What was skipped", "\n".join(f"- {name}: {why}" for name, why in document["skipped"].items())]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"
